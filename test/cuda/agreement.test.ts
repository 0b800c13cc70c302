/**
 * The CPU and another device take the same training steps: losses, gradients and weights agree. The device is the one
 * that LTX_AGREEMENT_DEVICE names, else the one that the tests run on, else cuda.
 */
import { describe, expect, it } from "vitest";
import { flowLoss } from "../../lib/diffusion/index.js";
import { VaeLoss } from "../../lib/losses/index.js";
import { LtxVideoTransformer } from "../../lib/models/transformer/index.js";
import { VideoVae } from "../../lib/models/video-vae/index.js";
import { Initializer, type Parameter } from "../../lib/nn/index.js";
import { affine, normal, uniform } from "../../lib/ops/index.js";
import { Adam } from "../../lib/optim/index.js";
import { backward, type Device, device as openDevice, Tensor } from "../../lib/tensor/index.js";
import { vaeStep } from "../../lib/training/vae-step.js";
import { relativeError } from "../support/arrays.js";
import { tinyFlow, tinyVae } from "../support/tiny.js";
import { agreementDevice, incomparable } from "./device.js";

type ComputeDtype = "f32" | "bf16";

/**
 * Relative L2 errors. Gradients are those of the first step, of one tensor relative to all of them where its own are
 * mostly rounding; `update` is the error of the weights' change after three steps, relative to that change: Adam divides
 * by the gradient's magnitude, so that rounding in a gradient near zero counts as much as a large one.
 */
interface Tolerance {
  loss: number;
  gradients: number;
  tensor: number;
  update: number;
}
const TOLERANCES: Record<ComputeDtype, Tolerance> = {
  f32: { loss: 1e-5, gradients: 1e-4, tensor: 1e-3, update: 1e-2 },
  bf16: { loss: 1e-2, gradients: 3e-2, tensor: 1e-1, update: 2e-1 },
};
const STEPS = 3;

interface Model {
  parameters: Parameter[];
  /** Leaves the gradients of one step; the loss is the caller's. */
  differentiate(step: number): Tensor;
}

interface Trace {
  before: Float32Array[];
  losses: number[];
  gradients: Float32Array[];
  after: Float32Array[];
}

const key = (purpose: number, step = 0) => ({ seed: 7, step, purpose });

function tinyVaeModel(device: Device, computeDtype: ComputeDtype): Model {
  const { vae: config, loss: terms, data } = tinyVae();
  const vae = new VideoVae(config, { device, computeDtype, seed: 3 });
  const loss = new VaeLoss(terms, new Initializer(device), { steps: STEPS });
  const batch = 2;
  const video = uniform([batch, data.frames, data.height, data.width, data.num_channels], key(0), { device });
  const differentiate = (step: number) => {
    const result = vaeStep({ vae, loss }, video, step, (_, shape) => ({
      posterior: normal(shape, key(1, step), { device }),
      amplitude: affine(uniform([batch], key(2, step), { device }), 0.1),
      latent: normal(shape, key(3, step), { device }),
      layers: undefined,
    }));
    for (const term of Object.values(result.terms)) if (term !== result.loss) term.dispose();
    return result.loss;
  };
  return { parameters: vae.parameters(), differentiate };
}

function tinyFlowModel(device: Device, computeDtype: ComputeDtype): Model {
  const { transformer: config } = tinyFlow();
  const model = new LtxVideoTransformer(config, new Initializer(device, 3), { computeDtype });
  const [batch, words] = [4, 8];
  const x0 = normal([batch, 3, 2, 2, config.input_channels], key(0), { device });
  const text = normal([batch, words, config.caption_channels ?? config.cross_attention_dim], key(1), { device });
  const counts = Float32Array.from({ length: batch * words }, (_, i) => (i % words < 5 ? 1 : 0));
  const mask = Tensor.from(counts, [batch, words], { device });
  const differentiate = (step: number) => {
    const loss = flowLoss((x, t) => model.forward(x, t, text, mask), x0, {
      distribution: "logit-normal",
      timeKey: key(2, step),
      noiseKey: key(3, step),
    });
    backward(loss);
    return loss;
  };
  return { parameters: model.parameters(), differentiate };
}

const readAll = (tensors: readonly Tensor[]) =>
  Promise.all(tensors.map(async (t) => Float32Array.from(await t.read())));

/** Trains a model that starts from given weights, else from its own. */
async function train({ parameters, differentiate }: Model, weights?: readonly Float32Array[]): Promise<Trace> {
  for (const [i, values] of weights?.entries() ?? []) parameters[i].write(values);
  const before = await readAll(parameters);
  const optimizer = new Adam(parameters, { lr: 1e-3, betas: [0.9, 0.95], maxGradNorm: 1 });
  const losses: number[] = [];
  let gradients: Float32Array[] = [];
  for (let step = 0; step < STEPS; step++) {
    const loss = differentiate(step);
    if (step === 0) gradients = await readAll(parameters.map((p) => p.grad as Tensor));
    optimizer.step().dispose();
    losses.push(await loss.item());
    loss.dispose();
  }
  return { before, losses, gradients, after: await readAll(parameters) };
}

const joined = (parts: readonly Float32Array[]) => Float32Array.from(parts.flatMap((part) => [...part]));
const norm = (values: Float32Array) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));

function expectAgreement(found: Trace, expected: Trace, tolerance: Tolerance): void {
  for (const [i, loss] of expected.losses.entries()) {
    expect(Math.abs(found.losses[i] - loss) / Math.abs(loss), `loss of step ${i}`).toBeLessThan(tolerance.loss);
  }
  const all = joined(expected.gradients);
  expect(norm(all)).toBeGreaterThan(0);
  expect(relativeError(joined(found.gradients), all), "all gradients").toBeLessThan(tolerance.gradients);
  for (const [i, gradient] of expected.gradients.entries()) {
    const difference = norm(gradient.map((v, j) => v - found.gradients[i][j]));
    const scale = Math.max(norm(gradient), 1e-2 * norm(all));
    expect(difference / scale, `gradient ${i}`).toBeLessThan(tolerance.tensor);
  }
  const change = ({ before, after }: Trace) => joined(after.map((values, i) => values.map((v, j) => v - before[i][j])));
  expect(norm(change(expected))).toBeGreaterThan(0);
  expect(relativeError(change(found), change(expected)), "change of the weights").toBeLessThan(tolerance.update);
}

describe(`${agreementDevice} and the CPU agree`, () => {
  const reason = incomparable(agreementDevice);
  if (reason) {
    const title = `is left out: ${reason}`;
    if (process.env.LTX_REQUIRE_CUDA === "1") it(title, () => expect(reason).toBeNull());
    else it.skip(title);
    return;
  }
  for (const dtype of ["f32", "bf16"] as const) {
    for (const [name, model] of Object.entries({ VAE: tinyVaeModel, flow: tinyFlowModel })) {
      it(`on steps of a tiny ${name} in ${dtype}`, async () => {
        const expected = await train(model(openDevice("cpu"), dtype));
        const found = await train(model(openDevice(agreementDevice), dtype), expected.before);
        expectAgreement(found, expected, TOLERANCES[dtype]);
      });
    }
  }
});
