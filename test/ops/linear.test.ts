import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { LinearActivation } from "../../lib/ops/index.js";
import * as ops from "../../lib/ops/index.js";
import { scope, Tensor } from "../../lib/tensor/index.js";
import { type Arr, draw, map, relativeError } from "../support/arrays.js";
import { checkOp, expectError, fromArr, input, parameter, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

const { activations } = reference.elementwise;

async function verify(
  shape: number[],
  outputs: number,
  bias: boolean,
  kind: keyof typeof activations,
  gradient = true,
): Promise<void> {
  const inputs = shape[shape.length - 1];
  const bound = 2 / Math.sqrt(Math.max(1, inputs));
  await checkOp({
    operands: {
      x: input(draw(shape, 1)),
      w: parameter(draw([outputs, inputs], 2, -bound, bound)),
      bias: bias ? parameter(draw([outputs], 3)) : null,
    },
    run: ({ x, w, bias }) => ops.linear(x, w, bias, kind as LinearActivation),
    reference: ({ x, w, bias }): Arr => map(reference.linear.linear(x, w, bias), activations[kind]),
    tolerance: { gradientBf16: 1.5e-2 },
    gradient,
  });
}

describe("linear", () => {
  for (const kind of ["none", "silu", "gelu", "gelu_tanh", "sigmoid", "relu", "tanh", "square"] as const) {
    it(`with activation ${kind}`, async () => {
      for (const bias of [false, true]) await verify([2, 3, 5], 4, bias, kind);
    });
  }

  it("takes odd, single and empty extents", async () => {
    for (const [shape, outputs] of [
      [[1, 1], 1],
      [[17], 3],
      [[3, 17], 1],
      [[5, 1], 17],
      [[0, 5], 3],
      [[2, 0, 3], 4],
      [[33, 2], 2],
    ] as const) {
      for (const bias of [false, true]) await verify([...shape], outputs, bias, "silu");
    }
  });

  it("takes no outputs", async () => {
    await verify([3, 4], 0, true, "none");
  });

  it("keeps its accuracy in larger products", async () => {
    await verify([130, 257], 129, true, "gelu_tanh", false);
  });

  it("is as exact in f32 as its numbers allow, whatever it is made of and whatever their size", async () => {
    for (const scale of [1, 1e-12, 1e12]) {
      const [x, w] = [draw([160, 512], 1, -scale, scale), draw([96, 512], 2)];
      const y = ops.linear(Tensor.from(Float32Array.from(x.data), x.shape), fromArr(w));
      const expected = reference.linear.linear(x, w, null);
      expect(relativeError(await y.read(), expected.data)).toBeLessThan(8e-7);
      y.dispose();
    }
  });

  it("fits its reference for drawn shapes", async () => {
    const size = fc.integer({ min: 1, max: 9 });
    const check = fc.asyncProperty(size, size, size, fc.boolean(), async (rows, inputs, outputs, bias) => {
      await verify([rows, inputs], outputs, bias, "gelu_tanh");
    });
    await fc.assert(check, { seed: 3, numRuns: 10 });
  });

  it("rejects what does not fit", () => {
    expectError(
      "shape_mismatch",
      /\[linear\] weight \[4,6\] expects 6 input features, got 5 \(input shape \[2,5\]\)/,
      () => {
        ops.linear(some([2, 5]), some([4, 6]));
      },
    );
    expectError("shape_mismatch", /\[linear\] bias expects \[4\], got \[5\]/, () =>
      ops.linear(some([2, 5]), some([4, 5]), some([5])),
    );
    expectError("shape_mismatch", /\[linear\] weight \[4,5,1\]/, () => ops.linear(some([2, 5]), some([4, 5, 1])));
    expectError("shape_mismatch", /\[linear\] needs at least one input feature, got weight \[4,0\]/, () =>
      ops.linear(some([2, 0]), some([4, 0])),
    );
    expectError("dtype_mismatch", /\[linear\] bias must be f32/, () =>
      ops.linear(some([2, 5]), some([4, 5]), some([4], "bf16")),
    );
    expectError("dtype_mismatch", /\[linear\] expects f32 or bf16, got Tensor\(i32/, () =>
      ops.linear(some([2, 5]), some([4, 5], "i32")),
    );
    expectError("dtype_mismatch", /\[linear\] .*i32/, () => ops.linear(some([2, 5], "i32"), some([4, 5])));
  });
});

describe("several products of one input", () => {
  it("add up in its gradient", async () => {
    const roles = {
      x: input(draw([3, 5], 1)),
      q: parameter(draw([4, 5], 2)),
      k: parameter(draw([4, 5], 3)),
      v: parameter(draw([4, 5], 4)),
    };
    await checkOp({
      operands: roles,
      run: ({ x, q, k, v }) => {
        return scope(() => {
          const h = ops.affine(x, 2);
          return ops.add(ops.add(ops.linear(h, q), ops.linear(h, k, null, "silu")), ops.linear(h, v));
        });
      },
      reference: ({ x, q, k, v }) => {
        const h = map(x, (value) => 2 * value);
        const [a, b, c] = [q, k, v].map((w) => reference.linear.linear(h, w, null));
        return map(a, (value, i) => value + activations.silu(b.data[i]) + c.data[i]);
      },
      tolerance: { gradientBf16: 1.5e-2 },
    });
  });
});
