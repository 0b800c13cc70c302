import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Lpips, type LpipsOptions } from "../../lib/models/lpips.js";
import { affine, concatLast, uniform } from "../../lib/ops/index.js";
import { backward, device, noGrad, Tensor } from "../../lib/tensor/index.js";
import { relativeError } from "../support/arrays.js";
import { expectError } from "../support/gradcheck.js";
import { type State, tinyLpips, writeState } from "../support/lpips.js";
import { PtTensor, writePt } from "../support/pytorch.js";
import { testFolder } from "../support/tiny.js";

const folder = testFolder();
let own: State;
let torchvision: State;
let layers: State;
beforeAll(async () => {
  const tiny = await tinyLpips();
  ({ torchvision, layers } = tiny);
  own = new Map([...tiny.net, ...layers]);
});

const made: Lpips[] = [];
afterAll(() => made.forEach((model) => void model.dispose()));
function create(state: State, options?: LpipsOptions): Lpips {
  const model = new Lpips(state, options);
  made.push(model);
  return model;
}

const video = (purpose: number, channels = 1) => uniform([2, 3, 16, 20, channels], { seed: 4, step: 0, purpose });
const read = async (model: Lpips, a: Tensor, b: Tensor) => [...(await noGrad(() => model.forward(a, b)).read())];

async function write(name: string, state: State): Promise<string> {
  await writeState(join(folder, name), state);
  return join(folder, name);
}

