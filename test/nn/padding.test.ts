import { describe, expect, it } from "vitest";
import { CausalConv3d, Initializer, replicateEdges } from "../../lib/nn/index.js";
import { normal } from "../../lib/ops/index.js";
import { device, noGrad, scope } from "../../lib/tensor/index.js";
import { relativeError } from "../golden/support/check.js";
import { type Arr, arr, draw } from "../support/arrays.js";
import { checkOp, expectError, input, some } from "../support/gradcheck.js";

/** y[i] = x[clamp(i - front)] along one axis, index by index. */
function clamped(x: Arr, axis: number, front: number, back: number): Arr {
  const length = x.shape[axis];
  const inner = x.shape.slice(axis + 1).reduce((n, d) => n * d, 1);
  const outer = x.shape.slice(0, axis).reduce((n, d) => n * d, 1);
  const shape = x.shape.map((d, i) => (i === axis ? d + front + back : d));
  const values: number[] = [];
  for (let o = 0; o < outer; o++) {
    for (let i = -front; i < length + back; i++) {
      const from = (o * length + Math.min(Math.max(i, 0), length - 1)) * inner;
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
