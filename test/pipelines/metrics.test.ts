import { describe, expect, it } from "vitest";
import { PhiloxRandom } from "../../lib/data/philox.js";
import { gradientMagnitude, psnr, ssim } from "../../lib/pipelines/metrics.js";

const noise = (size: number, seed: number) => {
  const random = new PhiloxRandom(seed);
  return Float64Array.from({ length: size }, () => random.uniform());
};

/** The definition word by word: at each window weighted means, variances and covariance around the means. */
function ssimByDefinition(a: Float64Array, b: Float64Array, height: number, width: number): number {
  const window = Array.from({ length: 121 }, (_, i) => {
    const [y, x] = [Math.floor(i / 11) - 5, (i % 11) - 5];
    return { y, x, weight: Math.exp(-(x * x + y * y) / (2 * 1.5 * 1.5)) };
  });
  const norm = window.reduce((sum, { weight }) => sum + weight, 0);
  const scores: number[] = [];
  for (let cy = 5; cy < height - 5; cy++) {
    for (let cx = 5; cx < width - 5; cx++) {
      const at = (x: Float64Array, k: number) => x[(cy + window[k].y) * width + cx + window[k].x];
      const average = (value: (k: number) => number) =>
        window.reduce((sum, { weight }, k) => sum + (weight / norm) * value(k), 0);
      const [ma, mb] = [average((k) => at(a, k)), average((k) => at(b, k))];
      const va = average((k) => (at(a, k) - ma) ** 2);
      const vb = average((k) => (at(b, k) - mb) ** 2);
      const cov = average((k) => (at(a, k) - ma) * (at(b, k) - mb));
      scores.push(((2 * ma * mb + 1e-4) * (2 * cov + 9e-4)) / ((ma ** 2 + mb ** 2 + 1e-4) * (va + vb + 9e-4)));
    }
  }
  return scores.reduce((sum, s) => sum + s, 0) / scores.length;
}

describe("ssim", () => {
  it("agrees with its definition, frame by frame", () => {
    const [height, width] = [16, 19];
    const a = noise(2 * height * width, 1);
    const b = noise(2 * height * width, 2).map((v, i) => 0.7 * a[i] + 0.3 * v);
    const frames = [0, 1].map((f) => {
      const part = (x: Float64Array) => x.subarray(f * height * width, (f + 1) * height * width);
      return ssimByDefinition(part(a), part(b), height, width);
    });
    expect(frames[0]).not.toBeCloseTo(frames[1], 4);
    expect(ssim(a, b, [1, 2, height, width, 1])).toBeCloseTo((frames[0] + frames[1]) / 2, 12);
    expect(ssim(a, b, [2, 1, height, width, 1])).toBeCloseTo((frames[0] + frames[1]) / 2, 12);
  });

  it("takes each channel by itself", () => {
    const [a, b] = [noise(2 * 144, 3), noise(2 * 144, 4)];
    const channel = (x: Float64Array, c: number) => x.filter((_, i) => i % 2 === c);
    const each = [0, 1].map((c) => ssim(channel(a, c), channel(b, c), [1, 1, 12, 12, 1]));
    expect(ssim(a, b, [1, 1, 12, 12, 2])).toBeCloseTo((each[0] + each[1]) / 2, 12);
  });

  it("is 1 for equal frames, and the luminance term alone for flat ones", () => {
    const a = noise(12 * 12, 5);
    expect(ssim(a, a, [1, 1, 12, 12, 1])).toBeCloseTo(1, 14);
    const flat = (value: number) => new Float64Array(144).fill(value);
    const expected = (2 * 0.2 * 0.8 + 1e-4) / (0.04 + 0.64 + 1e-4);
    expect(ssim(flat(0.2), flat(0.8), [1, 1, 12, 12, 1])).toBeCloseTo(expected, 10);
    expect(ssim(flat(0.2), flat(0.8), [4, 1, 6, 6, 1])).toBeCloseTo(expected, 10);
  });

  it("refuses arrays that do not fit", () => {
    expect(() => ssim([1], [1, 2], [1, 1, 1, 2, 1])).toThrow("[ssim] expects videos (B,F,H,W,C)");
    expect(() => ssim([], [], [0, 1, 1, 1, 1])).toThrow("not empty");
  });
});

describe("gradient magnitude", () => {
  it("is the slope of a plane", () => {
    const plane = Float64Array.from({ length: 2 * 4 * 5 }, (_, i) => 0.03 * (i % 5) + 0.04 * (Math.floor(i / 5) % 4));
    expect(gradientMagnitude(plane, [1, 2, 4, 5, 1])).toBeCloseTo(0.05, 12);
  });

  it("of a blurred frame is less", () => {
    const sharp = noise(64, 6);
    const blurred = sharp.map((v, i) => (v + (sharp[i + 1] ?? v)) / 2);
    expect(gradientMagnitude(blurred, [1, 1, 8, 8, 1])).toBeLessThan(0.9 * gradientMagnitude(sharp, [1, 1, 8, 8, 1]));
  });
});

it("PSNR is that of the mean squared error", () => {
  expect(psnr(0.01 * 50, 50)).toBeCloseTo(20, 12);
  expect(psnr(0, 50)).toBe(100);
});
