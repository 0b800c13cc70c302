/** Gradients of random graphs: sums must not be added into memory that another path still reads. */
import fc from "fast-check";
import { expect, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import { backward, scope, type Tensor } from "../../lib/tensor/index.js";
import { type Arr, arr, draw, map, relativeError, zip } from "../support/arrays.js";
import { fromArr, liveBytes, numericalGradient } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

interface Step {
  op: keyof typeof operations;
  a: number;
  b: number;
}

/** Each on the library's tensors and on float64 arrays; `w` is a leaf (3, 3). */
const operations = {
  add: {
    run: (a: Tensor, b: Tensor, _: Tensor) => ops.add(a, b),
    reference: (a: Arr, b: Arr, _: Arr) => zip(a, b, (x, y) => x + y),
  },
  mix: {
    run: (a: Tensor, b: Tensor, _: Tensor) => ops.mixRows(a, b, null, null),
    reference: (a: Arr, b: Arr, _: Arr) => zip(a, b, (x, y) => x + y),
  },
  sub: {
    run: (a: Tensor, b: Tensor, _: Tensor) => ops.sub(a, b),
    reference: (a: Arr, b: Arr, _: Arr) => zip(a, b, (x, y) => x - y),
  },
  mul: {
    run: (a: Tensor, b: Tensor, _: Tensor) => ops.mul(ops.affine(a, 0.5), ops.sigmoid(b)),
    reference: (a: Arr, b: Arr, _: Arr) => zip(a, b, (x, y) => (0.5 * x) / (1 + Math.exp(-y))),
  },
  view: {
    run: (a: Tensor, _b: Tensor, _: Tensor) => ops.reshape(ops.reshape(a, [3, 2]), [2, 3]),
    reference: (a: Arr, _b: Arr, _: Arr) => a,
  },
  silu: {
    run: (a: Tensor, _b: Tensor, _: Tensor) => ops.silu(a),
    reference: (a: Arr, _b: Arr, _: Arr) => map(a, reference.elementwise.activations.silu),
  },
  linear: {
    run: (a: Tensor, _b: Tensor, w: Tensor) => ops.linear(a, w),
    reference: (a: Arr, _b: Arr, w: Arr) => reference.linear.linear(a, w, null),
  },
  residual: {
    run: (a: Tensor, b: Tensor, w: Tensor) => ops.add(ops.linear(a, w, null, "silu"), b),
    reference: (a: Arr, b: Arr, w: Arr) =>
      zip(map(reference.linear.linear(a, w, null), reference.elementwise.activations.silu), b, (x, y) => x + y),
  },
};

const step = fc.record({
  op: fc.constantFrom(...(Object.keys(operations) as (keyof typeof operations)[])),
  a: fc.nat(100),
  b: fc.nat(100),
});

/** Runs the steps on a growing list of values, each time on two of the latest, and adds up the last three. */
function evaluate<T>(
  steps: readonly Step[],
  leaves: T[],
  apply: (s: Step, a: T, b: T) => T,
  add: (a: T, b: T) => T,
): T {
  const values = [...leaves];
  for (const s of steps) {
    const pick = (n: number) => values[values.length - 1 - (n % Math.min(values.length, 5))];
    values.push(apply(s, pick(s.a), pick(s.b)));
  }
  return values.slice(-3).reduce(add);
}

it("agree with central differences, pass after pass", async () => {
  const check = fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 14 }), async (steps) => {
    const start = await liveBytes();
    const arrays = [draw([2, 3], 1), draw([2, 3], 2), draw([3, 3], 3, -0.7, 0.7)];
    const weights = draw([2, 3], 4);
    const tensors = arrays.map((a) => fromArr(a));
    for (const t of tensors) t.requiresGrad = true;
    const forward = () => {
      const [x, y, w] = arrays;
      return evaluate(
        steps,
        [x, y],
        ({ op }, a, b) => operations[op].reference(a, b, w),
        (a, b) => zip(a, b, (u, v) => u + v),
      );
    };
    // What cancels exactly is noise of the differences; the comparison is then an absolute one.
    const clean = (v: number) => (Math.abs(v) < 1e-8 ? 0 : v);
    const expected = arrays.map((a) => map(numericalGradient(forward, weights, a), clean));
    const seed = fromArr(weights);
    for (const pass of [1, 2]) {
      scope(() => {
        const [x, y, w] = tensors;
        backward(
          evaluate(steps, [x, y], ({ op }, a, b) => operations[op].run(a, b, w), ops.add),
          seed,
        );
      });
      for (const [i, t] of tensors.entries()) {
        const got = t.grad ? await t.grad.read() : arr(arrays[i].shape).data;
        expect(relativeError(got, map(expected[i], (v) => pass * v).data)).toBeLessThan(1e-4);
      }
    }
    expect([...(await seed.read())]).toEqual([...weights.data]);
    for (const t of [...tensors, seed]) t.dispose();
    expect(await liveBytes()).toBe(start);
  });
  await fc.assert(check, { seed: 5, numRuns: 1500 });
});
