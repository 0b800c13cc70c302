import { describe, expect, it } from "vitest";
import * as native from "../../lib/native.js";
import * as ops from "../../lib/ops/index.js";
import { Tensor } from "../../lib/tensor/index.js";
import { draw, relativeError } from "../support/arrays.js";
import { fromArr, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

describe("globalNorm", () => {
  it("is the norm over all tensors", async () => {
    for (const shapes of [[[3, 5], [1], [17]], [[5000], [0], [4097]], [[1]]]) {
      const values = shapes.map((shape, i) => draw(shape, i + 1));
      const norm = await ops.globalNorm(values.map((v) => fromArr(v))).item();
      const expected = Math.sqrt(values.flatMap((v) => [...v.data]).reduce((s, v) => s + v * v, 0));
      expect(Math.abs(norm / expected - 1)).toBeLessThan(1e-6);
    }
  });

  it("reads bf16, is zero for nothing and tells of what is not finite", async () => {
    expect(await ops.globalNorm([Tensor.from([3, 4], [2], { dtype: "bf16" })]).item()).toBe(5);
    expect(await ops.globalNorm([]).item()).toBe(0);
    expect(await ops.globalNorm([some([0])]).item()).toBe(0);
    expect(await ops.globalNorm([some([4]), Tensor.from([1, Number.NaN], [2])]).item()).toBeNaN();
    expect(await ops.globalNorm([Tensor.from([Number.POSITIVE_INFINITY], [1])]).item()).toBe(Number.POSITIVE_INFINITY);
  });
});

describe("adamUpdate and emaUpdate", () => {
  const shapes = [[3, 5], [1], [4100], [0]];
  const options = { lr: 0.01, betas: [0.8, 0.95] as [number, number], eps: 1e-6, weightDecay: 0.1 };

  for (const decoupled of [false, true]) {
    for (const maxNorm of [0, 0.5, 1e6]) {
      it(`${decoupled ? "AdamW" : "Adam"}, ${maxNorm ? `clipped to ${maxNorm}` : "not clipped"}`, async () => {
        const start = shapes.map((shape, i) => draw(shape, i + 1));
        const params = start.map((v) => fromArr(v));
        const [m, v] = [0, 1].map(() => start.map((p) => ops.zeros(p.shape)));
        const states = start.map((p) => ({ param: p.data.slice(), m: p.data.map(() => 0), v: p.data.map(() => 0) }));
        for (let step = 1; step <= 5; step++) {
          const gradients = shapes.map((shape, i) => draw(shape, 100 * step + i, -1, 1));
          const grads = gradients.map((g) => fromArr(g));
          ops.adamUpdate(
            { params, grads, m, v },
            { ...options, decoupled, step, norm: ops.globalNorm(grads), maxNorm },
          );
          reference.optimizer.adamStep(
            states,
            gradients.map((g) => g.data),
            step,
            { ...options, decoupled, maxNorm },
          );
        }
        for (const [i, state] of states.entries()) {
          expect(relativeError(await params[i].read(), state.param)).toBeLessThan(1e-5);
          expect(relativeError(await m[i].read(), state.m)).toBeLessThan(1e-5);
          expect(relativeError(await v[i].read(), state.v)).toBeLessThan(1e-5);
        }
      });
    }
  }

  it("updates long lists, with tensors that start anywhere in memory", async () => {
    const start = Array.from({ length: 150 }, (_, i) => draw([1 + (i % 7)], i));
    const params = start.map(({ data }, i) => {
      const whole = Tensor.from([...new Array(i % 3).fill(0), ...data], [(i % 3) + data.length]);
      return ops.sliceFirst(whole, i % 3, data.length);
    });
    const [m, v] = [0, 1].map(() => start.map((p) => ops.zeros(p.shape)));
    const grads = start.map((p) => ops.full(p.shape, 0.5));
    const states = start.map((p) => ({ param: p.data.slice(), m: p.data.map(() => 0), v: p.data.map(() => 0) }));
    const norm = ops.globalNorm(grads);
    const count = start.reduce((sum, p) => sum + p.data.length, 0);
    expect(Math.abs((await norm.item()) / (0.5 * Math.sqrt(count)) - 1)).toBeLessThan(1e-6);
    ops.adamUpdate({ params, grads, m, v }, { ...options, decoupled: true, step: 1, norm, maxNorm: 1 });
    const gradients = start.map((p) => p.data.map(() => 0.5));
    reference.optimizer.adamStep(states, gradients, 1, { ...options, decoupled: true, maxNorm: 1 });
    for (const [i, state] of states.entries()) {
      expect(relativeError(await params[i].read(), state.param)).toBeLessThan(1e-5);
    }
  });

  it("what is kept beside a parameter follows it", async () => {
    const x = fromArr(draw([3, 64], 1), "bf16");
    const weight = fromArr(draw([5, 64], 2));
    native.markParameter(weight.handle);
    const follows = async () => {
      const fresh = Tensor.from(await weight.read(), weight.shape);
      expect([...(await ops.linear(x, weight).read())]).toEqual([...(await ops.linear(x, fresh).read())]);
    };
    await follows();
    const state = {
      params: [weight],
      grads: [fromArr(draw([5, 64], 3))],
      m: [ops.zeros([5, 64])],
      v: [ops.zeros([5, 64])],
    };
    ops.adamUpdate(state, { ...options, decoupled: true, step: 1 });
    await follows();
    ops.emaUpdate([weight], [fromArr(draw([5, 64], 4))], 0.5);
    await follows();
    // An update that is left out since the norm is not finite, when the values were written just before.
    weight.write([...draw([5, 64], 5).data]);
    const written = await weight.read();
    ops.adamUpdate(state, { ...options, decoupled: true, step: 2, norm: Tensor.from([Number.NaN], [1]) });
    expect([...(await weight.read())]).toEqual([...written]);
    await follows();
  });

  it("moves averages", async () => {
    const [averages, values] = [1, 2].map((seed) => shapes.map((shape, i) => draw(shape, 10 * seed + i)));
    const tensors = averages.map((a) => fromArr(a));
    ops.emaUpdate(
      tensors,
      values.map((v) => fromArr(v)),
      0.9,
    );
    for (const [i, a] of averages.entries()) {
      const expected = a.data.map((x, j) => 0.9 * x + 0.1 * values[i].data[j]);
      expect(relativeError(await tensors[i].read(), expected)).toBeLessThan(1e-6);
    }
  });
});
