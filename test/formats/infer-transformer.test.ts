import { describe, expect, it } from "vitest";
import { LtxError } from "../../lib/errors.js";
import { inferTransformerConfig } from "../../lib/formats/official/infer.js";
import type { TensorFile } from "../../lib/formats/tensor-file.js";
import { transformerShapes } from "../support/official.js";

/** The tensors of a transformer of two blocks as wide as a release's. */
function file(...more: string[]): TensorFile {
  const shapes = [...transformerShapes(64), ...more.map((name): [string, number[]] => [name, [64]])];
  const tensors = new Map(shapes.map(([name, shape]) => [name, { dtype: "F32", shape, byteLength: 0 }]));
  return { tensors, metadata: {} } as unknown as TensorFile;
}

describe("inferTransformerConfig", () => {
  it("counts the blocks", () => {
    expect(inferTransformerConfig("x.safetensors", file(), undefined)).toMatchObject({ num_layers: 2 });
  });

  it("refuses a block of number four billion, which no other one leads up to", () => {
    const read = () =>
      inferTransformerConfig("x.safetensors", file("transformer_blocks.4000000000.scale_shift_table"), undefined);
    expect(read).toThrow(LtxError);
    expect(read).toThrow(/x\.safetensors has 3 transformer blocks, but none of number 2 \(it has 0, 1, 4000000000\)/);
  });
});
