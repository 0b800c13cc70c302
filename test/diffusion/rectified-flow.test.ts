import { describe, expect, it } from "vitest";
import {
  addNoise,
  flowLoss,
  sampleTimes,
  type TimeDistribution,
  velocityError,
  velocityTarget,
} from "../../lib/diffusion/index.js";
import { add, affine, normal, zeros } from "../../lib/ops/index.js";
import { backward, device, keep, scope, Tensor } from "../../lib/tensor/index.js";

const cpu = device("cpu");
const from = (values: number[], shape: number[]) => Tensor.from(values, shape, { device: cpu });
const floats = async (tensor: Tensor) => Array.from(await tensor.read());
const key = (purpose: number, step = 0) => ({ seed: 11, step, purpose });

describe("sampleTimes", () => {
  // Moments of the logistic of a standard normal: mean 1/2, variance by quadrature; P(t < σ(-1)) = Φ(-1).
  it.each([
    ["logit-normal", 0.5, 0.043379, 1 / (1 + Math.E), 0.158655],
    ["uniform", 0.5, 1 / 12, 0.25, 0.25],
    ["uniform-clipped", 0.5005, 0.999 ** 2 / 12, 0.001 + 0.999 / 4, 0.25],
  ] as [TimeDistribution, number, number, number, number][])("%s", async (distribution, mean, variance, at, below) => {
    const n = 100_000;
    const times = await floats(sampleTimes(n, distribution, key(0), { device: cpu }));
    const average = times.reduce((a, b) => a + b, 0) / n;
    expect(average).toBeCloseTo(mean, 2);
    expect(Math.abs(times.reduce((a, t) => a + (t - average) ** 2, 0) / n / variance - 1)).toBeLessThan(0.02);
    expect(Math.abs(times.filter((t) => t < at).length / n - below)).toBeLessThan(0.006);
    expect(times.every((t) => t >= (distribution === "uniform-clipped" ? 0.001 : 0) && t <= 1)).toBe(true);
  });

  it("is a function of the key alone", async () => {
    const draw = (step: number) => floats(sampleTimes(8, "logit-normal", key(4, step), { device: cpu }));
    expect(await draw(3)).toEqual(await draw(3));
    expect(await draw(3)).not.toEqual(await draw(4));
  });

  it("names an unknown distribution", () => {
    expect(() => sampleTimes(1, "cosine" as TimeDistribution, key(0))).toThrow(
      '[rectified flow] unknown time distribution "cosine": expected logit-normal, uniform or uniform-clipped',
    );
  });
});

describe("the line from noise to data", () => {
  const x0 = from([1, 2, 3, 4], [2, 2]);
  const noise = from([-1, 0, 1, 8], [2, 2]);

  it("is data at t = 1 and noise at t = 0", async () => {
    expect(await floats(addNoise(x0, noise, from([1, 0], [2])))).toEqual([1, 2, 1, 8]);
    expect(await floats(addNoise(x0, noise, from([0.5, 0.25], [2])))).toEqual([0, 1, 1.5, 7]);
  });

  it("has the velocity x0 - noise everywhere", async () => {
    expect(await floats(velocityTarget(x0, noise))).toEqual([2, 2, 2, -4]);
  });

  it("averages the squared error over each sample", async () => {
    expect(await floats(velocityError(x0, noise))).toEqual([4, 10]);
  });
});

describe("flowLoss", () => {
  const options = { distribution: "uniform", timeKey: key(1), noiseKey: key(2) } as const;
  const x0 = normal([3, 2, 2, 2, 4], key(9), { device: cpu });

  it("is the mean squared velocity error at its own times and noises", async () => {
    const noise = normal(x0.shape, options.noiseKey, { device: cpu });
    const target = await floats(velocityTarget(x0, noise));
    const loss = flowLoss((x) => zeros(x.shape, { device: cpu }), x0, options);
    expect(loss.shape).toEqual([1]);
    expect(await loss.item()).toBeCloseTo(target.reduce((s, v) => s + v * v, 0) / target.length, 4);
  });

  it("shows the model the noised data and their times", async () => {
    const seen: Tensor[] = [];
    flowLoss(
      (x, t) => {
        seen.push(affine(x, 1), affine(t, 1));
        for (const tensor of seen) keep(tensor);
        return zeros(x.shape, { device: cpu });
      },
      x0,
      options,
    );
    const [x, t] = seen;
    const times = sampleTimes(3, "uniform", options.timeKey, { device: cpu });
    expect(await floats(t)).toEqual(await floats(times));
    const noise = normal(x0.shape, options.noiseKey, { device: cpu });
    expect(await floats(x)).toEqual(await floats(addNoise(x0, noise, times)));
  });

  it("is 0 for the true velocity, and its gradient points there", async () => {
    const noise = normal(x0.shape, options.noiseKey, { device: cpu });
    const truth = velocityTarget(x0, noise);
    expect(await flowLoss(() => truth, x0, options).item()).toBe(0);
    const offset = zeros(x0.shape, { device: cpu });
    offset.requiresGrad = true;
    const away = from(Array(x0.size).fill(0.5), [...x0.shape]);
    scope(() => backward(flowLoss(() => add(add(truth, away), offset), x0, options)));
    for (const g of await floats(offset.grad as Tensor)) expect(g).toBeCloseTo((2 * 0.5) / x0.size, 6);
  });
});
