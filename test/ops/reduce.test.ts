import { describe, expect, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import type { Tensor } from "../../lib/tensor/index.js";
import { type Arr, arr, draw } from "../support/arrays.js";
import { checkOp, expectError, input, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

const { sumSamples } = reference.elementwise;
const shapes = [[5], [3, 2, 17], [1, 1, 1], [4, 1], [2, 3, 16]];
const value = (v: number) => v;

describe("sums and means", () => {
  const cases: Record<string, [run: (x: Tensor) => Tensor, expected: (x: Arr) => Arr]> = {
    sum: [ops.sum, (x) => sumSamples(x, 1, value)],
    mean: [ops.mean, (x) => sumSamples(x, 1, value, 1 / x.data.length)],
    sumSquares: [ops.sumSquares, (x) => sumSamples(x, 1, (v) => v * v)],
    sumSamples: [ops.sumSamples, (x) => sumSamples(x, x.shape[0], value)],
    meanSamples: [ops.meanSamples, (x) => sumSamples(x, x.shape[0], value, x.shape[0] / x.data.length)],
  };
  for (const [name, [run, expected]] of Object.entries(cases)) {
    it(name, async () => {
      for (const [i, shape] of shapes.entries()) {
        await checkOp({
          operands: { x: input(draw(shape, i + 1, -1, 2)) },
          run: ({ x }) => run(x),
          reference: ({ x }) => expected(x),
        });
      }
    });
  }

  it("of nothing are zero", async () => {
    expect([...(await ops.sum(some([0, 3])).read())]).toEqual([0]);
    expect([...(await ops.mean(some([0, 3])).read())]).toEqual([0]);
    expect([...(await ops.sumSamples(some([2, 0])).read())]).toEqual([0, 0]);
    expect((await ops.meanSamples(some([0, 3])).read()).length).toBe(0);
  });

  it("of many values keep f32 accuracy", async () => {
    await checkOp({
      operands: { x: input(draw([2, 300_001], 1, 0, 1)) },
      run: ({ x }) => ops.sumSamples(x),
      reference: ({ x }) => sumSamples(x, 2, value),
      tolerance: { f32: 1e-6, bf16: 1e-6 },
      gradient: false,
    });
  });

  it("return f32 from bf16", () => {
    expect(ops.mean(some([4], "bf16")).dtype).toBe("f32");
  });
});

describe("pairLoss", () => {
  for (const kind of ["l1", "l2"] as const) {
    it(kind, async () => {
      const f = kind === "l1" ? Math.abs : (d: number) => d * d;
      for (const [i, shape] of shapes.entries()) {
        await checkOp({
          operands: { a: input(draw(shape, i + 1)), b: input(draw(shape, i + 11)) },
          run: ({ a, b }) => ops.pairLoss(kind, a, b, 0.25),
          reference: ({ a, b }) => sumSamples(a, a.shape[0], (v, j) => f(v - b.data[j]), 0.25),
        });
      }
    });
  }

  it("has no gradient where the operands are equal", async () => {
    await checkOp({
      operands: { a: input(arr([2], [1, 2])), b: input(arr([2], [1, -2])) },
      run: ({ a, b }) => ops.pairLoss("l1", a, b),
      reference: ({ a, b }) => sumSamples(a, 2, (v, j) => Math.abs(v - b.data[j])),
    });
  });

  it("of an empty batch is empty", async () => {
    expect((await ops.pairLoss("l2", some([0, 3]), some([0, 3])).read()).length).toBe(0);
  });

  it("rejects operands of different size", () => {
    expectError("shape_mismatch", /\[pair_loss\] operands differ in shape: \[2,3\] and \[2,2\]/, () => {
      ops.pairLoss("l1", some([2, 3]), some([2, 2]));
    });
  });
});
