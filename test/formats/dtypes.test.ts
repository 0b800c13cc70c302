import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { fromFloat32, toFloat32 } from "../../lib/formats/dtypes.js";

const bits = (value: number, dtype: "BF16" | "F16") => {
  const bytes = fromFloat32(Float32Array.of(value), dtype) as Uint8Array;
  return bytes[0] | (bytes[1] << 8);
};

/** All values of a 16-bit float type, by their bits. */
const all = (dtype: "BF16" | "F16") =>
  toFloat32(new Uint8Array(Uint16Array.from({ length: 65536 }, (_, i) => i).buffer), dtype) as Float32Array;

describe("fromFloat32", () => {
  it.each<["BF16" | "F16", number, number]>([
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
    ["BF16", 3.4e38, 0x7f80],
    ["BF16", -0, 0x8000],
    ["BF16", Number.NaN, 0x7fc0],
  ])("%s of %f", (dtype, value, expected) => {
    expect(bits(value, dtype)).toBe(expected);
  });

  it("refuses finite values beyond F16", () => {
    expect(fromFloat32(Float32Array.of(1, 65520), "F16")).toBeUndefined();
    expect(fromFloat32(Float32Array.of(-1e9), "F16")).toBeUndefined();
  });

  it.each(["BF16", "F16"] as const)("gives back every value of %s", (dtype) => {
    const values = all(dtype);
    const back = toFloat32(fromFloat32(values, dtype) as Uint8Array, dtype) as Float32Array;
    expect(values.every((value, i) => Object.is(value, back[i]))).toBe(true);
  });

  it.each(["BF16", "F16"] as const)("chooses a nearest value of %s", (dtype) => {
    const values = [...all(dtype)].filter(Number.isFinite).sort((a, b) => a - b);
    const most = values[values.length - 1];
    fc.assert(
      fc.property(fc.float({ noNaN: true, min: -60000, max: 60000 }), (value) => {
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
