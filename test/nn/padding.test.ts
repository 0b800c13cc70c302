import { describe, expect, it } from "vitest";
import { CausalConv3d, Initializer, reflectEdges, replicateEdges } from "../../lib/nn/index.js";
import { normal } from "../../lib/ops/index.js";
import { device, noGrad, scope } from "../../lib/tensor/index.js";
import { relativeError } from "../golden/support/check.js";
import { type Arr, arr, draw } from "../support/arrays.js";
import { checkOp, expectError, input, some } from "../support/gradcheck.js";

/** y[i] = x[at(i - front)] along one axis, index by index; the nearest position unless told otherwise. */
function clamped(
  x: Arr,
  axis: number,
  front: number,
  back: number,
  at = (i: number) => Math.min(Math.max(i, 0), x.shape[axis] - 1),
): Arr {
  const length = x.shape[axis];
  const inner = x.shape.slice(axis + 1).reduce((n, d) => n * d, 1);
  const outer = x.shape.slice(0, axis).reduce((n, d) => n * d, 1);
  const shape = x.shape.map((d, i) => (i === axis ? d + front + back : d));
  const values: number[] = [];
  for (let o = 0; o < outer; o++) {
    for (let i = -front; i < length + back; i++) {
      const from = (o * length + at(i)) * inner;
      values.push(...x.data.slice(from, from + inner));
    }
  }
  return arr(shape, values);
}

describe("replicateEdges", () => {
  it.each([
    [1, 1, 0],
    [2, 1, 1],
    [3, 2, 1],
    [0, 0, 2],
  ])("along dimension %i, %i in front and %i behind", async (axis, front, back) => {
    await checkOp({
      operands: { x: input(draw([2, 3, 2, 1, 3], 1)) },
      run: ({ x }) => replicateEdges(x, axis, front, back),
      reference: ({ x }) => clamped(x, axis, front, back),
    });
  });

  it("copies nothing where there is nothing to add, and needs something to repeat", () => {
    scope(() => {
      const x = some([1, 2, 2]);
      expect(replicateEdges(x, 1, 0, 0)).toBe(x);
      expectError("shape_mismatch", /\[padding\] dimension 1 of \[1,0,2\]/, () =>
        replicateEdges(some([1, 0, 2]), 1, 1, 0),
      );
    });
  });
});

/** y[i] = x at the mirror image of i - front. */
function reflected(x: Arr, axis: number, front: number, back: number): Arr {
  const length = x.shape[axis];
  return clamped(x, axis, front, back, (i) => (i < 0 ? -i : i >= length ? 2 * (length - 1) - i : i));
}

describe("reflectEdges", () => {
  it.each([
    [1, 1, 1],
    [2, 2, 0],
    [3, 0, 1],
  ])("along dimension %i, %i in front and %i behind", async (axis, front, back) => {
    await checkOp({
      operands: { x: input(draw([2, 3, 4, 3, 2], 1)) },
      run: ({ x }) => reflectEdges(x, axis, front, back),
      reference: ({ x }) => reflected(x, axis, front, back),
    });
  });

  it("needs more positions than it adds", () => {
    scope(() => {
      expectError("shape_mismatch", /reflecting 1 of dimension 1 of \[1,1,2\] needs 2 or more/, () =>
        reflectEdges(some([1, 1, 2]), 1, 1, 1),
      );
    });
  });
});

it("a causal convolution with replicated edges keeps a constant constant, to the border", async () => {
  const init = new Initializer(device(), 3);
  const replicate = new CausalConv3d(2, 3, init, { spatialPadding: "replicate" });
  const zeros = new CausalConv3d(2, 3, init);
  await zeros.loadStateDict(await replicate.stateDict());
  const row = normal([1, 1, 1, 1, 2], { seed: 1, step: 0, purpose: 0 });
  const values = noGrad(() =>
    scope(() => {
      let x = row;
      for (const axis of [1, 2, 3]) x = replicateEdges(x, axis, 0, 3);
      return [replicate.forward(x), zeros.forward(x)];
    }),
  );
  const [inside, plain] = await Promise.all(values.map((t) => t.read()));
  expect(values[0].shape).toEqual([1, 4, 4, 4, 3]);
  const centre = plain.slice((1 * 4 + 1) * 3, (1 * 4 + 1) * 3 + 3); // frame 0, row 1, column 1: no border in reach
  expect(
    relativeError(
      inside,
      Float32Array.from(inside, (_, i) => centre[i % 3]),
    ),
  ).toBeLessThan(1e-6);
  for (const t of [row, ...values]) t.dispose();
  for (const module of [replicate, zeros]) module.dispose();
});
