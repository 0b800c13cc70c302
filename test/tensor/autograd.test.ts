import { beforeEach, describe, expect, it } from "vitest";
import { Initializer } from "../../lib/nn/index.js";
import {
  add,
  affine,
  conv3d,
  detach,
  full,
  linear,
  mean,
  mul,
  normAct,
  reshape,
  silu,
  square,
  sub,
  sum,
} from "../../lib/ops/index.js";
import { Adam } from "../../lib/optim/index.js";
import { backward, device, isRecording, noGrad, scope, Tensor } from "../../lib/tensor/index.js";
import { expectError, leaf, liveBytes } from "../support/gradcheck.js";

let start = 0;
beforeEach(async () => {
  start = await liveBytes();
});

const grad = async (t: Tensor) => [...((await t.grad?.read()) ?? [])];

describe("backward", () => {
  it("adds up over shared subexpressions", async () => {
    const x = leaf([1, 2, 3]);
    scope(() => {
      const y = square(x);
      backward(sum(add(mul(y, y), y))); // x⁴ + x²
    });
    expect(await grad(x)).toEqual([6, 36, 114]);
    x.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("adds up over a leaf that is used twice by one op", async () => {
    const x = leaf([1, -2]);
    scope(() => backward(sum(mul(x, x))));
    expect(await grad(x)).toEqual([2, -4]);
    scope(() => backward(sum(add(x, x))));
    expect(await grad(x)).toEqual([4, -2]);
    x.dispose();
  });

  it("accumulates over passes without aliasing another leaf's gradient", async () => {
    const [a, b] = [leaf([1, 2]), leaf([3, 4])];
    const seed = Tensor.from([1, 10], [2]);
    scope(() => backward(add(a, b), seed));
    scope(() => backward(sum(affine(a, 5))));
    expect(await grad(a)).toEqual([6, 15]);
    expect(await grad(b)).toEqual([1, 10]);
    scope(() => backward(sum(affine(b, 7))));
    expect(await grad(a)).toEqual([6, 15]);
    expect(await grad(b)).toEqual([8, 17]);
    expect([...(await seed.read())]).toEqual([1, 10]);
    for (const t of [a, b, seed]) t.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("does not alias through views or a root that is itself a leaf", async () => {
    const [a, seed] = [leaf([1, 2]), Tensor.from([3, 4], [2])];
    scope(() => backward(reshape(a, [2, 1]), seed));
    scope(() => backward(a, seed));
    expect(await grad(a)).toEqual([6, 8]);
    expect([...(await seed.read())]).toEqual([3, 4]);
    a.dispose();
    seed.dispose();
  });

  it("passes one gradient to several users without mixing them up", async () => {
    const [a, b, c] = [leaf([1]), leaf([2]), leaf([3])];
    scope(() => {
      const s = add(a, b);
      const t = add(s, c); // the same gradient reaches s and c, then a and b
      backward(sum(add(square(s), t)));
    });
    expect(await grad(a)).toEqual([7]);
    expect(await grad(b)).toEqual([7]);
    expect(await grad(c)).toEqual([1]);
    for (const t of [a, b, c]) t.dispose();
  });

  it("walks deep graphs", async () => {
    const x = leaf([1]);
    scope(() => {
      let y: Tensor = x;
      for (let i = 0; i < 3000; i++) y = scope(() => affine(y, 1, 1));
      backward(y);
    });
    expect(await grad(x)).toEqual([1]);
    x.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("reaches ops whose outputs were disposed before", async () => {
    const x = leaf([3]);
    const loss = scope(() => sum(square(affine(x, 2))));
    backward(loss);
    expect(await grad(x)).toEqual([24]);
    loss.dispose();
    x.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("runs a second loss on the rest of a graph only while that is there", async () => {
    const x = leaf([2]);
    const y = square(x);
    const [first, second] = [sum(y), sum(y)];
    backward(first);
    expectError("invalid_argument", /\[backward\] the graph behind \w+ was already freed/, () => backward(second));
    expect(await grad(x)).toEqual([4]);
    for (const t of [y, first, second, x]) t.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("may be called once", () => {
    const x = leaf([2]);
    const y = sum(square(x));
    backward(y);
    expectError("invalid_argument", /\[backward\] nothing behind Tensor\(f32 \[1\] on \S+\) requires a gradient/, () =>
      backward(y),
    );
    y.dispose();
    x.dispose();
  });

  it("says what is wrong with the root or its gradient", () => {
    scope(() => {
      expectError("invalid_argument", /\[backward\] nothing behind/, () => backward(full([1], 1)));
      const y = square(leaf([1, 2, 3]));
      expectError("shape_mismatch", /\[backward\] root has shape \[3\]: give a gradient/, () => backward(y));
      expectError("shape_mismatch", /\[backward\] gradient \[2\] does not fit root \[3\]/, () =>
        backward(y, full([2], 1)),
      );
    });
  });

  it("cleans up after an error in the middle", async () => {
    const x = leaf([1, 2]);
    const y = square(x);
    expectError("shape_mismatch", /a view may not reach past/, () => {
      const broken = scope(() => sum(mul(y, y)));
      const { gradFn } = broken as unknown as { gradFn: { run: unknown } };
      gradFn.run = () => {
        full([50], 1);
        throw Object.assign(new Error("a view may not reach past its tensor"), {
          name: "LtxError",
          code: "shape_mismatch",
        });
      };
      backward(broken);
    });
    y.dispose();
    x.dispose();
    expect(await liveBytes()).toBe(start);
    expect(isRecording()).toBe(true);
  });
});

describe("the tape", () => {
  it("records only what depends on a tracked leaf, and nothing under noGrad", () => {
    scope(() => {
      const x = leaf([1]);
      expect(square(full([1], 2)).tracked).toBe(false);
      expect(square(x).tracked).toBe(true);
      expect(noGrad(() => square(x)).tracked).toBe(false);
      expect(detach(square(x)).tracked).toBe(false);
      expect(() => noGrad(() => fail())).toThrow("stop");
      expect(isRecording()).toBe(true);
    });
  });

  it("gives gradients to the leaves that ask for them only", async () => {
    const [x, w] = [Tensor.from([1, 2], [1, 2]), leaf([3, 4], [1, 2])];
    scope(() => backward(linear(x, w)));
    expect(x.grad).toBeNull();
    expect(await grad(w)).toEqual([1, 2]);
    x.dispose();
    w.dispose();
  });

  it("keeps what backward needs although its handles are gone, and frees a graph that is dropped", async () => {
    const x = leaf([1, 2, 3, 4]);
    const atLeaf = await liveBytes();
    const y = scope(() => sum(silu(square(x))));
    expect(await liveBytes()).toBeGreaterThan(atLeaf + 64);
    y.dispose();
    expect(await liveBytes()).toBe(atLeaf);
    x.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("keeps a disposed leaf's values while a graph needs them", async () => {
    const [a, b] = [leaf([2]), leaf([3])];
    const y = mul(a, b);
    b.dispose();
    backward(y);
    expect(await grad(a)).toEqual([3]);
    y.dispose();
    a.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("frees a leaf's gradient with the leaf", async () => {
    const x = leaf([2, 3]);
    const value = (await liveBytes()) - start;
    scope(() => backward(sum(square(x))));
    expect(await liveBytes()).toBe(start + 2 * value);
    x.dispose();
    expect(await liveBytes()).toBe(start);
  });
});

describe("training steps", () => {
  it("hold the same memory after every one of 200", async () => {
    const init = new Initializer(device(), 1);
    const conv = init.normal([4, 3, 3, 3, 2], 0.1);
    const weight = init.constant([4], 1);
    const projection = init.normal([2, 4], 0.3);
    const parameters = [conv, weight, projection];
    const optimizer = new Adam(parameters, { lr: 1e-2, maxGradNorm: 1 });
    const x = Tensor.from(
      Float32Array.from({ length: 2 * 3 * 16 * 2 }, (_, i) => Math.sin(i)),
      [2, 3, 4, 4, 2],
    );
    const step = () =>
      scope(() => {
        const padding = { padTime: [2, 0], padSpace: [1, 1], replicate: true } as const;
        const h = normAct(conv3d(x, conv, null, padding), { kind: "pixel_norm", weight, activation: "silu" });
        const loss = mean(square(sub(linear(h, projection), x)));
        backward(loss);
        optimizer.step();
        return loss;
      });
    const losses: number[] = [];
    let flat = 0;
    for (let i = 0; i < 200; i++) {
      const loss = step();
      losses.push(await loss.item());
      loss.dispose();
      const live = await liveBytes();
      if (i === 0) flat = live;
      expect(live).toBe(flat);
    }
    expect(losses[199]).toBeLessThan(0.5 * losses[0]);
    for (const t of [x, ...parameters]) t.dispose();
    optimizer.dispose();
    expect(await liveBytes()).toBe(start);
  });
});

function fail(): never {
  throw new Error("stop");
}
