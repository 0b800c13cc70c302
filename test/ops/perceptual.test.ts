import { describe, expect, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import { backward, Tensor } from "../../lib/tensor/index.js";
import { arr, draw } from "../support/arrays.js";
import { checkOp, expectError, f32, fromArr, input, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

async function verify(shape: number[], gradient = true): Promise<void> {
  await checkOp({
    operands: {
      a: input(draw(shape, 1)),
      b: input(draw(shape, 2)),
      w: f32(draw([shape[shape.length - 1]], 3, 0, 1)),
    },
    run: ({ a, b, w }) => ops.lpipsDistance(a, b, w),
    reference: ({ a, b, w }) => reference.perceptual.lpipsDistance(a, b, w),
    gradient,
  });
}

describe("lpipsDistance", () => {
  it("fits its reference", async () => {
    for (const shape of [
      [2, 3, 2, 2, 5],
      [1, 1, 1, 1, 17],
      [3, 1, 4, 1, 2],
      [2, 7],
    ]) {
      await verify(shape);
    }
  });

  it("keeps its accuracy over many and wide pixels", async () => {
    await verify([2, 1, 40, 41, 64], false);
    await verify([1, 2, 3, 1, 1500], false);
    await verify([3, 100, 300, 1], false);
  });

  it("of an empty batch", async () => {
    await verify([0, 1, 4, 4, 3]);
  });

  it("is zero between equal features, with no gradient; pixels of zeros count as they are", async () => {
    const a = fromArr(draw([2, 1, 3, 2, 5], 1));
    const w = fromArr(draw([5], 2, 0, 1));
    a.requiresGrad = true;
    const y = ops.lpipsDistance(a, a, w);
    backward(y, Tensor.from([1, 1], [2]));
    for (const v of await y.read()) expect(v).toBeLessThan(1e-14);
    for (const v of await a.grad!.read()) expect(Math.abs(v)).toBeLessThan(1e-6);

    const zero = fromArr(arr([1, 2, 3]));
    const other = Tensor.from([3, 0, 4, 0, 0, 0], [1, 2, 3]);
    const weights = Tensor.from([1, 2, 0.5], [3]);
    zero.requiresGrad = other.requiresGrad = true;
    const distance = ops.lpipsDistance(zero, other, weights);
    backward(distance, Tensor.from([1], [1]));
    expect(await distance.item()).toBeCloseTo((0.36 + 0.5 * 0.64) / 2, 6);
    expect((await zero.grad!.read()).every(Number.isFinite)).toBe(true);
    expect((await other.grad!.read()).every(Number.isFinite)).toBe(true);
  });

  it("rejects what does not fit", () => {
    expectError("shape_mismatch", /\[lpips_distance\] expects two.*\[1,2,3\] and \[1,2,4\]/, () =>
      ops.lpipsDistance(some([1, 2, 3]), some([1, 2, 4]), some([3])),
    );
    expectError("shape_mismatch", /\[lpips_distance\] expects two/, () =>
      ops.lpipsDistance(some([3]), some([3]), some([3])),
    );
    expectError("shape_mismatch", /\[lpips_distance\] weights expect \[3\], got \[4\]/, () =>
      ops.lpipsDistance(some([1, 2, 3]), some([1, 2, 3]), some([4])),
    );
    expectError("shape_mismatch", /\[lpips_distance\] the mean needs at least one pixel.*\[1,0,3\]/, () =>
      ops.lpipsDistance(some([1, 0, 3]), some([1, 0, 3]), some([3])),
    );
    expectError("dtype_mismatch", /\[lpips_distance\] weights must be f32, got bf16/, () =>
      ops.lpipsDistance(some([1, 2, 3]), some([1, 2, 3]), some([3], "bf16")),
    );
    expectError("dtype_mismatch", /\[lpips_distance\] .*i32/, () =>
      ops.lpipsDistance(some([1, 2, 3], "i32"), some([1, 2, 3], "i32"), some([3])),
    );
  });
});
