import { describe, expect, it } from "vitest";
import { Initializer, type Parameter } from "../../lib/nn/index.js";
import { mul, sum } from "../../lib/ops/index.js";
import { Adam, Ema, scheduleFactor } from "../../lib/optim/index.js";
import { backward, device, scope } from "../../lib/tensor/index.js";
import { type Arr, draw, relativeError } from "../support/arrays.js";
import { expectError, fromArr, liveBytes } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

const shapes = [[3, 5], [7], [1]];

function parameters(): { parameters: Parameter[]; values: Arr[] } {
  const init = new Initializer(device(), 1);
  const values = shapes.map((shape, i) => draw(shape, i + 1));
  const made = shapes.map((shape) => init.constant(shape, 0));
  made.forEach((p, i) => {
    p.write(Float32Array.from(values[i].data));
  });
  return { parameters: made, values };
}

/** Leaves these gradients on the parameters, through backward. */
function setGradients(made: readonly Parameter[], grads: readonly Arr[]): void {
  scope(() => {
    for (const [i, p] of made.entries()) backward(sum(mul(p, fromArr(grads[i]))));
  });
}

describe("Adam", () => {
  for (const decoupled of [false, true]) {
    it(`${decoupled ? "AdamW" : "Adam"} with clipping and a warm-up is the float64 loop`, async () => {
      const { parameters: made, values } = parameters();
      const options = { lr: 0.02, betas: [0.9, 0.99] as [number, number], eps: 1e-8, weightDecay: 0.05, decoupled };
      const adam = new Adam(made, { ...options, maxGradNorm: 1.5 });
      const states = values.map((v) => ({ param: v.data.slice(), m: v.data.map(() => 0), v: v.data.map(() => 0) }));
      for (let k = 0; k < 8; k++) {
        const lr = options.lr * scheduleFactor({ kind: "constant", warmup: 4 }, k);
        const grads = shapes.map((shape, i) => draw(shape, 50 + 10 * k + i, k % 2 ? -0.1 : -2, k % 2 ? 0.1 : 2));
        setGradients(made, grads);
        const norm = adam.step(lr);
        const expected = reference.optimizer.adamStep(
          states,
          grads.map((g) => g.data),
          k + 1,
          { ...options, lr, maxNorm: 1.5 },
        );
        expect(Math.abs((await norm.item()) / expected - 1)).toBeLessThan(1e-6);
        norm.dispose();
        expect(made.every((p) => p.grad === null)).toBe(true);
      }
      expect(adam.steps).toBe(8);
      for (const [i, state] of states.entries()) {
        expect(relativeError(await made[i].read(), state.param)).toBeLessThan(1e-5);
        expect(relativeError(await adam.m[i].read(), state.m)).toBeLessThan(1e-5);
        expect(relativeError(await adam.v[i].read(), state.v)).toBeLessThan(1e-5);
      }
    });
  }

  it("leaves everything as it was when the norm is not finite", async () => {
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const { parameters: made, values } = parameters();
      const adam = new Adam(made, { lr: 0.1, weightDecay: 0.1, decoupled: true, maxGradNorm: 1 });
      const grads = values.map((v) => ({ shape: v.shape, data: v.data.slice() }));
      grads[1].data[2] = bad;
      setGradients(made, grads);
      const norm = await adam.step().item();
      expect(Number.isFinite(norm)).toBe(false);
      for (const [i, v] of values.entries()) {
        expect([...(await made[i].read())]).toEqual([...v.data]);
        expect(new Set(await adam.m[i].read())).toEqual(new Set([0]));
        expect(new Set(await adam.v[i].read())).toEqual(new Set([0]));
        expect(made[i].grad).toBeNull();
      }
    }
  });

  it("moves only parameters that have a gradient", async () => {
    const { parameters: made, values } = parameters();
    const adam = new Adam(made, { lr: 0.1, weightDecay: 0.5 });
    setGradients(made.slice(1, 2), [draw([7], 9)]);
    adam.step().dispose();
    expect([...(await made[0].read())]).toEqual([...values[0].data]);
    expect([...(await made[1].read())]).not.toEqual([...values[1].data]);
    const norm = adam.step();
    expect(await norm.item()).toBe(0);
  });

  it("is freed", async () => {
    const start = await liveBytes();
    const { parameters: made } = parameters();
    const adam = new Adam(made, { lr: 0.1 });
    expect(device().memory().groups.optimizer).toBeGreaterThan(0);
    adam.dispose();
    for (const p of made) p.dispose();
    expect(await liveBytes()).toBe(start);
    expectError("invalid_argument", /\[adam\] no parameters to optimize/, () => new Adam([], { lr: 1 }));
  });
});

describe("Ema", () => {
  it("follows the parameters, faster at first", async () => {
    const { parameters: made, values } = parameters();
    const ema = new Ema(made, 0.99);
    const expected = values.map((v) => v.data.slice());
    for (let k = 0; k < 5; k++) {
      const moved = shapes.map((shape, i) => draw(shape, 70 + 10 * k + i));
      moved.forEach((v, i) => {
        made[i].write(Float32Array.from(v.data));
      });
      ema.update(k);
      const decay = Math.min(0.99, (1 + k) / (10 + k));
      for (const [i, e] of expected.entries())
        expected[i] = e.map((v, j) => decay * v + (1 - decay) * moved[i].data[j]);
    }
    for (const [i, e] of expected.entries()) expect(relativeError(await ema.averages[i].read(), e)).toBeLessThan(1e-6);
  });

  it("lends its averages to the parameters, also when the body fails", async () => {
    const { parameters: made, values } = parameters();
    const ema = new Ema(made, 0.9);
    made[1].write(counting(7));
    const during = await ema.swapped(() => made[1].read());
    expect([...during]).toEqual([...values[1].data]);
    const failing = () => {
      throw new Error("inside");
    };
    await expect(ema.swapped(failing)).rejects.toThrow("inside");
    await expect(ema.swapped(() => Promise.reject(new Error("later")))).rejects.toThrow("later");
    expect([...(await made[1].read())]).toEqual([...counting(7)]);
    expect([...(await ema.averages[1].read())]).toEqual([...values[1].data]);
  });
});

describe("scheduleFactor", () => {
  it("warms up linearly from zero", () => {
    const values = [0, 1, 2, 4, 5, 100].map((k) => scheduleFactor({ kind: "constant", warmup: 4 }, k));
    expect(values).toEqual([0, 0.25, 0.5, 1, 1, 1]);
    expect(scheduleFactor({ kind: "constant" }, 0)).toBe(1);
  });

  it("falls along a cosine to its final fraction", () => {
    const at = (k: number) => scheduleFactor({ kind: "cosine", warmup: 10, total: 110, finalFraction: 0.1 }, k);
    expect([0, 5, 10].map(at)).toEqual([0, 0.5, 1]);
    expect(at(60)).toBeCloseTo(0.55, 12);
    expect(at(35)).toBeCloseTo(0.1 + 0.45 * (1 + Math.SQRT1_2), 12);
    expect(at(110)).toBeCloseTo(0.1, 12);
    expect(at(1000)).toBeCloseTo(0.1, 12);
  });

  it("rejects a cosine shorter than its warm-up", () => {
    expectError("config", /a cosine schedule needs more steps \(5\) than its warm-up \(10\)/, () => {
      scheduleFactor({ kind: "cosine", warmup: 10, total: 5 }, 0);
    });
  });
});

const counting = (n: number) => Float32Array.from({ length: n }, (_, i) => i + 1);
