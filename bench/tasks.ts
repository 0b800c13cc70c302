/** What bench/steps.ts repeats: a training step, or a pass without gradients. */
import { eulerSample, flowLoss } from "../lib/diffusion/index.js";
import { VaeLoss } from "../lib/losses/index.js";
import { paddedLength } from "../lib/models/text-encoder/index.js";
import { LtxVideoTransformer } from "../lib/models/transformer/index.js";
import { Decoder } from "../lib/models/video-vae/decoder.js";
import { Encoder } from "../lib/models/video-vae/encoder.js";
import { VideoVae } from "../lib/models/video-vae/index.js";
import { Initializer, type Parameter } from "../lib/nn/index.js";
import { affine, cast, full, mixRows, normal, uniform } from "../lib/ops/index.js";
import { Adam } from "../lib/optim/index.js";
import { backward, type Device, noGrad, scope, Tensor } from "../lib/tensor/index.js";
import type { DecodeSetup, EncodeSetup, FlowSetup, SampleSetup, Setup, VaeSetup } from "./protocol.js";

export interface Task {
  parameters: readonly Parameter[];
  /** Whether a step goes backward too, which makes it about three forward passes. */
  trains: boolean;
  /** Queues one step; the result is the caller's. */
  step(): Tensor | Promise<Tensor>;
  /** Its forward pass alone, without gradients. */
  forward(): Tensor | Promise<Tensor>;
}

const key = (purpose: number, step = 0) => ({ seed: 1, step, purpose });

/** A pass without gradients. */
function inference(parameters: Parameter[], pass: () => Tensor): Task {
  const step = () => noGrad(() => scope(pass));
  return { parameters, trains: false, step, forward: step };
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
  return { parameters, trains: true, step, forward: () => noGrad(() => scope(() => loss(0))) };
}

function vaeTask({ batch, dtype, config }: VaeSetup, device: Device): Task {
  const vae = new VideoVae(config.vae, { device, computeDtype: dtype });
  const vaeLoss = new VaeLoss(config.loss, new Initializer(device), { steps: 1 });
  const video = uniform([batch, ...config.shape], key(0), { device });
  const loss = (step: number) => {
    const noise = (purpose: number) => ({ seed: 2, step, purpose });
    const moments = vae.encodeMoments(video);
    const latents = [...moments.shape.slice(0, -1), config.vae.latent_channels];
    let z = vae.sample(moments, normal(latents, noise(0), { device }));
    let amplitude: Tensor | null = null;
    if (config.vae.timestep_conditioning) {
      amplitude = affine(uniform([batch], noise(1), { device }), 0.2);
      z = mixRows(z, normal(latents, noise(2), { device }), null, amplitude);
    }
    const decoded = affine(vae.decodeUnclamped(z, amplitude, { noise: noise(3) }), 0.5, 0.5);
    return vaeLoss.forward(video, decoded, moments, 0).loss;
  };
  return training(vae.parameters(), { lr: 4.5e-6, betas: [0.5, 0.9] }, loss);
}

/** Embeddings of prompts, and which of their tokens count; as many tokens as the text encoders give, or all. */
function prompts(batch: number, { text, words }: FlowSetup["config"], device: Device, all = false) {
  const [longest, width] = text;
  const length = all ? longest : paddedLength([words], longest);
  const counts = Float32Array.from({ length: batch * length }, (_, i) => (i % length < words ? 1 : 0));
  return {
    text: normal([batch, length, width], key(1), { device }),
    mask: Tensor.from(counts, [batch, length], { device }),
  };
}

function flowTask({ name, batch, dtype, config }: FlowSetup, device: Device): Task {
  const model = new LtxVideoTransformer(config.transformer, new Initializer(device), { computeDtype: dtype });
  const x0 = normal([batch, ...config.shape], key(0), { device });
  const { text, mask } = prompts(batch, config, device, name !== "flow-step");
  if (name === "ltx-forward") {
    const t = uniform([batch], key(2), { device });
    return inference(model.parameters(), () => model.forward(x0, t, text, mask));
  }
  const loss = (step: number) =>
    flowLoss((x, t) => model.forward(x, t, text, mask), x0, {
      distribution: "logit-normal",
      timeKey: key(2, step),
      noiseKey: key(3, step),
    });
  return training(model.parameters(), { lr: 2e-4, betas: [0.9, 0.99] }, loss);
}

/** As VideoVae.encodeMoments. */
function encodeTask({ batch, dtype, config }: EncodeSetup, device: Device): Task {
  const encoder = new Encoder(config.encoder, new Initializer(device));
  const video = uniform([batch, ...config.shape], key(0), { device });
  return inference(encoder.parameters(), () => cast(encoder.forward(affine(video, 2, -1, dtype)), "f32"));
}

function decodeTask({ batch, dtype, config }: DecodeSetup, device: Device): Task {
  const decoder = new Decoder(config.decoder, new Initializer(device));
  const z = normal([batch, ...config.shape], key(0), { device, dtype });
  const timestep = config.decoder.timestep_conditioning ? affine(uniform([batch], key(1), { device }), 0.05) : null;
  return inference(decoder.parameters(), () => cast(decoder.forward(z, timestep), "f32"));
}

/** As TextToVideo.generate, from embeddings of the prompts on; with guidance the second half of them are the empty ones. */
function sampleTask({ batch, dtype, config }: SampleSetup, device: Device): Task {
  const init = new Initializer(device);
  const { steps, guidance, initial_timestep: initialTimestep } = config;
  const transformer = new LtxVideoTransformer(config.transformer, init, { computeDtype: dtype });
  const decoder = config.decoder && new Decoder(config.decoder, init);
  const start = normal([batch, ...config.shape], key(0), { device });
  const { text, mask } = prompts(guidance === 1 ? batch : 2 * batch, config, device);
  const step = async () => {
    const velocity = (x: Tensor, t: Tensor) => transformer.forward(x, t, text, mask);
    const { latents, noise } = await eulerSample({ velocity, start, steps, guidance, initialTimestep });
    if (!decoder) return latents;
    const clips = noGrad(() =>
      scope(() => {
        const timestep = config.decoder?.timestep_conditioning ? full([batch], noise, { device }) : null;
        return cast(decoder.forward(cast(latents, dtype), timestep), "f32");
      }),
    );
    latents.dispose();
    return clips;
  };
  const parameters = [...transformer.parameters(), ...(decoder?.parameters() ?? [])];
  return { parameters, trains: false, step, forward: step };
}

export function createTask(setup: Setup, device: Device): Task {
  switch (setup.name) {
    case "vae-step":
      return vaeTask(setup, device);
    case "vae-encode":
      return encodeTask(setup, device);
    case "vae-decode":
      return decodeTask(setup, device);
    case "sample":
      return sampleTask(setup, device);
    default:
      return flowTask(setup, device);
  }
}
