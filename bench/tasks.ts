/** What bench/steps.ts repeats: a training step, or a pass without gradients. */
import { flowLoss } from "../lib/diffusion/index.js";
import { VaeLoss } from "../lib/losses/index.js";
import { LtxVideoTransformer } from "../lib/models/transformer/index.js";
import { Decoder } from "../lib/models/video-vae/decoder.js";
import { VideoVae } from "../lib/models/video-vae/index.js";
import { Initializer, type Parameter } from "../lib/nn/index.js";
import { affine, cast, mixRows, normal, uniform } from "../lib/ops/index.js";
import { Adam } from "../lib/optim/index.js";
import { backward, type Device, noGrad, scope, Tensor } from "../lib/tensor/index.js";
import type { DecodeSetup, FlowSetup, Setup, VaeSetup } from "./protocol.js";

export interface Task {
  parameters: readonly Parameter[];
  /** Whether a step goes backward too, which makes it about three forward passes. */
  trains: boolean;
  /** Queues one step; the result is the caller's. */
  step(): Tensor;
}

/** A training step on a loss that draws noise of its own for each step. */
function training(
  parameters: Parameter[],
  adam: { lr: number; betas: [number, number] },
  loss: (step: number) => Tensor,
): Task {
  const optimizer = new Adam(parameters, { ...adam, maxGradNorm: 1 });
  const step = () =>
    scope(() => {
      const value = scope(() => loss(optimizer.steps));
      backward(value);
      optimizer.step();
      return value;
    });
  return { parameters, trains: true, step };
}

function vaeTask({ batch, dtype, config }: VaeSetup, device: Device): Task {
  const vae = new VideoVae(config.vae, { device, computeDtype: dtype });
  const vaeLoss = new VaeLoss(config.loss, new Initializer(device), { steps: 1 });
  const video = uniform([batch, ...config.shape], { seed: 1, step: 0, purpose: 0 }, { device });
  const loss = (step: number) => {
    const key = (purpose: number) => ({ seed: 2, step, purpose });
    const moments = vae.encodeMoments(video);
    const latents = [...moments.shape.slice(0, -1), config.vae.latent_channels];
    let z = vae.sample(moments, normal(latents, key(0), { device }));
    let amplitude: Tensor | null = null;
    if (config.vae.timestep_conditioning) {
      amplitude = affine(uniform([batch], key(1), { device }), 0.2);
      z = mixRows(z, normal(latents, key(2), { device }), null, amplitude);
    }
    const decoded = affine(vae.decodeUnclamped(z, amplitude, { noise: key(3) }), 0.5, 0.5);
    return vaeLoss.forward(video, decoded, moments, 0).loss;
  };
  return training(vae.parameters(), { lr: 4.5e-6, betas: [0.5, 0.9] }, loss);
}

function flowTask({ name, batch, dtype, config }: FlowSetup, device: Device): Task {
  const model = new LtxVideoTransformer(config.transformer, new Initializer(device), { computeDtype: dtype });
  const key = (purpose: number, step = 0) => ({ seed: 1, step, purpose });
  const x0 = normal([batch, ...config.shape], key(0), { device });
  const text = normal([batch, ...config.text], key(1), { device });
  const [length] = config.text;
  const words = Float32Array.from({ length: batch * length }, (_, i) => (i % length < config.words ? 1 : 0));
  const mask = Tensor.from(words, [batch, length], { device });
  if (name === "ltx-forward") {
    const t = uniform([batch], key(2), { device });
    const step = () => noGrad(() => scope(() => model.forward(x0, t, text, mask)));
    return { parameters: model.parameters(), trains: false, step };
  }
  const loss = (step: number) =>
    flowLoss((x, t) => model.forward(x, t, text, mask), x0, {
      distribution: "logit-normal",
      timeKey: key(2, step),
      noiseKey: key(3, step),
    });
  return training(model.parameters(), { lr: 2e-4, betas: [0.9, 0.99] }, loss);
}

function decodeTask({ batch, dtype, config }: DecodeSetup, device: Device): Task {
  const decoder = new Decoder(config.decoder, new Initializer(device));
  const z = normal([batch, ...config.shape], { seed: 1, step: 0, purpose: 0 }, { device, dtype });
  const timestep = config.decoder.timestep_conditioning
    ? affine(uniform([batch], { seed: 1, step: 0, purpose: 1 }, { device }), 0.05)
    : null;
  const step = () => noGrad(() => scope(() => cast(decoder.forward(z, timestep), "f32")));
  return { parameters: decoder.parameters(), trains: false, step };
}

export function createTask(setup: Setup, device: Device): Task {
  if (setup.name === "vae-step") return vaeTask(setup, device);
  return setup.name === "vae-decode" ? decodeTask(setup, device) : flowTask(setup, device);
}
