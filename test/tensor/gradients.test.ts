import { beforeEach, describe, expect, it } from "vitest";
import { add, affine, linear, mul, reshape, silu, square, sum } from "../../lib/ops/index.js";
import { backward, gradients, isRecording, noGrad, scope, Tensor } from "../../lib/tensor/index.js";
import { expectError, leaf, liveBytes } from "../support/gradcheck.js";

let start = 0;
beforeEach(async () => {
  start = await liveBytes();
});

const values = async (t: Tensor) => [...(await t.read())];

describe("gradients", () => {
  it("reach leaves and intermediate tensors, several at once, and leave .grad alone", async () => {
    const [x, w] = [leaf([1, 2, 3]), leaf([4, 5, 6])];
    const [dy, dx, dw] = scope(() => {
      const y = square(x);
      return gradients(sum(mul(add(y, y), w)), [y, x, w]);
    });
    expect(await values(dy)).toEqual([8, 10, 12]);
    expect(await values(dx)).toEqual([16, 40, 72]);
    expect(await values(dw)).toEqual([2, 8, 18]);
    expect([x.grad, w.grad]).toEqual([null, null]);
    for (const t of [dy, dx, dw, x, w]) t.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("keep a result apart from what flows on through it", async () => {
    const [a, b] = [leaf([1, 2]), leaf([3, 4])];
    const grads = scope(() => {
      const s = add(a, b); // hands its gradient on to a and b, where more is added
      const t = add(s, a);
      return gradients(sum(square(t)), [t, s, a, b]);
    });
    expect(await Promise.all(grads.map(values))).toEqual([
      [10, 16],
      [10, 16],
      [20, 32],
      [10, 16],
    ]);
    for (const t of [a, b, ...grads]) t.dispose();
  });

  it("leave a graph that backward can still walk, time and again", async () => {
    const [x, w] = [leaf([1, -2], [1, 2]), leaf([3, 4], [1, 2])];
    const loss = scope(() => sum(silu(linear(x, w))));
    const first = gradients(loss, [w, x]);
    const second = gradients(loss, [w, x]);
    backward(loss);
    for (const [i, p] of [w, x].entries()) {
      expect(await values(first[i])).toEqual(await values(p.grad as Tensor));
      expect(await values(second[i])).toEqual(await values(p.grad as Tensor));
    }
    for (const t of [loss, ...first, ...second, x, w]) t.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("do not disturb what was accumulated", async () => {
    const x = leaf([2]);
    scope(() => backward(square(x)));
    for (const g of scope(() => gradients(square(x), [x]))) g.dispose();
    expect(await values(x.grad as Tensor)).toEqual([4]);
    x.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("visit only the ops that lead to the inputs", async () => {
    const [x, w] = [leaf([1, 2]), leaf([3, 4])];
    scope(() => {
      const y = square(x);
      const { gradFn } = y as unknown as { gradFn: { run: unknown } };
      gradFn.run = () => {
        throw new Error("visited");
      };
      const loss = sum(mul(y, w));
      gradients(loss, [w, y]);
      expect(() => gradients(loss, [x])).toThrow("visited");
    });
    expect(isRecording()).toBe(true);
    for (const t of [x, w]) t.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("are zero for what the root does not depend on, and the seed for the root itself", async () => {
    const [x, other] = [leaf([1, 2]), leaf([5, 6, 7])];
    const seed = Tensor.from([3, -1], [2]);
    const y = affine(x, 2);
    const [dother, dy, dx] = gradients(y, [other, y, x], { gradient: seed });
    expect(await values(dother)).toEqual([0, 0, 0]);
    expect(await values(dy)).toEqual([3, -1]);
    expect(await values(dx)).toEqual([6, -2]);
    dy.write([0, 0]); // a copy, not the seed
    expect(await values(seed)).toEqual([3, -1]);
    const [ofLeaf] = gradients(x, [x], { gradient: seed });
    expect(await values(ofLeaf)).toEqual([3, -1]);
    for (const t of [dother, dy, dx, ofLeaf, y, x, other, seed]) t.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("have the inputs' shapes and dtypes", async () => {
    const x = Tensor.from([1, 2, 3, 4], [4], { dtype: "bf16" });
    x.requiresGrad = true;
    scope(() => {
      const y = reshape(x, [2, 2]);
      const [dy, dx] = gradients(sum(affine(y, 3, 0, "f32")), [y, x]);
      expect([dy.shape, dx.shape]).toEqual([[2, 2], [4]]);
      expect([dy.dtype, dx.dtype]).toEqual(["bf16", "bf16"]);
    });
    x.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("say what is wrong with the root or an input", () => {
    scope(() => {
      const x = leaf([1, 2]);
      const plain = Tensor.from([1], [1]);
      const y = square(x);
      const loss = sum(y);
      expectError("invalid_argument", /\[gradients\] nothing behind/, () => gradients(plain, [x]));
      expectError("shape_mismatch", /\[gradients\] root has shape \[2\]: give a gradient/, () => gradients(y, [x]));
      expectError("invalid_argument", /\[gradients\] Tensor\(f32 \[1\] on \S+\) has no gradient/, () =>
        gradients(loss, [plain]),
      );
      const inside = noGrad(() => square(x));
      expectError("invalid_argument", /\[gradients\] .* made without recording/, () => gradients(loss, [inside]));
      const other = sum(y);
      backward(other);
      expectError("invalid_argument", /\[gradients\] the graph behind square was already freed/, () =>
        gradients(loss, [x]),
      );
    });
  });
});
