import { describe, expect, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import { backward, Tensor } from "../../lib/tensor/index.js";
import { type Arr, draw, generate, relativeError } from "../support/arrays.js";
import { checkOp, expectError, f32, input, parameter, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

interface Variant {
  batch?: number;
  queries: number;
  keys?: number;
  width: number;
  heads: number;
  norm?: boolean;
  rotate?: boolean;
  mask?: boolean;
  bias?: boolean;
  scale?: number;
  gradient?: boolean;
}

/** cos and sin (L, D) of angles that two neighbouring channels share. */
function angles(length: number, width: number, f: (v: number) => number): Arr {
  return generate([length, width], (l, d) => Math.fround(f(l * 0.7 + 0.3 * (d >> 1))));
}

async function verify(v: Variant): Promise<void> {
  const { batch = 2, queries, keys = queries, width, heads, scale = (width / heads) ** -0.5 } = v;
  // Whole columns of keys are masked out, as padding tokens are; the first one never is.
  const mask = generate([batch, keys], (b, j) => (j > 0 && (b + j) % 3 === 0 ? -1e9 : j * 0.1));
  await checkOp({
    operands: {
      q: input(draw([batch, queries, width], 1)),
      k: input(draw([batch, keys, width], 2)),
      v: input(draw([batch, keys, width], 3)),
      qWeight: v.norm ? parameter(draw([width], 4, 0.5, 1.5)) : null,
      kWeight: v.norm ? parameter(draw([width], 5, 0.5, 1.5)) : null,
      cos: v.rotate ? f32(angles(queries, width, Math.cos)) : null,
      sin: v.rotate ? f32(angles(queries, width, Math.sin)) : null,
      mask: v.mask ? f32(mask) : null,
      bias: v.bias ? f32(draw([heads, queries, keys], 6)) : null,
    },
    run: ({ q, k, v: values, ...rest }) => ops.attention(q, k, values, { heads, eps: 1e-5, scale: v.scale, ...rest }),
    reference: ({ q, k, v: values, ...rest }) => {
      return reference.attention.attention(q, k, values, { heads, eps: 1e-5, scale, ...rest });
    },
    tolerance: { f32: 2e-5, bf16: 1e-2, gradientBf16: 2e-2 },
    gradient: v.bias ? false : v.gradient,
  });
}

// On the emulator and a busy machine a case takes minutes.
describe("attention", { timeout: 300_000 }, () => {
  for (const parts of [0, 1, 2, 3, 4, 5, 6, 7]) {
    const [norm, rotate, mask] = [(parts & 1) > 0, (parts & 2) > 0, (parts & 4) > 0];
    const names = [norm && "norm", rotate && "rotation", mask && "mask"].filter(Boolean).join(", ") || "nothing else";
    it(`with ${names}`, async () => {
      await verify({ queries: 5, width: 12, heads: 2, norm, rotate, mask });
    });
  }

  it("with heads of whole 16-byte chunks, a few and many tokens", async () => {
    await verify({ queries: 10, width: 16, heads: 2, norm: true, rotate: true, mask: true });
    await verify({ batch: 1, queries: 33, keys: 34, width: 8, heads: 1, norm: true, mask: true });
    for (const width of [40, 72]) {
      await verify({ batch: 1, queries: 3, width, heads: 1, norm: true, rotate: true, scale: 0.05 });
      await verify({ batch: 1, queries: 34, keys: 2, width, heads: 1, scale: 0.05 });
    }
  });

  it("from queries to another number of keys", async () => {
    await verify({ queries: 3, keys: 7, width: 8, heads: 2, norm: true, mask: true });
    await verify({ queries: 7, keys: 1, width: 8, heads: 4 });
    await verify({ queries: 1, keys: 5, width: 6, heads: 1 });
  });

  // Fewer and more keys than one segment of the backward pass, with and without the norms that bound the scores.
  it.each([
    [77, 5, true],
    [77, 5, false],
    [1100, 300, true],
  ])("to %i keys of which the first %i count, as to those alone", async (keys, words, norm) => {
    const [queries, width] = [20, 32];
    const [k, v] = [draw([1, keys, width], 2), draw([1, keys, width], 3)];
    const run = async (count: number) => {
      const first = (a: Arr) => Tensor.from(Float32Array.from(a.data.slice(0, count * width)), [1, count, width]);
      const [q, qWeight, kWeight] = [[1, queries, width], [width], [width]].map((shape, i) =>
        Tensor.from(Float32Array.from(draw(shape, 4 + i, 0.5, 1.5).data), shape),
      );
      const inputs = [q, first(k), first(v), qWeight, kWeight];
      for (const x of inputs) x.requiresGrad = true;
      const mask = Tensor.from(
        Float32Array.from({ length: count }, (_, j) => (j < words ? 0 : -1e4)),
        [1, count],
      );
      const y = ops.attention(q, inputs[1], inputs[2], { heads: 2, mask, ...(norm ? { qWeight, kWeight } : {}) });
      backward(ops.sum(ops.square(y)));
      const read = [y, ...inputs.slice(0, norm ? 5 : 3).map((x) => x.grad as Tensor)];
      return Promise.all(read.map(async (x) => [...(await x.read())]));
    };
    const [padded, alone] = [await run(keys), await run(words)];
    padded.forEach((values, i) => {
      expect(relativeError(values.slice(0, alone[i].length), alone[i])).toBeLessThan(1e-6);
      for (const rest of values.slice(alone[i].length)) expect(rest).toBe(0);
    });
  });

  it("of one token, one channel a head, odd head widths", async () => {
    await verify({ queries: 1, width: 4, heads: 4, norm: true, rotate: true });
    await verify({ queries: 3, width: 15, heads: 3, norm: true });
    await verify({ queries: 17, width: 10, heads: 2, rotate: true, mask: true, gradient: false });
    await verify({ queries: 2, width: 1, heads: 1 });
  });

  it("with a scale of its own", async () => {
    await verify({ queries: 4, width: 8, heads: 2, scale: 1.7 });
  });

  it("of an empty batch, of no queries", async () => {
    await verify({ batch: 0, queries: 3, width: 8, heads: 2, norm: true });
    await verify({ queries: 0, keys: 3, width: 8, heads: 2 });
  });

  it("with a bias for every head, query and key", async () => {
    for (const mask of [false, true]) {
      await verify({ queries: 5, width: 12, heads: 2, bias: true, mask, norm: mask, rotate: mask });
      await verify({ batch: 3, queries: 3, keys: 17, width: 8, heads: 4, bias: true, mask, scale: 1 });
      await verify({ queries: 100, keys: 131, width: 64, heads: 2, bias: true, mask });
      await verify({ batch: 1, queries: 1, keys: 1, width: 3, heads: 3, bias: true, mask });
      await verify({ batch: 0, queries: 2, width: 4, heads: 2, bias: true, mask });
    }
  });

  it("leaves keys out where the bias is -infinity", async () => {
    const [k, v] = [some([1, 2, 2]), Tensor.from([1, 2, 3, 4], [1, 2, 2])];
    const bias = Tensor.from([0, -Infinity, -Infinity, 0], [1, 2, 2]);
    const y = await ops.attention(k, k, v, { heads: 1, bias }).read();
    expect([...y]).toEqual([1, 2, 3, 4]);
  });

  it("keeps its accuracy over many keys and wide heads", async () => {
    await verify({ queries: 70, keys: 130, width: 128, heads: 2, norm: true, mask: true, gradient: false });
    await verify({ batch: 1, queries: 130, width: 64, heads: 1, norm: true, rotate: true, gradient: false });
  });

  it("is stable for large scores", async () => {
    const q = Tensor.from([200, 0, 0, 200], [1, 2, 2]);
    const v = Tensor.from([1, 2, 3, 4], [1, 2, 2]);
    const y = await ops.attention(q, q, v, { heads: 1, scale: 1 }).read();
    expect([...y]).toEqual([1, 2, 3, 4]);
  });

  it("rejects what does not fit", () => {
    const q = () => some([2, 3, 8]);
    const attend = (options: Partial<ops.AttentionOptions>) => ops.attention(q(), q(), q(), { heads: 2, ...options });
    expectError("shape_mismatch", /\[attention\] expects q \(B,Lq,D\).*\[2,3,8\], \[2,4,8\], \[2,3,8\]/, () => {
      ops.attention(q(), some([2, 4, 8]), some([2, 3, 8]), { heads: 2 });
    });
    expectError("shape_mismatch", /\[attention\] expects q/, () =>
      ops.attention(some([3, 8]), some([3, 8]), some([3, 8]), { heads: 2 }),
    );
    expectError("dtype_mismatch", /\[attention\] q, k, v are f32, bf16, f32/, () =>
      ops.attention(q(), some([2, 3, 8], "bf16"), q(), { heads: 2 }),
    );
    expectError("shape_mismatch", /\[attention\] width 8 does not divide into 3 heads/, () => attend({ heads: 3 }));
    expectError("shape_mismatch", /\[attention\] width 8 does not divide into 0 heads/, () => attend({ heads: 0 }));
    expectError("shape_mismatch", /\[attention\] norm weights expect \[8\] both/, () => attend({ qWeight: some([8]) }));
    expectError("shape_mismatch", /\[attention\] rotation tables expect \[3,8\]/, () =>
      attend({ cos: some([3, 4]), sin: some([3, 4]) }),
    );
    expectError("shape_mismatch", /\[attention\] rotation tables expect \[3,8\]/, () => attend({ cos: some([3, 8]) }));
    expectError("shape_mismatch", /\[attention\] mask expects \[2,3\], got \[2,4\]/, () =>
      attend({ mask: some([2, 4]) }),
    );
    expectError("shape_mismatch", /\[attention\] bias expects \[2,3,3\], got \[3,3\]/, () =>
      attend({ bias: some([3, 3]) }),
    );
    expectError("dtype_mismatch", /\[attention\] bias must be f32, got bf16/, () =>
      attend({ bias: some([2, 3, 3], "bf16") }),
    );
    expectError("unavailable", /\[attention\] scores with a bias have no gradient/, () => {
      const x = q();
      x.requiresGrad = true;
      ops.attention(x, q(), q(), { heads: 2, bias: some([2, 3, 3]) });
    });
    expectError("unavailable", /\[attention\] scores with a bias have no gradient/, () => {
      const bias = some([2, 3, 3]);
      bias.requiresGrad = true;
      attend({ bias });
    });
    expectError("dtype_mismatch", /\[attention\] mask must be f32, got bf16/, () =>
      attend({ mask: some([2, 3], "bf16") }),
    );
  });
});

describe("rope", () => {
  it("rotates neighbouring channels", async () => {
    for (const [batch, length, width] of [
      [2, 3, 6],
      [1, 1, 2],
      [0, 2, 4],
      [1, 5, 34],
    ]) {
      await checkOp({
        operands: {
          x: input(draw([batch, length, width], 1)),
          cos: f32(angles(length, width, Math.cos)),
          sin: f32(angles(length, width, Math.sin)),
        },
        run: ({ x, cos, sin }) => ops.rope(x, cos, sin),
        reference: ({ x, cos, sin }) => reference.attention.rope(x, cos, sin),
      });
    }
  });

  it("has the plain formula's gradient where the two channels' angles differ", async () => {
    await checkOp({
      operands: { x: input(draw([2, 3, 4], 1)), cos: f32(draw([3, 4], 2)), sin: f32(draw([3, 4], 3)) },
      run: ({ x, cos, sin }) => ops.rope(x, cos, sin),
      reference: ({ x, cos, sin }) => reference.attention.rope(x, cos, sin),
    });
  });

  it("rejects tables that do not fit", () => {
    expectError("shape_mismatch", /\[rope\] tables \[3,4\], \[3,2\] do not fit input \[2,3,4\]/, () =>
      ops.rope(some([2, 3, 4]), some([3, 4]), some([3, 2])),
    );
    expectError("shape_mismatch", /\[rope\]/, () => ops.rope(some([2, 3, 3]), some([3, 3]), some([3, 3])));
    expectError("dtype_mismatch", /\[rope\] sin must be f32/, () =>
      ops.rope(some([2, 3, 4]), some([3, 4]), some([3, 4], "bf16")),
    );
  });
});
