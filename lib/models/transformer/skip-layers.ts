/** Layers that some samples of a batch skip: the weaker model that spatio-temporal guidance steers away from. */
import { integer } from "../../arguments.js";
import { check } from "../../errors.js";
import { type Device, Tensor } from "../../tensor/index.js";

/**
 * What a skipped sample does without: `attention_values` takes the values of its self-attention for the result,
 * `attention_skip` the attention's input; `residual` leaves out what self-attention adds to the stream,
 * `transformer_block` what the whole block adds. In the official code `residual` changes nothing: it looks for a
 * connection inside the attention that these models don't have.
 */
export const SKIP_MODES = ["attention_values", "attention_skip", "residual", "transformer_block"] as const;
export type SkipMode = (typeof SKIP_MODES)[number];

/** Block i is skipped for sample b where `mask[i][b]` is 0; 1 stands elsewhere. */
export interface SkipLayers {
  mode: SkipMode;
  mask: readonly (readonly number[])[];
}

/** The samples of one block: f32 factors (B), one where the block computes and one where it is skipped. */
export interface SkippedRows {
  mode: SkipMode;
  kept: Tensor;
  skipped: Tensor;
}

/** Layers, or samples, beyond any. */
const MAX_SIZE = 2 ** 16;

/** The mask of `layers` blocks with which the samples `rows` of a batch skip the blocks `blocks`. */
export function skipMask(
  layers: number,
  batch: number,
  blocks: readonly number[],
  rows: readonly number[],
): SkipLayers["mask"] {
  integer("skip layers", "layers", layers, 0, MAX_SIZE);
  integer("skip layers", "batch", batch, 0, MAX_SIZE);
  for (const block of blocks) {
    check(Number.isInteger(block) && block >= 0 && block < layers, "invalid_argument", () => {
      return `[skip layers] block ${block} is not one of the model's, which are 0 to ${layers - 1}`;
    });
  }
  for (const row of rows) {
    check(Number.isInteger(row) && row >= 0 && row < batch, "invalid_argument", () => {
      return `[skip layers] sample ${row} is not in the batch of ${batch}`;
    });
  }
  return Array.from({ length: layers }, (_, block) =>
    Array.from({ length: batch }, (_, row) => (blocks.includes(block) && rows.includes(row) ? 0 : 1)),
  );
}

/** What each block reads of `skip`; null where it has nothing to skip. */
export function skippedRows(
  skip: SkipLayers | null | undefined,
  layers: number,
  batch: number,
  device: Device,
): (SkippedRows | null)[] {
  if (!skip) return Array(layers).fill(null);
  const { mode, mask } = skip;
  check(SKIP_MODES.includes(mode), "invalid_argument", () => {
    return `[skip layers] mode ${JSON.stringify(mode)} is not one of ${SKIP_MODES.join(", ")}`;
  });
  check(mask.length === layers && mask.every((row) => row.length === batch), "shape_mismatch", () => {
    return `[skip layers] expects a mask [${layers}][${batch}], for each block and sample, got [${mask.length}][${mask[0]?.length}]`;
  });
  check(
    mask.every((row) => row.every((value) => value === 0 || value === 1)),
    "invalid_argument",
    () => `[skip layers] a mask is 0 where a block is skipped and 1 elsewhere, got ${JSON.stringify(mask)}`,
  );
  return mask.map((row) => {
    if (!row.includes(0)) return null;
    const inverse = row.map((value) => 1 - value);
    return { mode, kept: Tensor.from(row, [batch], { device }), skipped: Tensor.from(inverse, [batch], { device }) };
  });
}
