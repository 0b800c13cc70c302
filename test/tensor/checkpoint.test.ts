import { beforeEach, describe, expect, it } from "vitest";
import { Initializer, type Parameter } from "../../lib/nn/index.js";
import { add, addRows, affine, conv3d, linear, mul, normAct, silu, square, sum } from "../../lib/ops/index.js";
import { backward, checkpoint, device, gradients, isRecording, noGrad, scope, Tensor } from "../../lib/tensor/index.js";
import { expectError, liveBytes } from "../support/gradcheck.js";

let start = 0;
beforeEach(async () => {
  start = await liveBytes();
});

function wave(shape: number[], phase = 0): Tensor {
  const size = shape.reduce((n, d) => n * d, 1);
  return Tensor.from(
    Float32Array.from({ length: size }, (_, i) => Math.sin(i + phase)),
    shape,
  );
}

function leaf(values: number[], shape = [values.length]): Tensor {
  const t = Tensor.from(values, shape);
  t.requiresGrad = true;
  return t;
}

const values = async (t: Tensor | null | undefined) => [...((await t?.read()) ?? [])];

/** Residual blocks with a shared context, as the models have them; each one checkpointed or not. */
class Stack {
  readonly blocks: { norm: Parameter; conv: Parameter; q: Parameter; k: Parameter; v: Parameter }[];

  constructor(
    readonly channels: number,
    depth: number,
  ) {
    const init = new Initializer(device(), 4);
    const square = [channels, channels];
    this.blocks = Array.from({ length: depth }, () => ({
      norm: init.constant([channels], 1),
      conv: init.normal([channels, 3, 3, 3, channels], 0.1),
      q: init.normal(square, 0.3),
      k: init.normal(square, 0.3),
      v: init.normal(square, 0.3),
    }));
  }

  get parameters(): Parameter[] {
    return this.blocks.flatMap((block) => Object.values(block));
  }

  run(x: Tensor, context: Tensor, checkpointed: boolean): Tensor {
    let h = x;
    for (const { norm, conv, q, k, v } of this.blocks) {
      const body = (h: Tensor, context: Tensor) =>
        scope(() => {
          const n = normAct(h, { kind: "pixel_norm", weight: norm, activation: "silu" });
          const y = conv3d(n, conv, null, { padTime: [2, 0], padSpace: [1, 1], replicate: true }, h);
          // The context is read twice, the stream several times.
          const row = mul(linear(context, k), linear(context, v));
          return add(addRows(linear(y, q, null, "silu"), row), h);
        });
      h = checkpointed ? checkpoint(body, [h, context], [norm, conv, q, k, v]) : body(h, context);
    }
    return h;
  }

  dispose(): void {
    for (const p of this.parameters) p.dispose();
  }
}

describe("checkpoint", () => {
  it.each([true, false])("gives the same bits, over two accumulated passes (input tracked: %s)", async (tracked) => {
    const stack = new Stack(8, 3);
    const x = wave([1, 3, 6, 6, 8]);
    const projection = wave([8, 8], 1);
    const seed = wave([1, 3, 6, 6, 8], 2);
    const context = wave([1, 8], 3);
    for (const t of [x, projection]) t.requiresGrad = tracked;
    const leaves = [...stack.parameters, ...(tracked ? [x, projection] : [])];
    const results = [];
    for (const checkpointed of [false, true]) {
      for (let pass = 0; pass < 2; pass++) {
        scope(() => backward(stack.run(silu(x), linear(context, projection), checkpointed), seed));
      }
      results.push(await Promise.all(leaves.map((p) => values(p.grad))));
      for (const p of leaves) {
        p.grad?.dispose();
        p.grad = null;
      }
    }
    expect(results[1].every((grad) => grad.length > 0)).toBe(true);
    expect(results[1]).toEqual(results[0]);
    for (const t of [x, projection, seed, context]) t.dispose();
    stack.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("needs less memory: of each block its input alone, and one block's inside at a time", async () => {
    const stack = new Stack(8, 6);
    const x = wave([1, 4, 16, 16, 8]);
    const context = wave([1, 8]);
    const measure = async (checkpointed: boolean) => {
      const before = await liveBytes();
      device().resetPeak();
      const loss = scope(() => sum(stack.run(x, context, checkpointed)));
      const forward = (await liveBytes()) - before;
      backward(loss);
      loss.dispose();
      await device().synchronize();
      const peak = device().memory().peak - before;
      for (const p of stack.parameters) {
        p.grad?.dispose();
        p.grad = null;
      }
      return { forward, peak };
    };
    const plain = await measure(false);
    const checkpointed = await measure(true);
    expect(checkpointed.forward).toBeLessThan(plain.forward / 3);
    expect(checkpointed.peak).toBeLessThan(plain.peak / 2);
    for (const t of [x, context]) t.dispose();
    stack.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("may be nested, and holds nulls", async () => {
    const [x, w] = [leaf([1, -2]), leaf([3, 0.5])];
    const inner = (a: Tensor, b: Tensor | null) => (b ? mul(square(a), b) : square(a));
    scope(() => {
      const outer = (a: Tensor) =>
        add(
          checkpoint(inner, [a, null]),
          checkpoint((c) => inner(c, w), [a], [w]),
        );
      backward(sum(checkpoint(outer, [x], [w])));
    });
    expect(await values(x.grad)).toEqual([2 + 6, -4 - 2]);
    expect(await values(w.grad)).toEqual([1, 4]);
    for (const t of [x, w]) t.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("passes on what its body returns untouched, or does not use", async () => {
    const [x, y] = [leaf([1, 2]), leaf([3, 4])];
    scope(() => {
      const same = checkpoint((a) => a, [x]);
      expect(same).not.toBe(x);
      backward(sum(square(checkpoint((a, _b) => affine(a, 2), [same, y]))));
    });
    expect(await values(x.grad)).toEqual([8, 16]);
    expect(y.grad).toBeNull();
    scope(() => expect(checkpoint((a) => square(a), [Tensor.from([2], [1])]).tracked).toBe(false));
    noGrad(() => scope(() => expect(checkpoint((a) => square(a), [x]).tracked).toBe(false)));
    for (const t of [x, y]) t.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("works with gradients() time and again, which reaches no .grad inside", async () => {
    const [x, w] = [leaf([1, 2]), leaf([3, 4])];
    const loss = scope(() => sum(checkpoint((a) => mul(square(a), w), [affine(x, 1)], [w])));
    for (let i = 0; i < 2; i++) {
      const [dx] = gradients(loss, [x]);
      expect(await values(dx)).toEqual([6, 16]);
      dx.dispose();
    }
    expect([x.grad, w.grad]).toEqual([null, null]);
    backward(loss);
    expect(await values(w.grad)).toEqual([1, 4]);
    for (const t of [loss, x, w]) t.dispose();
    expect(await liveBytes()).toBe(start);
  });

  it("names a tensor that its body used without being given it", async () => {
    const [x, w] = [leaf([1, 2]), leaf([3, 4])];
    scope(() => {
      const hidden = square(w);
      for (const [message, secret] of [
        [/\[checkpoint\] the body reads Tensor\(f32 \[2\] on \S+\), which wants a gradient/, w],
        [/\[checkpoint\] the body reads the result of square/, hidden],
      ] as const) {
        expectError("invalid_argument", message, () => checkpoint((a) => mul(a, secret), [x]));
        expectError("invalid_argument", message, () => checkpoint((_x) => secret, [x]));
      }
    });
    expect(isRecording()).toBe(true);
    for (const t of [x, w]) t.dispose();
    expect(await liveBytes()).toBe(start);
  });
});
