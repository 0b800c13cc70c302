import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { fromFloat32, toFloat32 } from "../../lib/formats/dtypes.js";

type Small = "BF16" | "F16" | "F8_E4M3";
const SMALL = ["BF16", "F16", "F8_E4M3"] as const;

const bits = (value: number, dtype: Small) => {
  const bytes = fromFloat32(Float32Array.of(value), dtype) as Uint8Array;
  return bytes[0] | ((bytes[1] ?? 0) << 8);
};

/** All values of a small float type, by their bits. */
const all = (dtype: Small) => {
  const patterns = dtype === "F8_E4M3" ? new Uint8Array(256) : new Uint16Array(65536);
  for (let i = 0; i < patterns.length; i++) patterns[i] = i;
  return toFloat32(new Uint8Array(patterns.buffer), dtype) as Float32Array;
};

describe("toFloat32", () => {
  it("reads every BOOL that is not zero as 1", () => {
    expect(toFloat32(Uint8Array.of(0, 1, 6, 255), "BOOL")).toEqual(Float32Array.of(0, 1, 1, 1));
    expect(toFloat32(Uint8Array.of(0, 1, 6, 255), "U8")).toEqual(Float32Array.of(0, 1, 6, 255));
  });
});

describe("fromFloat32", () => {
  it.each<[Small, number, number]>([
    ["F16", 1, 0x3c00],
    ["F16", -2, 0xc000],
    ["F16", 65504, 0x7bff],
    ["F16", 65519, 0x7bff],
    ["F16", 2 ** -14, 0x0400],
    ["F16", 2 ** -24, 0x0001],
    ["F16", 2 ** -25, 0x0000],
    ["F16", 3 * 2 ** -25, 0x0002],
    ["F16", 2 ** -14 - 2 ** -25, 0x0400],
    ["F16", 1 + 2 ** -11, 0x3c00],
    ["F16", 1 + 3 * 2 ** -11, 0x3c02],
    ["F16", -0, 0x8000],
    ["F16", 1e-45, 0],
    ["F16", Number.POSITIVE_INFINITY, 0x7c00],
    ["F16", Number.NaN, 0x7e00],
    ["BF16", 1, 0x3f80],
    ["BF16", 1 + 2 ** -8, 0x3f80],
    ["BF16", 1 + 3 * 2 ** -8, 0x3f82],
    ["BF16", 3.396e38, 0x7f7f],
    ["BF16", Number.NEGATIVE_INFINITY, 0xff80],
    ["BF16", -0, 0x8000],
    ["BF16", Number.NaN, 0x7fc0],
    ["F8_E4M3", 1, 0x38],
    ["F8_E4M3", -448, 0xfe],
    ["F8_E4M3", 463, 0x7e],
    ["F8_E4M3", 1 + 2 ** -4, 0x38],
    ["F8_E4M3", 1 + 3 * 2 ** -4, 0x3a],
    ["F8_E4M3", 2 ** -6 - 2 ** -10, 0x08],
    ["F8_E4M3", 2 ** -10, 0],
    ["F8_E4M3", 3 * 2 ** -11, 0x01],
    ["F8_E4M3", -0, 0x80],
    ["F8_E4M3", Number.NaN, 0x7f],
  ])("%s of %f", (dtype, value, expected) => {
    expect(bits(value, dtype)).toBe(expected);
  });

  it("refuses values beyond F16, BF16 and F8_E4M3", () => {
    expect(fromFloat32(Float32Array.of(1, -3.4e38), "BF16")).toBeUndefined();
    expect(fromFloat32(Float32Array.of(1, 65520), "F16")).toBeUndefined();
    expect(fromFloat32(Float32Array.of(-1e9), "F16")).toBeUndefined();
    for (const value of [465, -1e9, Number.POSITIVE_INFINITY]) {
      expect(fromFloat32(Float32Array.of(1, value), "F8_E4M3")).toBeUndefined();
    }
  });

  it.each(SMALL)("gives back every value of %s", (dtype) => {
    const values = all(dtype);
    const back = toFloat32(fromFloat32(values, dtype) as Uint8Array, dtype) as Float32Array;
    expect(values.every((value, i) => Object.is(value, back[i]))).toBe(true);
  });

  it.each(SMALL)("chooses a nearest value of %s", (dtype) => {
    const values = [...all(dtype)].filter(Number.isFinite).sort((a, b) => a - b);
    const most = values[values.length - 1];
    const range = dtype === "F8_E4M3" ? 448 : 60000;
    fc.assert(
      fc.property(fc.float({ noNaN: true, min: -range, max: range }), (value) => {
        const [found] = toFloat32(fromFloat32(Float32Array.of(value), dtype) as Uint8Array, dtype) as Float32Array;
        let [low, high] = [0, values.length - 1];
        while (high - low > 1) {
          const middle = (low + high) >> 1;
          if (values[middle] <= value) low = middle;
          else high = middle;
        }
        const best = Math.min(Math.abs(value - values[low]), Math.abs(value - values[high]));
        expect(Math.abs(value - found)).toBe(best);
        expect(Math.abs(found)).toBeLessThanOrEqual(most);
      }),
      { seed: 2, numRuns: 500 },
    );
  });
});
