import { describe, expect, it } from "vitest";
import { type EncoderBlock, vaeFactors } from "../../lib/config/index.js";
import { LtxError } from "../../lib/errors.js";
import { closest, editDistance } from "../../lib/suggest.js";

const factors = (patch_size: number, ...names: EncoderBlock[0][]) =>
  vaeFactors({ patch_size, encoder_blocks: names.map((name): EncoderBlock => [name, 1]) });

describe("vaeFactors", () => {
  it("multiplies patch and strides", () => {
    expect(factors(1, "res_x")).toMatchObject({ time: 1, space: 1 });
    expect(factors(4, "compress_all", "res_x_y", "compress_all", "compress_all")).toMatchObject({ time: 8, space: 32 });
    expect(factors(2, "compress_time", "compress_space", "compress_all_x_y")).toMatchObject({ time: 4, space: 8 });
    expect(factors(4, "compress_space_res", "compress_time_res", "compress_all_res", "compress_all_res")).toMatchObject(
      {
        time: 8,
        space: 32,
      },
    );
  });
  it("gives the latent's shape", () => {
    const official = factors(4, "compress_all", "compress_all", "compress_all");
    expect(official.latentShape(25, 64, 64)).toEqual([4, 2, 2]);
    expect(official.latentShape(121, 512, 768)).toEqual([16, 16, 24]);
    expect(official.latentShape(1, 32, 64)).toEqual([1, 1, 2]);
    expect(factors(1, "res_x").latentShape(7, 5, 3)).toEqual([7, 5, 3]);
  });
  it("refuses what does not fit", () => {
    const { latentShape } = factors(4, "compress_all", "compress_all", "compress_all");
    expect(() => latentShape(117, 64, 64)).toThrow("[vae] frames 117: needs 8k+1, nearest 113 or 121");
    expect(() => latentShape(0, 64, 64)).toThrow("frames 0: needs 8k+1, nearest 1 or 9");
    expect(() => latentShape(9, 31, 64)).toThrow("height 31: needs a multiple of 32, nearest 32");
    expect(() => latentShape(9, 64, 1.5)).toThrow("width 1.5: needs a multiple of 32, nearest 32");
    expect(() => latentShape(9, -64, 64)).toThrow("nearest 32");
    expect(() => latentShape(Number.NaN, 64, 64)).toThrow(LtxError);
    expect(() => latentShape(Number.POSITIVE_INFINITY, 64, 64)).toThrow(LtxError);
  });
});

describe("suggestions", () => {
  it("measures edits", () => {
    expect(editDistance("", "abc")).toBe(3);
    expect(editDistance("kitten", "sitting")).toBe(3);
    expect(editDistance("same", "same")).toBe(0);
  });
  it("takes the nearest, or none", () => {
    expect(closest("batchsize", ["steps", "batch_size"])).toBe("batch_size");
    expect(closest("BATCH_SIZE", ["batch_size"])).toBe("batch_size");
    expect(closest("zzz", ["a", "bc"])).toBeUndefined();
    expect(closest("x".repeat(1000), ["x".repeat(999)])).toBeUndefined();
  });
});
