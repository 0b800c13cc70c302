import { describe, expect, it } from "vitest";
import { eulerSample, eulerSteps, guided, joinSamples, modelTime, remainingNoise } from "../../lib/diffusion/index.js";
import { affine, axpby, full, normal, sliceFirst } from "../../lib/ops/index.js";
import { device, noGrad, scope, Tensor } from "../../lib/tensor/index.js";

const cpu = device("cpu");
const from = (values: number[], shape: number[]) => Tensor.from(values, shape, { device: cpu });
const floats = async (tensor: Tensor) => Array.from(await tensor.read());
const shape = [2, 1, 2, 1, 3];
const start = normal(shape, { seed: 1, step: 0, purpose: 0 }, { device: cpu });
const data = normal(shape, { seed: 1, step: 0, purpose: 1 }, { device: cpu });
/** The velocity of a model that knows the data: the same at all times. */
const toData = () => axpby(1, data, -1, start);

function expectClose(actual: readonly number[], expected: readonly number[], digits = 5): void {
  expect(actual).toHaveLength(expected.length);
  for (const [i, value] of expected.entries()) expect(actual[i]).toBeCloseTo(value, digits);
}

describe("eulerSteps", () => {
  it.each([[1], [2], [7], [10], [30], [333]])(
    "arrives at the data along a straight line in %i steps",
    async (steps) => {
      const { latents, noise } = await eulerSample({ velocity: toData, start, steps });
      expectClose(await floats(latents), await floats(data), 4);
      expect(noise).toBe(0);
    },
  );

  it("tells the model the reference's times", async () => {
    const told: number[] = [];
    const reached: number[] = [];
    for await (const step of eulerSteps({ velocity: toData, start, steps: 4, initialTimestep: 1 })) {
      told.push(step.modelTime);
      reached.push(step.time);
      expect(step.steps).toBe(3);
    }
    expectClose(told, [0.001, 0.25075, 0.5005], 12);
    expect(reached).toEqual([0.25, 0.5, 0.75]);
    expect(modelTime(9, 10)).toBeCloseTo(0.9 * 0.999 + 0.001, 12);
  });

  it("gives a tensor of these times to the model, one a sample", async () => {
    const seen: Tensor[] = [];
    const velocity = (x: Tensor, t: Tensor) => {
      seen.push(from([], [0]));
      expect(t.shape).toEqual([2]);
      return axpby(0, x, 0, x);
    };
    await eulerSample({ velocity, start, steps: 3 });
    expect(seen).toHaveLength(3);
  });

  it("follows dx/dt = -x with the error of Euler's method", async () => {
    const { latents } = await eulerSample({ velocity: (x) => affine(x, -1), start, steps: 20 });
    const factor = (1 - 1 / 20) ** 20;
    expectClose(
      await floats(latents),
      (await floats(start)).map((v) => v * factor),
      5,
    );
  });

  it("leaves noise of the amplitude it reports", async () => {
    const { latents, noise } = await eulerSample({ velocity: toData, start, steps: 10, initialTimestep: 2 });
    expect(noise).toBeCloseTo(0.25, 12);
    const [z, n] = [await floats(data), await floats(start)];
    expectClose(
      await floats(latents),
      z.map((v, i) => v + noise * n[i]),
    );
    expect(remainingNoise(0.999)).toBeCloseTo(0.001001, 6);
  });

  it("works under a guidance without changing what each branch sees", async () => {
    const batches: number[] = [];
    const velocity = (x: Tensor) => {
      batches.push(x.shape[0]);
      return affine(x, 0, 1);
    };
    const { latents } = await eulerSample({ velocity, start, steps: 3, guidance: 4 });
    expectClose(
      await floats(latents),
      (await floats(start)).map((v) => v + 1),
    );
    expect(batches).toEqual([4, 4, 4]);
  });

  it("stops at a signal and frees its state", async () => {
    const live = cpu.memory().live;
    const controller = new AbortController();
    const velocity = (x: Tensor) => affine(x, -1);
    const onStep = (done: number) => done === 3 && controller.abort("enough");
    const run = eulerSample({ velocity, start, steps: 100, signal: controller.signal, onStep });
    await expect(run).rejects.toMatchObject({ code: "aborted", cause: "enough" });
    expect(cpu.memory().live).toBe(live);
  });

  it("frees its state when the loop is left, and when the model fails", async () => {
    const live = cpu.memory().live;
    for await (const { step } of eulerSteps({ velocity: (x) => affine(x, -1), start, steps: 10 }))
      if (step === 4) break;
    expect(cpu.memory().live).toBe(live);
    let calls = 0;
    const failing = (x: Tensor) => {
      if (++calls === 3) throw new Error("no more");
      return affine(x, -1);
    };
    await expect(eulerSample({ velocity: failing, start, steps: 10 })).rejects.toThrow("no more");
    expect(cpu.memory().live).toBe(live);
  });

  it("leaves only the result behind", async () => {
    const live = cpu.memory().live;
    for (const initialTimestep of [0, 1]) {
      const { latents } = await eulerSample({ velocity: (x) => affine(x, -1), start, steps: 5, initialTimestep });
      latents.dispose();
    }
    expect(cpu.memory().live).toBe(live);
  });

  it("reports each step and leaves the event loop free", async () => {
    let ticks = 0;
    const timer = setInterval(() => ticks++, 0);
    const heard: number[][] = [];
    const slow = (x: Tensor) => {
      let y = x;
      for (let i = 0; i < 200; i++) y = affine(y, 0.9);
      return y;
    };
    await eulerSample({ velocity: slow, start, steps: 40, syncEvery: 1, onStep: (...s) => heard.push(s) });
    clearInterval(timer);
    expect(heard).toEqual(Array.from({ length: 40 }, (_, i) => [i + 1, 40]));
    expect(ticks).toBeGreaterThan(0);
  });

  it.each([
    [{ steps: 0 }, "steps must be an integer from 1, got 0"],
    [{ steps: 2.5 }, "steps must be an integer from 1, got 2.5"],
    [{ steps: 4, initialTimestep: 4 }, "initialTimestep must be an integer from 0 to steps - 1 = 3, got 4"],
    [{ steps: 4, syncEvery: 0 }, "syncEvery must be an integer from 1, got 0"],
    [{ steps: 4, guidance: Number.NaN }, "[guidance] expects a finite number or null, got NaN"],
  ])("refuses %j", async (options, message) => {
    await expect(eulerSample({ velocity: toData, start, ...options })).rejects.toThrow(message);
  });
});

