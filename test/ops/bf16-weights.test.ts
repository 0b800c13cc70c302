/** Weights that are stored in bf16 give what the same values in f32 give. */
import { describe, expect, it } from "vitest";
import { Initializer } from "../../lib/nn/index.js";
import * as ops from "../../lib/ops/index.js";
import { backward, device, scope, type Tensor } from "../../lib/tensor/index.js";
import { type Arr, draw, map, relativeError, roundTo } from "../support/arrays.js";
import { fromArr, liveBytes } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

type Triple = [number, number, number];
type Dtype = "f32" | "bf16";
type Run = (x: Tensor, w: Tensor, bias: Tensor) => Tensor;

/** Of a product with these weights: its values and the gradients of x, the weights and the bias. */
async function outcome(run: Run, x: Arr, w: Arr, bias: Arr, dtype: Dtype, weights: Dtype): Promise<number[][]> {
  const init = new Initializer(device(), 1, { weights, values: false });
  const [input, weight, b] = [fromArr(x, dtype), init.weight(w.shape, 0), fromArr(bias)];
  weight.write(Float32Array.from(w.data));
  expect(weight.dtype).toBe(weights);
  for (const leaf of [input, weight, b]) leaf.requiresGrad = true;
  const y = run(input, weight, b);
  scope(() => backward(y, fromArr(draw(y.shape, 9), dtype)));
  const found = [y, input.grad, weight.grad, b.grad].map(async (t) => [...(await (t as Tensor).read())]);
  const values = await Promise.all(found);
  for (const tensor of [y, input, weight, b]) tensor.dispose();
  return values;
}

/**
 * f32 inputs give the same to the bit. With bf16 inputs a backend may read the two in another order, so that a sum is
 * now and then rounded to the other side; the weights' own gradient is rounded to their dtype.
 */
async function verify(
  run: Run,
  plain: (x: Arr, w: Arr, bias: Arr) => Arr,
  shapes: [number[], number[]],
): Promise<void> {
  const before = await liveBytes();
  const [shape, weightShape] = shapes;
  const bound = 2 / Math.sqrt(weightShape.slice(1).reduce((a, b) => a * b));
  const w = roundTo("bf16", draw(weightShape, 2, -bound, bound));
  const bias = draw([weightShape[0]], 3);
  for (const dtype of ["f32", "bf16"] as const) {
    const x = roundTo(dtype, draw(shape, 1));
    const stored = await outcome(run, x, w, bias, dtype, "bf16");
    const widened = await outcome(run, x, w, bias, dtype, "f32");
    const what = `${dtype} [${shape}] by [${weightShape}]`;
    expect(relativeError(stored[0], plain(x, w, bias).data), what).toBeLessThan(dtype === "f32" ? 1e-5 : 1e-2);
    for (const [i, name] of ["y", "dx", "dw", "dbias"].entries()) {
      const expected =
        name === "dw"
          ? [...roundTo("bf16", { shape: weightShape, data: Float64Array.from(widened[i]) }).data]
          : widened[i];
      if (dtype === "f32") expect(stored[i], `${name}, ${what}`).toEqual(expected);
      else expect(relativeError(stored[i], expected), `${name}, ${what}`).toBeLessThan(3e-3);
    }
  }
  expect(await liveBytes()).toBe(before);
}

describe("weights in bf16", () => {
  it("make linear layers", async () => {
    for (const [rows, inputs, outputs] of [
      [1, 64, 96],
      [3, 5, 4],
      [40, 63, 17],
      [17, 24, 63],
      [63, 16, 16],
      [160, 96, 70],
      [130, 257, 129],
    ]) {
      await verify(
        (x, w, bias) => ops.linear(x, w, bias, "gelu_tanh"),
        (x, w, bias) => map(reference.linear.linear(x, w, bias), reference.elementwise.activations.gelu_tanh),
        [
          [rows, inputs],
          [outputs, inputs],
        ],
      );
    }
  });

  it("make convolutions", async () => {
    const causal = { padTime: [2, 0], padSpace: [1, 1], replicate: true } as const;
    const symmetric = { ...causal, padTime: [1, 1] } as const;
    for (const [x, outputs, kernel, options] of [
      [[1, 3, 5, 4, 3], 6, [3, 3, 3], causal],
      [[2, 3, 7, 8, 32], 40, [3, 3, 3], causal],
      [[1, 3, 4, 4, 32], 32, [3, 3, 3], symmetric],
      [[1, 1, 3, 3, 144], 144, [3, 3, 3], causal],
      [[1, 4, 8, 8, 17], 33, [3, 3, 3], { ...causal, stride: [2, 2, 2] }],
      [[1, 2, 6, 6, 16], 16, [1, 3, 3], { padSpace: [1, 1], stride: [1, 2, 2] }],
      [[1, 2, 8, 9, 48], 40, [1, 1, 1], {}],
    ] as [number[], number, Triple, ops.Conv3dOptions][]) {
      const settings = { stride: [1, 1, 1], padTime: [0, 0], padSpace: [0, 0], replicate: false, ...options };
      await verify(
        (x, w, bias) => ops.conv3d(x, w, bias, options),
        (x, w, bias) => reference.linear.conv3d(x, w, bias, null, settings as never),
        [x, [outputs, ...kernel, x[4]]],
      );
    }
  });
});
