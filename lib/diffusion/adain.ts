/** What is done to upscaled and to final latents (B,f,h,w,C) f32, without gradients. */
import { check } from "../errors.js";
import {
  abs,
  affine,
  axpby,
  full,
  meanSamples,
  mixRows,
  mul,
  normAct,
  reshape,
  sigmoid,
  square,
  toChannelsFirst,
  toChannelsLast,
  unary,
} from "../ops/index.js";
import { noGrad, scope, type Tensor } from "../tensor/index.js";

/** Keeps a channel without variance where it is; others have far more. */
const EPS = 1e-12;

/**
 * Gives each channel of each sample the mean and the deviation that it has in `reference` (adaptive instance norm), which
 * may be of another size: `factor` 1 all of them, 0 nothing.
 * @throws {LtxError} `shape_mismatch` when samples or channels differ
 */
export function adainFilterLatent(latents: Tensor, reference: Tensor, factor = 1): Tensor {
  const [batch, , , , channels] = latents.shape;
  const fits = latents.dims === 5 && reference.dims === 5 && reference.shape[0] === batch;
  check(fits && reference.shape[4] === channels && reference.size > 0, "shape_mismatch", () => {
    return `[adain] expects latents and a reference (B,f,h,w,C) of as many samples and channels, got [${latents.shape}] and [${reference.shape}]`;
  });
  return noGrad(() =>
    scope(() => {
      const { mean, std } = statistics(reference);
      const own = channelRows(latents);
      const count = own.shape[1];
      // Layer norm divides by the deviation of all values, statistics are those of a draw.
      const unit = normAct(own, { kind: "layer_norm", eps: EPS });
      const matched = mixRows(unit, ones(own), affine(std, Math.sqrt((count - 1) / count)), mean);
      const [, frames, height, width] = latents.shape;
      const result = toChannelsLast(reshape(matched, [batch, channels, frames, height, width]));
      return axpby(factor, result, 1 - factor, latents);
    }),
  );
}

/** Each channel of each sample in a row of its own: (B·C, f·h·w). */
const channelRows = (x: Tensor): Tensor => reshape(toChannelsFirst(x), [x.shape[0] * x.shape[4], -1]);

const ones = (x: Tensor): Tensor => full(x.shape, 1, { device: x.device });

/** Mean and deviation of each row of {@link channelRows}; a single value deviates by nothing. */
function statistics(x: Tensor): { mean: Tensor; std: Tensor } {
  return scope(() => {
    const rows = channelRows(x);
    const count = rows.shape[1];
    const mean = meanSamples(rows);
    const centred = mixRows(rows, ones(rows), null, affine(mean, -1));
    const variance = affine(meanSamples(square(centred)), count / Math.max(count - 1, 1));
    return { mean, std: unary("sqrt", variance) };
  });
}

/**
 * Compresses large values: x · (1 - 0.6 · c · sigmoid(3 · c · (|x| - 1))).
 * @param compression c, from 0 (nothing happens) to 1
 * @throws {LtxError} `invalid_argument`
 */
export function toneMapLatents(latents: Tensor, compression: number): Tensor {
  check(compression >= 0 && compression <= 1, "invalid_argument", () => {
    return `[tone map] tone_map_compression_ratio must be from 0 to 1, got ${compression}`;
  });
  return noGrad(() =>
    scope(() => {
      const steepness = 3 * compression;
      const share = sigmoid(affine(abs(latents), steepness, -steepness));
      return mul(latents, affine(share, -0.6 * compression, 1));
    }),
  );
}
