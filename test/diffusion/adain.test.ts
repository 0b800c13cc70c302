import { describe, expect, it } from "vitest";
import { adainFilterLatent, toneMapLatents } from "../../lib/diffusion/index.js";
import { affine, normal } from "../../lib/ops/index.js";
import { scope, Tensor } from "../../lib/tensor/index.js";
import { relativeError } from "../golden/support/check.js";

const draw = (shape: number[], purpose: number) => normal(shape, { seed: 1, step: 0, purpose });
const channel = (values: ArrayLike<number>, sample: number, c: number, [batch, ...rest]: readonly number[]) => {
  const channels = rest[rest.length - 1];
  const size = rest.reduce((n, d) => n * d, 1);
  expect(batch * size).toBe(values.length);
  return Array.from(values).filter((_, i) => Math.floor(i / size) === sample && i % channels === c);
};
function moments(values: number[]) {
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  const squares = values.reduce((sum, v) => sum + (v - mean) ** 2, 0);
  return { mean, std: Math.sqrt(squares / (values.length - 1)) };
}

describe("adaptive instance norm", () => {
  it("gives each channel of each sample the reference's mean and deviation", async () => {
    const [x, reference] = scope(() => [
      affine(draw([2, 2, 4, 3, 5], 0), 2, 1),
      affine(draw([2, 2, 2, 3, 5], 1), 0.5, -4),
    ]);
    const y = adainFilterLatent(x, reference);
    const [values, wanted, before] = await Promise.all([y.read(), reference.read(), x.read()]);
    for (const [sample, c] of [0, 1].flatMap((s) => [0, 1, 2, 3, 4].map((c) => [s, c]))) {
      const own = channel(values, sample, c, y.shape);
      const target = moments(channel(wanted, sample, c, reference.shape));
      expect(moments(own).mean).toBeCloseTo(target.mean, 5);
      expect(moments(own).std).toBeCloseTo(target.std, 5);
      // Nothing else changes: values stand in the same proportion.
      const from = channel(before, sample, c, x.shape);
      const source = moments(from);
      const expected = from.map((v) => ((v - source.mean) / source.std) * target.std + target.mean);
      expect(relativeError(own, expected)).toBeLessThan(1e-5);
    }
    const half = await adainFilterLatent(x, reference, 0.5).read();
    expect(
      relativeError(
        half,
        Float32Array.from(values, (v, i) => (v + before[i]) / 2),
      ),
    ).toBeLessThan(1e-6);
    expect(await adainFilterLatent(x, reference, 0).read()).toEqual(before);
  });

  it("keeps a channel finite that has no variance, or a single value", async () => {
    const constant = Tensor.from(new Float32Array(4).fill(3), [1, 1, 2, 2, 1]);
    const reference = Tensor.from([1, 2, 3, 6], [1, 1, 2, 2, 1]);
    expect([...(await adainFilterLatent(constant, reference).read())]).toEqual([3, 3, 3, 3]);
    const single = Tensor.from([7], [1, 1, 1, 1, 1]);
    expect([...(await adainFilterLatent(single, reference).read())]).toEqual([3]);
    expect([...(await adainFilterLatent(reference, single).read())]).toEqual([7, 7, 7, 7]);
  });

  it("needs as many samples and channels", () => {
    scope(() => {
      expect(() => adainFilterLatent(draw([1, 1, 2, 2, 3], 0), draw([1, 1, 2, 2, 4], 1))).toThrow(
        /as many samples and channels, got \[1,1,2,2,3\] and \[1,1,2,2,4\]/,
      );
    });
  });
});

describe("tone map", () => {
  it("compresses large values", async () => {
    const x = draw([1, 2, 3, 4, 5], 2);
    const values = await x.read();
    const curve = (v: number, c: number) => v * (1 - (0.6 * c) / (1 + Math.exp(-3 * c * (Math.abs(v) - 1))));
    for (const ratio of [0, 0.3, 1]) {
      const expected = Float32Array.from(values, (v) => curve(v, ratio));
      expect(relativeError(await toneMapLatents(x, ratio).read(), expected)).toBeLessThan(1e-6);
    }
    expect(() => toneMapLatents(x, 1.5)).toThrow(/tone_map_compression_ratio must be from 0 to 1, got 1.5/);
  });
});
