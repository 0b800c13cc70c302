import { describe, expect, it } from "vitest";
import { eulerSample, eulerSteps, holdFrames } from "../../lib/diffusion/index.js";
import { affine, axpby, normal } from "../../lib/ops/index.js";
import { device, noGrad, scope, type Tensor } from "../../lib/tensor/index.js";

const cpu = device("cpu");
const key = (purpose: number) => ({ seed: 3, step: 0, purpose });
const values = async (x: Tensor) => [...((await x.read()) as Float32Array)];

describe("held frames", () => {
  it("keep to the straight line from noise to data, while the others follow the model", async () => {
    const [batch, frames, held, size] = [2, 4, 2, 2 * 3 * 5];
    const start = normal([batch, frames, 2, 3, 5], key(1), { device: cpu });
    const known = normal([batch, held, 2, 3, 5], key(2), { device: cpu });
    const [noise, data] = [await values(start), await values(known)];
    const hold = holdFrames(start, known);
    // A model that sees the held frames: v = -x/2.
    const velocity = (x: Tensor) => affine(x, -0.5);
    const free = [...noise];
    for await (const { time, latents } of eulerSteps({ velocity, start, steps: 4, held: hold })) {
      const found = await values(latents);
      for (let i = 0; i < found.length; i++) {
        free[i] *= 1 - 0.5 / 4;
        const frame = Math.floor(i / size) % frames;
        const sample = Math.floor(i / size / frames);
        const x0 = data[(sample * held + frame) * size + (i % size)];
        expect(found[i]).toBeCloseTo(frame < held ? time * x0 + (1 - time) * noise[i] : free[i], 5);
      }
      if (time === 1) latents.dispose();
    }
    for (const x of [start, known, hold.target, hold.free]) x.dispose();
  });

  it("may be all or just one, but must fit", () => {
    noGrad(() =>
      scope(() => {
        const start = normal([1, 3, 1, 1, 2], key(1), { device: cpu });
        holdFrames(start, normal([1, 3, 1, 1, 2], key(2), { device: cpu }));
        holdFrames(start, normal([1, 1, 1, 1, 2], key(2), { device: cpu }));
        for (const shape of [
          [1, 4, 1, 1, 2],
          [2, 1, 1, 1, 2],
          [1, 1, 1, 1, 3],
        ])
          expect(() => holdFrames(start, normal(shape, key(2), { device: cpu }))).toThrow(
            `[held frames] [${shape}] is not the beginning of a state [1,3,1,1,2]`,
          );
      }),
    );
  });
});

describe("resampling", () => {
  const shape = [1, 4, 10, 10, 50];
  const resample = { times: 3, key: key(9) };

  it("shows the model each step several times, with as much noise as belongs to its time and ever other noise", async () => {
    const start = normal(shape, key(1), { device: cpu });
    const data = normal(shape, key(2), { device: cpu });
    const [noise, x0] = [await values(start), await values(data)];
    const seen: Promise<number[]>[] = [];
    const steps = 5;
    // A model that knows the data: v = x0 - n for whatever noise n there is.
    const velocity = (x: Tensor) => {
      seen.push(values(x));
      const t = Math.floor((seen.length - 1) / resample.times) / steps;
      return affine(axpby(1, data, -1, x), 1 / (1 - t));
    };
    const { latents } = await eulerSample({ velocity, start, steps, resample });
    for (const [i, value] of (await values(latents)).entries()) expect(value).toBeCloseTo(x0[i], 4);
    expect(seen).toHaveLength(steps * resample.times);
    for (const [call, state] of (await Promise.all(seen)).entries()) {
      const t = Math.floor(call / resample.times) / steps;
      const n = state.map((v, i) => (v - t * x0[i]) / (1 - t));
      const mean = (f: (v: number, i: number) => number) => n.reduce((sum, v, i) => sum + f(v, i), 0) / n.length;
      expect(Math.abs(mean((v) => v))).toBeLessThan(0.03);
      expect(Math.abs(mean((v) => v * v) - 1)).toBeLessThan(0.04);
      // What is left of the first noise, as a correlation.
      const old = mean((v, i) => v * noise[i]);
      if (call === 0) expect(old).toBeGreaterThan(0.97);
      else expect(Math.abs(old)).toBeLessThan(call < resample.times ? 0.03 : 0.1);
    }
    for (const x of [latents, start, data]) x.dispose();
  });

  it("leaves held frames on their line", async () => {
    const start = normal(shape, key(1), { device: cpu });
    const known = normal([1, 3, 10, 10, 50], key(2), { device: cpu });
    const held = holdFrames(start, known);
    const velocity = (x: Tensor) => affine(x, -1);
    const [noise, x0] = [await values(start), await values(known)];
    for await (const { time, latents } of eulerSteps({ velocity, start, steps: 3, held, resample })) {
      const found = await values(latents);
      for (const [i, value] of x0.entries()) expect(found[i]).toBeCloseTo(time * value + (1 - time) * noise[i], 4);
      if (time === 1) latents.dispose();
    }
    for (const x of [start, known, held.target, held.free]) x.dispose();
  });

  it("refuses numbers that make no sense", async () => {
    const start = normal([1, 1, 1, 1, 2], key(1), { device: cpu });
    const sample = (steps: number, times: number) =>
      eulerSample({ velocity: (x) => affine(x, -1), start, steps, resample: { times, key: key(1) } });
    await expect(sample(3, 0)).rejects.toThrow("resample must be an integer from 1, got 0");
    await expect(sample(20000, 4)).rejects.toThrow("20000 steps, each made 4 times");
    start.dispose();
  });
});