describe("guided", () => {
  const x = from([1, 2, 3, 4], [2, 2]);
  const t = full([2], 0.5, { device: cpu });
  /** Conditional samples move by 1, 2, …; unconditional ones by ten times that. */
  const model = (states: Tensor, times: Tensor) => {
    expect(times.shape[0]).toBe(states.shape[0]);
    return states.shape[0] === 2 ? from([1, 2, 3, 4], [2, 2]) : from([1, 2, 3, 4, 10, 20, 30, 40], [4, 2]);
  };

  it("is vu + g (vc - vu), prompts first", async () => {
    expect(await floats(noGrad(() => guided(model, 3)(x, t)))).toEqual([-17, -34, -51, -68]);
    expect(await floats(noGrad(() => guided(model, 0)(x, t)))).toEqual([10, 20, 30, 40]);
  });

  it("is one plain pass for null and 1", () => {
    expect(guided(model, null)).toBe(model);
    expect(guided(model, 1)).toBe(model);
  });

  it("doubles states and times", async () => {
    const seen: number[][] = [];
    const run = guided((states, times) => {
      expect(states.shape).toEqual([4, 2]);
      seen.push([times.size]);
      return states;
    }, 2);
    expect(await floats(noGrad(() => run(x, t)))).toEqual([1, 2, 3, 4]);
    expect(seen).toEqual([[4]]);
  });
});

describe("joinSamples", () => {
  it("puts samples behind one another", async () => {
    const [a, b] = [from([1, 2], [1, 2]), from([3, 4, 5, 6], [2, 2])];
    const joined = scope(() => joinSamples([a, b, sliceFirst(b, 1, 1)]));
    expect(joined.shape).toEqual([4, 2]);
    expect(await floats(joined)).toEqual([1, 2, 3, 4, 5, 6, 5, 6]);
  });

  it("refuses samples of different shapes", () => {
    expect(() => joinSamples([full([1, 2], 0, { device: cpu }), full([1, 3], 0, { device: cpu })])).toThrow(
      "samples differ",
    );
  });
});