describe("Lpips", () => {
  it("is nothing between a video and itself, the same both ways, and above nothing else", async () => {
    const model = create(own);
    const [a, b] = [video(0), video(1)];
    expect(Math.max(...(await read(model, a, a)))).toBeLessThan(1e-12);
    const forth = await read(model, a, b);
    expect(Math.min(...forth)).toBeGreaterThan(1e-3);
    expect(relativeError(await read(model, b, a), forth)).toBeLessThan(1e-6);
  });

  it("sees gray as three equal colours", async () => {
    const model = create(own);
    const colour = (x: Tensor) => concatLast(concatLast(x, x), x);
    const [a, b] = [video(0), video(1)];
    const gray = await read(model, a, b);
    expect(relativeError(await read(model, colour(a), colour(b)), gray)).toBeLessThan(1e-5);
  });

  it("brings pixels to [-1, 1] unless told to take them as they are", async () => {
    const [a, b] = [video(0, 3), video(1, 3)];
    const signed = await read(create(own, { range: "unit" }), affine(a, 2, -1), affine(b, 2, -1));
    const mapped = await read(create(own), a, b);
    expect(relativeError(mapped, signed)).toBeLessThan(1e-5);
    expect(relativeError(await read(create(own, { range: "unit" }), a, b), mapped)).toBeGreaterThan(0.01);
  });

  it("takes scaling from the file where it is there", async () => {
    const scaled = new Map(own);
    scaled.set("scaling_layer.shift", { shape: [1, 3, 1, 1], data: Float32Array.of(0, 0, 0) });
    scaled.set("scaling_layer.scale", { shape: [1, 3, 1, 1], data: Float32Array.of(0.5, 0.5, 0.5) });
    const [a, b] = [video(0, 3), video(1, 3)];
    const plain = new Map(scaled);
    plain.set("scaling_layer.scale", { shape: [1, 3, 1, 1], data: Float32Array.of(1, 1, 1) });
    const expected = await read(create(plain, { range: "unit" }), affine(a, 4, -2), affine(b, 4, -2));
    expect(relativeError(await read(create(scaled), a, b), expected)).toBeLessThan(1e-5);
  });

  it("reads torchvision's names, LPIPS layers beside them or in a file of their own, and a whole VAE's", async () => {
    const [a, b] = [video(0), video(1)];
    const expected = await read(create(own), a, b);
    const vgg = await write("vgg16.safetensors", new Map([...torchvision, ["classifier.0.weight", layersEntry()]]));
    const lin = await write("lpips.safetensors", layers);
    const both = await write("both.safetensors", new Map([...torchvision, ...layers]));
    const saved = join(folder, "vgg16.pth");
    const inPytorch = [...new Map([...torchvision, ...layers])].map(([key, { shape, data }]) => {
      return [key, PtTensor.f32([...data], shape)] as const;
    });
    await writePt(saved, new Map(inPytorch));
    const prefixed = [...own].map(([key, value]) => [`loss.perceptual_loss.${key}`, value] as const);
    const inVae = await write("vae.safetensors", new Map(prefixed));
    for (const paths of [[vgg, lin], both, inVae, saved]) {
      const model = await Lpips.load(paths);
      made.push(model);
      expect(await read(model, a, b)).toEqual(expected);
    }
    await expect(Lpips.load(vgg)).rejects.toMatchObject({
      code: "checkpoint",
      message: expect.stringMatching(/vgg16.safetensors lacks lin0.model.1.weight, lin1.* and 2 more: .*list of files/),
    });
    await expect(Lpips.load(join(folder, "none.safetensors"))).rejects.toMatchObject({ name: "LtxError" });
  });

  it("passes a gradient to the videos and none to its weights", async () => {
    const model = create(own);
    const [a, b] = [video(0), video(1)];
    b.requiresGrad = true;
    backward(model.forward(a, b), Tensor.from([1, 1], [2]));
    const gradient = (await b.grad?.read()) as Float32Array;
    expect(model.parameters().every((p) => p.grad === null && !p.trainable)).toBe(true);
    const values = Float32Array.from(await b.read());
    const h = 1e-3;
    const shifted = (sign: number) =>
      Tensor.from(
        values.map((v, i) => v + sign * h * gradient[i]),
        b.shape,
      );
    const [up, down] = [await read(model, a, shifted(1)), await read(model, a, shifted(-1))];
    const slope = up.reduce((total, v, i) => total + v - down[i], 0) / (2 * h);
    const norm = gradient.reduce((total, v) => total + v * v, 0);
    expect(slope / norm).toBeCloseTo(1, 2);
  });

  it.each(["f32", "bf16"] as const)("passes the same %s gradient with checkpoints, from fewer bytes", async (dtype) => {
    const shape = [2, 5, 64, 64, 1];
    const passes = [];
    for (const gradientCheckpointing of [false, true]) {
      const model = create(own, { computeDtype: dtype, gradientCheckpointing });
      const [a, b] = [0, 1].map((purpose) => uniform(shape, { seed: 4, step: 0, purpose }));
      b.requiresGrad = true;
      const before = device().memory().live;
      device().resetPeak();
      const distance = model.forward(a, b);
      const kept = device().memory().live - before;
      // What is computed of the video without a gradient goes at once, but for the maps that are compared.
      expect(device().memory().peak - before).toBeLessThan(kept * (gradientCheckpointing ? 2 : 1.2));
      backward(distance, Tensor.from([1, 1], [2]));
      const peak = device().memory().peak - before;
      const values = [await distance.read(), await (b.grad as Tensor).read()];
      for (const tensor of [a, b, distance]) tensor.dispose();
      passes.push({ kept, peak, values });
    }
    const [whole, checkpointed] = passes;
    expect(checkpointed.values).toEqual(whole.values);
    expect(checkpointed.kept).toBeLessThan(whole.kept / 2);
    expect(checkpointed.peak).toBeLessThan(whole.peak * 0.8);
  });

  it("computes in bf16 close to f32", async () => {
    const [a, b] = [video(0), video(1)];
    const exact = await read(create(own), a, b);
    expect(relativeError(await read(create(own, { computeDtype: "bf16" }), a, b), exact)).toBeLessThan(0.05);
  });

  it("refuses videos that it cannot see", () => {
    const model = create(own);
    const small = uniform([1, 1, 15, 16, 1], { seed: 1, step: 0, purpose: 0 });
    expectError("shape_mismatch", /height and width must be 16 or more/, () => model.forward(small, small));
    expectError("shape_mismatch", /1 or 3\) of one shape/, () => model.forward(video(0, 2), video(1, 2)));
    expectError("shape_mismatch", /1 or 3\) of one shape/, () => model.forward(video(0, 1), video(1, 3)));
  });

  it("refuses weights that do not fit each other", () => {
    const wrong = new Map(own);
    wrong.set("net.slice2.7.weight", { shape: [4, 5, 3, 3], data: new Float32Array(180) });
    expectError(
      "checkpoint",
      /net.slice2.7.weight has shape \[4,5,3,3\], expected \[4,4,3,3\]/,
      () => new Lpips(wrong),
    );
  });
});

const layersEntry = () => layers.get("lin0.model.1.weight") as { shape: number[]; data: Float32Array };
