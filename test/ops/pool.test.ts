import { describe, expect, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import { backward, Tensor } from "../../lib/tensor/index.js";
import { draw } from "../support/arrays.js";
import { checkOp, expectError, input, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

async function verify(shape: number[], gradient = true): Promise<void> {
  await checkOp({
    operands: { x: input(draw(shape, 1)) },
    run: ({ x }) => ops.maxPool2d(x),
    reference: ({ x }) => reference.pool.maxPool2d(x),
    tolerance: { f32: 0, bf16: 0 },
    gradient,
    // In bf16 neighbours are often equal, and then the reference has no derivative.
    dtypes: gradient ? ["f32"] : ["f32", "bf16"],
  });
}

describe("maxPool2d", () => {
  it("takes the maximum of windows; an odd row and column are left out", async () => {
    for (const shape of [
      [2, 3, 4, 6, 5],
      [1, 1, 2, 2, 1],
      [2, 1, 5, 3, 3],
      [1, 2, 3, 4, 17],
      [1, 1, 2, 5, 1],
    ]) {
      await verify(shape);
      await verify(shape, false);
    }
  });

  it("takes many and wide pixels", async () => {
    await verify([2, 3, 33, 40, 64], false);
    await verify([1, 1, 3, 4, 2500], false);
  });

  it("takes nothing", async () => {
    for (const shape of [
      [0, 2, 4, 4, 3],
      [2, 0, 4, 4, 3],
      [1, 2, 4, 4, 0],
      [0, 1, 1, 1, 3],
      [2, 1, 0, 4, 3],
    ]) {
      await verify(shape);
    }
  });

  it("gives the gradient to the first maximum, zero to the other pixels", async () => {
    const rows = [
      [1, 1, 0, 2, 9],
      [1, 1, 2, 2, 9],
      [-3, -1, 5, 4, 9],
      [-1, -1, 5, 5, 9],
      [9, 9, 9, 9, 9],
    ];
    const expected = [
      [10, 0, 0, 20, 0],
      [0, 0, 0, 0, 0],
      [0, 30, 40, 0, 0],
      [0, 0, 0, 0, 0],
      [0, 0, 0, 0, 0],
    ];
    for (const dtype of ["f32", "bf16"] as const) {
      const x = Tensor.from(rows.flat(), [1, 1, 5, 5, 1], { dtype });
      x.requiresGrad = true;
      backward(ops.maxPool2d(x), Tensor.from([10, 20, 30, 40], [1, 1, 2, 2, 1], { dtype }));
      expect([...(await x.grad!.read())]).toEqual(expected.flat());
    }
  });

  it("hands NaN through", async () => {
    const x = Tensor.from([1, Number.NaN, 3, 2], [1, 1, 2, 2, 1]);
    x.requiresGrad = true;
    const y = ops.maxPool2d(x);
    expect([...(await y.read())]).toEqual([Number.NaN]);
    backward(y, Tensor.from([1], [1, 1, 1, 1, 1]));
    expect([...(await x.grad!.read())]).toEqual([0, 1, 0, 0]);
  });

  it("rejects what does not fit", () => {
    expectError(
      "shape_mismatch",
      /\[max_pool2d\] expects \(B,F,H,W,C\) with at least 2×2 pixels, got \[1,1,1,4,3\]/,
      () => ops.maxPool2d(some([1, 1, 1, 4, 3])),
    );
    expectError("shape_mismatch", /\[max_pool2d\].*\[1,4,4,3\]/, () => ops.maxPool2d(some([1, 4, 4, 3])));
    expectError("dtype_mismatch", /\[max_pool2d\] .*i32/, () => ops.maxPool2d(some([1, 1, 4, 4, 3], "i32")));
  });
});
