/**
 * A training step of ltx-native, timed on command, in a process of its own: memory of one measurement cannot disturb
 * another. The first line on standard input is the setup as JSON; each following line asks for that many steps, or is
 * `profile` for one step by kernel. Each is answered by one line of JSON. The end of the input ends the process.
 */
import { createInterface } from "node:readline";
import { flowLoss } from "../lib/diffusion/index.js";
import { VaeLoss } from "../lib/losses/index.js";
import { LtxVideoTransformer } from "../lib/models/transformer/index.js";
import { VideoVae } from "../lib/models/video-vae/index.js";
import { Initializer, type Parameter } from "../lib/nn/index.js";
import { affine, mixRows, normal, uniform } from "../lib/ops/index.js";
import { Adam } from "../lib/optim/index.js";
import { backward, type Device, device as openDevice, scope, Tensor } from "../lib/tensor/index.js";
import { countFlops } from "./flops.js";
import type { FlowSetup, Reply, Setup, VaeSetup } from "./protocol.js";

interface Task {
  parameters: Parameter[];
  adam: { lr: number; betas: [number, number] };
  /** Queues the forward pass with noise of its own for each step. */
  loss(step: number): Tensor;
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
  return { parameters: vae.parameters(), adam: { lr: 4.5e-6, betas: [0.5, 0.9] }, loss };
}

function flowTask({ batch, dtype, config }: FlowSetup, device: Device): Task {
  const model = new LtxVideoTransformer(config.transformer, new Initializer(device), { computeDtype: dtype });
  const key = (purpose: number, step = 0) => ({ seed: 1, step, purpose });
  const x0 = normal([batch, ...config.shape], key(0), { device });
  const text = normal([batch, ...config.text], key(1), { device });
  const [length] = config.text;
  const words = Float32Array.from({ length: batch * length }, (_, i) => (i % length < config.words ? 1 : 0));
  const mask = Tensor.from(words, [batch, length], { device });
  const loss = (step: number) =>
    flowLoss((x, t) => model.forward(x, t, text, mask), x0, {
      distribution: "logit-normal",
      timeKey: key(2, step),
      noiseKey: key(3, step),
    });
  return { parameters: model.parameters(), adam: { lr: 2e-4, betas: [0.9, 0.99] }, loss };
}

async function main(): Promise<void> {
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const setup: Setup = JSON.parse((await lines.next()).value);
  const device = openDevice("cpu");
  const task = setup.name === "vae-step" ? vaeTask(setup, device) : flowTask(setup, device);
  const optimizer = new Adam(task.parameters, { ...task.adam, maxGradNorm: 1 });

  const step = async (): Promise<number> => {
    const loss = scope(() => {
      const value = scope(() => task.loss(optimizer.steps));
      backward(value);
      optimizer.step();
      return value;
    });
    const value = await loss.item(); // also waits for the update: the queue is in order
    loss.dispose();
    return value;
  };
  const timed = async (steps: number) => {
    let loss = Number.NaN;
    const begun = performance.now();
    for (let i = 0; i < steps; i++) loss = await step();
    await device.synchronize();
    return { seconds: (performance.now() - begun) / 1000 / steps, loss };
  };
  const reply = (values: Omit<Reply, "peak_bytes" | "rss_bytes">) => {
    const rss_bytes = process.resourceUsage().maxRSS * 1024;
    process.stdout.write(`${JSON.stringify({ ...values, peak_bytes: device.memory().peak, rss_bytes })}\n`);
  };

  const flops = 3 * (await countFlops(step));
  await step();
  const parameters = task.parameters.reduce((n, p) => n + p.size, 0);
  reply({ ...(await timed(1)), flops, parameters, about: device.describe() });
  for await (const line of lines) {
    if (line !== "profile") {
      reply(await timed(Number(line)));
      continue;
    }
    device.startProfile();
    const times = await timed(1);
    reply({ ...times, profile: device.stopProfile() });
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
