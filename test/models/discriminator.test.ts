import { afterAll, describe, expect, it } from "vitest";
import { Discriminator, type DiscriminatorOptions } from "../../lib/models/discriminator.js";
import { type BatchNorm, Initializer } from "../../lib/nn/index.js";
import { reshape, uniform } from "../../lib/ops/index.js";
import { backward, device, noGrad, type Tensor } from "../../lib/tensor/index.js";
import { relativeError } from "../support/arrays.js";
import { expectError } from "../support/gradcheck.js";

const made: Discriminator[] = [];
function create(options: DiscriminatorOptions): Discriminator {
  const model = new Discriminator(options, new Initializer(device(), 3));
  made.push(model);
  return model;
}
const video = (...shape: number[]): Tensor => uniform(shape, { seed: 1, step: 0, purpose: 0 });
afterAll(() => made.forEach((model) => void model.dispose()));

describe("Discriminator", () => {
  it("has the reference's keys, shapes and 11.1 M parameters at the seed's size", async () => {
    const model = create({ inputChannels: 2, outputChannels: 2, use3d: true });
    const shapes = [...model.namedParameters()].map(([key, p]) => `${key} [${p.checkpointShape}]`);
    expect(shapes).toEqual([
      "main.0.weight [64,2,4,4,4]",
      "main.0.bias [64]",
      "main.2.weight [128,64,4,4,4]",
      "main.3.weight [128]",
      "main.3.bias [128]",
      "main.5.weight [256,128,4,4,4]",
      "main.6.weight [256]",
      "main.6.bias [256]",
      "main.8.weight [512,256,4,4,4]",
      "main.9.weight [512]",
      "main.9.bias [512]",
      "main.11.weight [2,512,4,4,4]",
      "main.11.bias [2]",
    ]);
    expect(model.parameterCount).toBe(11_085_634);
    const logits = noGrad(() => model.forward(video(1, 25, 64, 64, 2)));
    expect(logits.shape).toEqual([1, 1, 6, 6, 2]);
    logits.dispose();
  });

  it("stops widening at 8 times", () => {
    const model = create({ inputChannels: 1, layers: 5, width: 2 });
    const widths = [...model.namedParameters()].filter(([, p]) => p.dims === 5).map(([, p]) => p.shape[0]);
    expect(widths).toEqual([2, 4, 8, 16, 16, 16, 1]);
  });

  it("starts from N(0, 0.02²), batch norm from N(1, 0.02²)", async () => {
    const model = create({ inputChannels: 3, width: 32 });
    const moments = async (t: Tensor) => {
      const values = Float32Array.from(await t.read());
      const mean = values.reduce((a, b) => a + b, 0) / values.length;
      return [mean, Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length)];
    };
    const state = new Map(model.namedParameters());
    const [mean, std] = await moments(state.get("main.8.weight") as Tensor);
    expect(Math.abs(mean)).toBeLessThan(1e-3);
    expect(std).toBeCloseTo(0.02, 3);
    const [norm, spread] = await moments(state.get("main.9.weight") as Tensor);
    expect(Math.abs(norm - 1)).toBeLessThan(5e-3);
    expect(spread).toBeGreaterThan(0.016);
    expect(spread).toBeLessThan(0.024);
  });

  it("judges every frame by itself unless frames are convolved too", async () => {
    const model = create({ inputChannels: 1, layers: 1, width: 4 });
    const x = video(2, 3, 8, 6, 1);
    const together = model.forward(x);
    expect(together.shape).toEqual([2, 3, 2, 1, 1]);
    const apart = model.forward(reshape(x, [6, 1, 8, 6, 1]));
    expect(relativeError(await apart.read(), await together.read())).toBeLessThan(1e-6);
  });

  it("follows the batch in training and leaves its statistics alone in evaluation", async () => {
    const model = create({ inputChannels: 1, layers: 1, width: 4 });
    const norm = model.main[3] as BatchNorm;
    const x = video(2, 1, 8, 8, 1);
    model.forward(x);
    const seen = await norm.running_var.read();
    expect(seen).not.toEqual(new Float32Array(8).fill(1));
    expect(norm.num_batches_tracked.value).toBe(1);
    model.train(false).forward(x);
    expect(await norm.running_var.read()).toEqual(seen);
    expect(norm.num_batches_tracked.value).toBe(1);
  });

  it("computes in bf16 to f32 logits close to those of f32, with f32 gradients", async () => {
    const exact = create({ inputChannels: 2, layers: 2, width: 8, use3d: true });
    const rough = create({ inputChannels: 2, layers: 2, width: 8, use3d: true, computeDtype: "bf16" });
    const x = video(1, 12, 16, 16, 2);
    const [a, b] = [exact.forward(x), rough.forward(x)];
    expect(b.dtype).toBe("f32");
    expect(relativeError(await b.read(), await a.read())).toBeLessThan(0.05);
    backward(b, b);
    expect(rough.parameters().every((p) => p.grad?.dtype === "f32")).toBe(true);
    rough.zeroGrad();
  });

  it("refuses what it has no patch for", () => {
    const model = create({ inputChannels: 1, layers: 2, width: 4, use3d: true });
    for (const shape of [
      [1, 11, 16, 16, 1],
      [1, 12, 16, 16, 2],
      [12, 16, 16, 1],
    ]) {
      expectError("shape_mismatch", /expects \(B,F,H,W,1\) with F, H and W of 12 or more/, () =>
        model.forward(video(...shape)),
      );
    }
  });
});
