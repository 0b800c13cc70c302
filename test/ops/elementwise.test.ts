import { describe, expect, it } from "vitest";
import type { UnaryKind } from "../../lib/ops/index.js";
import * as ops from "../../lib/ops/index.js";
import { backward, scope, Tensor } from "../../lib/tensor/index.js";
import { arr, draw, map, reshaped, zip } from "../support/arrays.js";
import { checkOp, expectError, f32, fromArr, i32, input, parameter, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

const { activations } = reference.elementwise;
const shapes = [[5], [2, 3, 17], [1, 1], [0, 4], [3, 1, 1, 1, 1]];

describe("unary", () => {
  for (const [kind, f] of Object.entries(activations)) {
    it(kind, async () => {
      for (const [i, shape] of shapes.entries()) {
        const x = draw(shape, i + 1, kind === "sqrt" ? 0.1 : -3, 3);
        await checkOp({
          operands: { x: input(x) },
          run: ({ x }) => ops.unary(kind as UnaryKind, x),
          reference: ({ x }) => map(x, f),
        });
      }
    });
  }

  it("the named functions are those kinds", async () => {
    const { silu, gelu, sigmoid, exp, square, abs, relu, softplus } = ops;
    const named = { silu, gelu_tanh: gelu, sigmoid, exp, square, abs, relu, softplus };
    for (const [kind, run] of Object.entries(named)) {
      const operands = { x: input(draw([7, 3], 3)) };
      const f = activations[kind as keyof typeof named];
      await checkOp({ operands, run: ({ x }) => run(x), reference: ({ x }) => map(x, f), gradient: false });
    }
  });

  it("stays finite and exact far from zero", async () => {
    const x = [-1e4, -100, -20, 20, 100, 1e4];
    for (const kind of ["silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "softplus"] as const) {
      const y = ops.unary(kind, Tensor.from(x, [6]));
      const values = await y.read();
      for (const [i, v] of x.entries()) expect(values[i], `${kind}(${v})`).toBeCloseTo(activations[kind](v), 5);
    }
  });

  it("softplus keeps its relative accuracy where it tends to zero", async () => {
    const x = Array.from({ length: 2001 }, (_, i) => Math.fround((i - 1000) * 0.087));
    const y = await ops.softplus(Tensor.from(x, [x.length])).read();
    for (const [i, v] of x.entries()) expect(Math.abs(y[i] / activations.softplus(v) - 1)).toBeLessThan(4e-7);
    const limits = await ops.softplus(Tensor.from([-Infinity, Infinity, Number.NaN], [3])).read();
    expect([...limits]).toEqual([0, Infinity, Number.NaN]);
  });

  it("leaky ReLU scales what is negative by its slope", async () => {
    for (const [i, shape] of shapes.entries()) {
      for (const slope of [undefined, 0.01]) {
        await checkOp({
          operands: { x: input(draw(shape, i + 1)) },
          run: ({ x }) => ops.leakyRelu(x, slope),
          reference: ({ x }) => reference.elementwise.leakyRelu(x, slope ?? 0.2),
        });
      }
    }
  });

  it("reciprocal divides one by it", async () => {
    await checkOp({
      operands: { x: input(draw([7, 3], 8, 0.5, 2)) },
      run: ({ x }) => ops.reciprocal(x),
      reference: ({ x }) => map(x, (v) => 1 / v),
    });
  });

  it("clamp limits, and lets gradients through inside only", async () => {
    await checkOp({
      operands: { x: input(draw([4, 9], 6)) },
      run: ({ x }) => ops.clamp(x, -0.75, 1.25),
      reference: ({ x }) => reference.elementwise.clamp(x, -0.75, 1.25),
    });
  });

  it("works over many blocks", async () => {
    await checkOp({
      operands: { x: input(draw([70_001], 8)) },
      run: ({ x }) => ops.silu(x),
      reference: ({ x }) => map(x, activations.silu),
      gradient: false,
    });
  });
});

describe("affine and cast", () => {
  it("scales and shifts", async () => {
    for (const shape of shapes) {
      await checkOp({
        operands: { x: input(draw(shape, 2)) },
        run: ({ x }) => ops.affine(x, 1.5, -0.25),
        reference: ({ x }) => map(x, (v) => v * 1.5 - 0.25),
      });
    }
  });

  it("reads integers", async () => {
    const index = ops.affine(Tensor.from(Int32Array.of(-3, 0, 70_000), [3]), 2, 1, "f32");
    expect([...(await index.read())]).toEqual([-5, 1, 140_001]);
    const values = [0, 128, 255, 1, 2, 3, 4, 5, 6];
    for (const count of [3, 9]) {
      const bytes = ops.affine(Tensor.from(Uint8Array.from(values.slice(0, count)), [count]), 1 / 255, 0, "f32");
      const expected = values.slice(0, count).map((v) => Math.fround(v * Math.fround(1 / 255)));
      expect([...(await bytes.read())]).toEqual(expected);
    }
  });

  it("casts between f32 and bf16 and carries the gradient back in the input's dtype", async () => {
    const x = Tensor.from([1, 1.0039, -3.3, 1e30], [4]);
    x.requiresGrad = true;
    const y = ops.cast(x, "bf16");
    expect(y.dtype).toBe("bf16");
    expect(ops.cast(y, "bf16")).toBe(y);
    backward(ops.sum(y));
    expect(x.grad?.dtype).toBe("f32");
    expect([...((await x.grad?.read()) ?? [])]).toEqual([1, 1, 1, 1]);
  });
});

describe("axpby, add, sub", () => {
  it("adds multiples", async () => {
    for (const [i, shape] of shapes.entries()) {
      await checkOp({
        operands: { a: input(draw(shape, i + 10)), b: input(draw(shape, i + 20)) },
        run: ({ a, b }) => ops.axpby(0.5, a, -2, b),
        reference: ({ a, b }) => zip(a, b, (u, v) => 0.5 * u - 2 * v),
      });
    }
  });

  it("takes tensors that start anywhere in memory", async () => {
    const values = draw([40], 1);
    for (const dtype of ["f32", "bf16"] as const) {
      const whole = fromArr(values, dtype);
      const part = ops.sliceFirst(whole, 1, 37);
      const expected = (await whole.read()).slice(1, 38).map((v) => 2 * v);
      expect([...(await ops.add(part, part).read())]).toEqual([...expected]);
    }
  });

  it("adds and subtracts, in the dtype of the first operand", async () => {
    const operands = { a: input(draw([3, 5], 1)), b: parameter(draw([3, 5], 2)) };
    await checkOp({ operands, run: ({ a, b }) => ops.add(a, b), reference: ({ a, b }) => zip(a, b, (u, v) => u + v) });
    await checkOp({ operands, run: ({ a, b }) => ops.sub(a, b), reference: ({ a, b }) => zip(a, b, (u, v) => u - v) });
  });

  it("rejects operands of different size", () => {
    expectError("shape_mismatch", /\[add\] operands differ in shape: \[2,3\] and \[2,4\]/, () =>
      ops.add(some([2, 3]), some([2, 4])),
    );
  });
});

describe("mul", () => {
  it("multiplies elementwise", async () => {
    for (const [i, shape] of shapes.entries()) {
      await checkOp({
        operands: { a: input(draw(shape, i + 30)), b: input(draw(shape, i + 40)) },
        run: ({ a, b }) => ops.mul(a, b),
        reference: ({ a, b }) => zip(a, b, (u, v) => u * v),
      });
    }
  });

  it("broadcasts a single factor, whose gradient is a dot product", async () => {
    for (const factor of [input, parameter]) {
      await checkOp({
        operands: { a: input(draw([3, 7], 1)), b: factor(draw([1], 2)) },
        run: ({ a, b }) => ops.mul(a, b),
        reference: ({ a, b }) => zip(a, b, (u, v) => u * v),
      });
    }
  });

  it("rejects operands of different size", () => {
    expectError("shape_mismatch", /\[mul\] operands differ in shape/, () => ops.mul(some([2, 3]), some([3])));
  });
});

describe("addRows", () => {
  it("repeats a row over leading dimensions", async () => {
    for (const [i, [x, row]] of (
      [
        [[2, 3, 5], [5]],
        [
          [2, 3, 5],
          [3, 5],
        ],
        [[4, 1], [1]],
        [[1, 17], [17]],
        [[3, 24], [24]],
        [[0, 3], [3]],
      ] as const
    ).entries()) {
      for (const role of [input, parameter]) {
        await checkOp({
          operands: { x: input(draw([...x], i + 50)), row: role(draw([...row], i + 60)) },
          run: ({ x, row }) => ops.addRows(x, row),
          reference: ({ x, row }) => reference.elementwise.addRows(x, row),
        });
      }
    }
  });

  it("repeats rows longer than a block", async () => {
    await checkOp({
      operands: { x: input(draw([3, 1500], 1)), row: input(draw([1500], 2)) },
      run: ({ x, row }) => ops.addRows(x, row),
      reference: ({ x, row }) => reference.elementwise.addRows(x, row),
      gradient: false,
    });
  });

  it("rejects a row that does not divide", () => {
    expectError("shape_mismatch", /\[add_rows\] \[4\] does not repeat over \[2,3\]/, () =>
      ops.addRows(some([2, 3]), some([4])),
    );
  });
});

describe("mixRows", () => {
  it("weighs samples, with every operand that may be left out", async () => {
    for (const shape of [[3, 2, 5], [2, 16], [1, 1], [0, 4], [5]]) {
      for (const mask of [0, 1, 2, 3, 4, 5, 6, 7]) {
        const operands = {
          a: input(draw(shape, 1)),
          b: mask & 1 ? input(draw(shape, 2)) : null,
          sa: mask & 2 ? f32(draw([shape[0]], 3)) : null,
          sb: mask & 4 ? f32(draw([shape[0]], 4)) : null,
        };
        await checkOp({
          operands,
          run: ({ a, b, sa, sb }) => ops.mixRows(a, b, sa, sb),
          reference: ({ a, b, sa, sb }) => reference.elementwise.mixRows(a, b, sa, sb),
        });
      }
    }
  });

  it("rejects factors that do not fit", () => {
    expectError("shape_mismatch", /\[mix_rows\] a factor for each of the 2 samples/, () => {
      ops.mixRows(some([2, 3]), null, some([3]), null);
    });
    expectError("shape_mismatch", /\[mix_rows\] a factor.*got Tensor\(bf16/, () => {
      ops.mixRows(some([2, 3]), null, some([2], "bf16"), null);
    });
    expectError("shape_mismatch", /\[mix_rows\] operands differ/, () =>
      ops.mixRows(some([2, 3]), some([2, 4]), null, null),
    );
  });
});

describe("reshape, detach, full", () => {
  it("reshapes without a copy and carries gradients", async () => {
    await checkOp({
      operands: { x: input(draw([2, 3, 4], 1)) },
      run: ({ x }) => ops.reshape(x, [6, -1]),
      reference: ({ x }) => reshaped(x, [6, 4]),
    });
  });

  it("rejects shapes of another size", () => {
    expectError("shape_mismatch", /\[reshape\] 6 values of shape \[2,3\] do not fit \[4,-1\]/, () =>
      ops.reshape(some([2, 3]), [4, -1]),
    );
    expectError("shape_mismatch", /\[reshape\] 6 values/, () => ops.reshape(some([2, 3]), [7]));
    expectError("shape_mismatch", /\[reshape\]/, () => ops.reshape(some([2, 3]), [-1, -1]));
  });

  it("detach hides a tensor from the tape", () => {
    scope(() => {
      const x = some([2]);
      x.requiresGrad = true;
      expect(ops.silu(x).tracked).toBe(true);
      expect(ops.silu(ops.detach(x)).tracked).toBe(false);
    });
  });

  it("fills every dtype", async () => {
    for (const dtype of ["f32", "bf16", "i32", "u8"] as const) {
      expect([...(await ops.full([2, 2], 3, { dtype }).read())]).toEqual([3, 3, 3, 3]);
    }
    expect([...(await ops.zeros([3]).read())]).toEqual([0, 0, 0]);
    expect((await ops.full([0, 3], 1).read()).length).toBe(0);
  });
});

describe("dtypes", () => {
  it("arithmetic rejects integer tensors", () => {
    expectError("dtype_mismatch", /\[silu\] .*i32/, () => ops.silu(some([2], "i32")));
    expectError("dtype_mismatch", /\[add\] .*i32/, () => ops.add(some([2], "i32"), some([2], "i32")));
    expectError("dtype_mismatch", /\[mul\] .*i32/, () => ops.mul(some([2]), some([2], "i32")));
  });

  it("an i32 tensor reads back what was written", async () => {
    const values = arr([3], [1, -2, 2 ** 30]);
    expect([...(await Tensor.from(Int32Array.from(values.data), [3]).read())]).toEqual([1, -2, 2 ** 30]);
    expect(i32(values).role).toBe("i32");
  });
});
