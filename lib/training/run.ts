/** A whole run in its folder: one stage, or the quickstart's two, with pictures and resumption. */
import { join } from "node:path";
import type { FlowRunConfig, QuickstartConfig, RunConfig, VaeRunConfig } from "../config/index.js";
import { LtxError } from "../errors.js";
import { saveLossCurve } from "../formats/chart.js";
import { findModelFile } from "../pipelines/checkpoint-path.js";
import { reconstructHeldOut } from "../pipelines/reconstruct.js";
import { TextToVideo } from "../pipelines/text-to-video.js";
import { Video } from "../pipelines/video.js";
import { version } from "../version.js";
import type { TrainEvent } from "./events.js";
import { FlowTrainer } from "./flow-trainer.js";
import { RunDirectory } from "./run-directory.js";
import { VaeTrainer } from "./vae-trainer.js";

export interface TrainRunOptions {
  /** Folder of the run. */
  out: string;
  /** What to train; left out to continue what is in `out`. */
  config?: RunConfig;
  /** Replace another run in `out`. */
  force?: boolean;
  /** Of a flow run: the trained VAE's run, checkpoint or safetensors file. */
  vae?: string;
  device?: string;
  signal?: AbortSignal;
  /** Things worth telling that are no events. */
  warn?: (message: string) => void;
}

/** Enlargement of the clips in pictures. */
const PICTURE_SIDE = 128;

/**
 * Trains as configured and writes everything to the run's folder. Without `config` the run there is continued from its
 * newest whole checkpoint.
 * @throws LtxError `file_exists`, `checkpoint`, `config`, `io`, `non_finite`
 */
export async function* train(options: TrainRunOptions): AsyncGenerator<TrainEvent> {
  const { out, config, force } = options;
  const directory = config ? await RunDirectory.create(out, config, { force, version }) : await RunDirectory.open(out);
  const planned = directory.manifest.config;
  switch (planned.kind) {
    case "vae":
      return yield* trainVae(directory, planned, options);
    case "flow":
      return yield* trainFlow(directory, planned, options);
    case "quickstart":
      return yield* trainBoth(directory, planned, options);
  }
}

async function* trainBoth(directory: RunDirectory, config: QuickstartConfig, options: TrainRunOptions): AsyncGenerator<TrainEvent> {
  const stage = async (name: string, of: VaeRunConfig | FlowRunConfig) => {
    const path = directory.file(name);
    return RunDirectory.open(path).catch(() => RunDirectory.create(path, of, { force: true, version }));
  };
  const vaeFolder = await stage("vae", config.vae);
  yield* trainVae(vaeFolder, config.vae, options);
  if (options.signal?.aborted) return;
  const flowFolder = await stage("flow", config.flow);
  yield* trainFlow(flowFolder, config.flow, { ...options, vae: vaeFolder.path });
}

async function* trainVae(directory: RunDirectory, config: VaeRunConfig, options: TrainRunOptions): AsyncGenerator<TrainEvent> {
  const trainer = await VaeTrainer.create({ config, device: options.device });
  try {
    const start = await directory.latest(options.warn);
    if (start) await trainer.resume(start.path, start.step);
    if (start && start.step >= config.training.steps) return;
    yield* recorded(directory, trainer.run({ signal: options.signal, checkpoints: directory.checkpoints }));
  } finally {
    trainer.dispose();
  }
  if (options.signal?.aborted) return;
  const { originals, reconstructions } = await reconstructHeldOut(directory.path, { device: options.device });
  const { frames, height, width, channels } = originals;
  const pairs = originals.clips.flatMap((clip, i) => [clip, reconstructions.clips[i]]);
  const names = originals.prompts.flatMap((prompt) => [prompt, `${prompt} (VAE)`]);
  const video = new Video(pairs, frames, height, width, channels, names);
  yield* pictures(directory, "vae", config.training.steps, "reconstructions", video, 4);
}

async function* trainFlow(directory: RunDirectory, config: FlowRunConfig, options: TrainRunOptions): AsyncGenerator<TrainEvent> {
  const start = await directory.latest(options.warn);
  if (start && start.step >= config.training.steps) return;
  // A diffusion checkpoint holds its VAE, so a resumed run needs no other.
  if (!options.vae && !start) {
    throw new LtxError("config", "[train] a flow run needs a trained VAE: give --vae with a VAE run's folder or checkpoint");
  }
  const vae = options.vae ? await findModelFile(options.vae, "vae") : undefined;
  const trainer = await FlowTrainer.create({ config, vae, device: options.device, latents: directory.file("latents.safetensors") });
  try {
    if (start) await trainer.resume(start.path, start.step);
    for await (const event of recorded(directory, trainer.run({ signal: options.signal, checkpoints: directory.checkpoints }))) {
      yield event;
      const { sample_every, steps } = config.training;
      if (event.type === "step" && event.step % sample_every === 0 && event.step < steps) {
        const video = await trainer.sample(promptsOf(config), options.signal);
        yield* pictures(directory, "flow", event.step, `samples-${event.step}`, video);
      }
    }
  } finally {
    trainer.dispose();
  }
  if (options.signal?.aborted) return;
  const pipeline = await TextToVideo.load(directory.path, { device: options.device });
  try {
    const video = await pipeline.generate({ prompts: promptsOf(config), signal: options.signal });
    yield* pictures(directory, "flow", config.training.steps, "samples", video);
  } finally {
    pipeline.dispose();
  }
}

/** The prompts that a run's pictures show. */
export function promptsOf(config: FlowRunConfig): string[] {
  const { prompts, num_samples } = config.sampling;
  if (prompts.length > 0) return prompts;
  return Array.from({ length: num_samples }, (_, i) => Array.from({ length: config.data.digits }, (_, k) => (i + k) % 10).join(" and "));
}

async function* pictures(directory: RunDirectory, stage: string, step: number, name: string, video: Video, columns?: number): AsyncGenerator<TrainEvent> {
  const scale = Math.max(1, Math.round(PICTURE_SIDE / Math.max(video.height, video.width)));
  for (const type of ["gif", "png"]) {
    const path = directory.file(`${name}.${type}`);
    await video.save(path, { scale, columns });
    yield { type: "picture", stage, step, what: name, path };
  }
}

/** Passes events on and keeps them in the run's folder; ends with the loss curve. */
async function* recorded(directory: RunDirectory, events: AsyncGenerator<TrainEvent>): AsyncGenerator<TrainEvent> {
  let waiting: TrainEvent[] = [];
  let written = performance.now();
  const flush = async () => {
    const lines = waiting;
    waiting = [];
    written = performance.now();
    await directory.append(lines);
  };
  let stage = "";
  try {
    for await (const event of events) {
      stage = event.stage;
      if (event.type !== "prepare") waiting.push(event);
      if (event.type !== "step" || performance.now() - written > 2000) await flush();
      yield event;
    }
  } finally {
    await flush();
  }
  const steps = await directory.steps();
  if (steps.length < 2) return;
  const path = join(directory.path, "loss.png");
  const points = steps.map(({ step, loss }): [number, number] => [step, loss]);
  await saveLossCurve(path, [{ name: "loss", points }], { title: `${stage} loss` });
  yield { type: "picture", stage, step: steps[steps.length - 1].step, what: "loss", path };
}
