/** A whole run in its folder: one stage, or the quickstart's two, with pictures and resumption. */
import { resolve } from "node:path";
import type { FlowRunConfig, QuickstartConfig, RunConfig, VaeRunConfig } from "../config/index.js";
import { LtxError } from "../errors.js";
import { saveLossCurve } from "../formats/chart.js";
import { findModelFile } from "../pipelines/checkpoint-path.js";
import { reconstructHeldOut, sideBySide } from "../pipelines/reconstruct.js";
import { TextToVideo } from "../pipelines/text-to-video.js";
import type { Video } from "../pipelines/video.js";
import { version } from "../version.js";
import type { TrainEvent } from "./events.js";
import { FlowTrainer } from "./flow-trainer.js";
import { RunDirectory } from "./run-directory.js";
import { TensorBoard } from "./tensorboard.js";
import { VaeTrainer } from "./vae-trainer.js";

export interface TrainRunOptions {
  /** Folder of the run. */
  out: string;
  /** What to train; left out to continue what is in `out`. */
  config?: RunConfig;
  /** Replace another run in `out`. */
  force?: boolean;
  /** Of a run that is continued: up to which update, instead of as it was configured; a finished one goes on. */
  steps?: number;
  /** Of a flow run: the trained VAE's run, checkpoint or safetensors file. */
  vae?: string;
  /** Trained model of the same kind whose values a new run starts from; a transformer's brings its VAE along. */
  init?: string;
  /** Folder of a pretrained text encoder; of a new run it is noted in the run's configuration. */
  textEncoder?: string;
  device?: string;
  signal?: AbortSignal;
  /** Hears of damaged checkpoints that are passed over, and of what went wrong at the very end. */
  warn?: (message: string) => void;
}

/**
 * Trains as configured and writes everything to the run's folder. Without `config` the run there is continued from its
 * newest whole checkpoint.
 * What only shows the work (pictures, curves, logs) may fail: a `notice` says so, and the training goes on.
 * @throws LtxError `file_exists` when the folder is taken or in use, `checkpoint`, `config`, `io`, `non_finite`
 */
export async function* train(options: TrainRunOptions): AsyncGenerator<TrainEvent> {
  const { out, force } = options;
  const config = options.config && withPaths(options.config, options.textEncoder);
  let directory: RunDirectory;
  if (config) {
    await RunDirectory.checkFree(out, force);
    // All that can be wrong with the options shows before the folder is made, or what it held is removed.
    await rehearse(config, options);
    const [vae, init] = [options.vae, options.init].map((path) => path && resolve(path));
    directory = await RunDirectory.create(out, config, { force, version, vae, init });
  } else {
    directory = await RunDirectory.open(out);
  }
  try {
    const planned = config ?? prolonged(directory.manifest.config, options);
    switch (planned.kind) {
      case "vae":
        return yield* trainVae(directory, planned, options);
      case "flow":
        return yield* trainFlow(directory, planned, options);
      case "quickstart":
        return yield* trainBoth(directory, planned, options);
    }
  } finally {
    await directory.close();
  }
}

/** The configuration of a run that is continued, with other `steps` where they are given. */
function prolonged(config: RunConfig, { steps, out }: TrainRunOptions): RunConfig {
  if (steps === undefined) return config;
  if (config.kind === "quickstart") {
    throw new LtxError(
      "config",
      `[train] ${out} holds two stages, --steps goes on with one: continue ${out}/vae or ${out}/flow`,
    );
  }
  const { training } = config;
  const { name, warmup_steps: warmup } = training.lr_schedule;
  if (!Number.isSafeInteger(steps) || steps < 1 || (name === "cosine" && steps <= warmup)) {
    const least = name === "cosine" ? `more than the ${warmup} of the learning rate's warm-up` : "at least 1";
    throw new LtxError("config", `[train] steps must be a whole number, ${least}, got ${steps}`);
  }
  if (config.kind === "vae" && config.loss.adversarial_weight > 0) {
    const { adversarial_start: start } = config.loss;
    if (start >= training.steps && start < steps) {
      throw new LtxError(
        "config",
        `[train] the discriminator joins at step ${start}, but the run was made for ${training.steps} steps and has none: ` +
          `stay below ${start}, or start a new run with --init ${out}`,
      );
    }
  }
  return { ...config, training: { ...training, steps } } as RunConfig;
}

/** Begins with the checkpoint that a stage is continued from, and notes where it is to end now. */
async function takeUp(
  trainer: VaeTrainer | FlowTrainer,
  directory: RunDirectory,
  config: VaeRunConfig | FlowRunConfig,
  start: { path: string; step: number } | null,
): Promise<TrainEvent[]> {
  await begin(trainer, directory, start);
  const { config: before } = directory.manifest;
  if (before.kind === "quickstart" || before.training.steps === config.training.steps) return [];
  await directory.reconfigure(config);
  const { steps, lr_schedule } = config.training;
  if (lr_schedule.name === "constant") return [];
  const message = `the learning rate's cosine now ends at step ${steps} instead of ${before.training.steps}: it goes on from where step ${start?.step ?? 0} of such a run stands`;
  return [{ type: "notice", stage: config.kind, message }];
}

/**
 * The configuration with `textEncoder` as the folder of its pretrained text encoder, and every path absolute: a run may be
 * continued from elsewhere.
 */
function withPaths<Config extends RunConfig>(config: Config, textEncoder?: string): Config;
function withPaths(config: RunConfig, textEncoder?: string): RunConfig {
  if (config.kind === "quickstart") {
    return { ...config, vae: withPaths(config.vae), flow: withPaths(config.flow, textEncoder) };
  }
  const { path } = config.data;
  const data = path === undefined ? config.data : { ...config.data, path: resolve(path) };
  if (config.kind === "vae" || config.text_encoder.kind !== "t5") {
    if (textEncoder !== undefined) {
      const what =
        config.kind === "vae" ? "a VAE's run reads no text" : "the configuration trains its own text encoder";
      throw new LtxError("config", `[train] --text-encoder names a pretrained one, ${what}: leave it out`);
    }
    if (config.kind === "flow") return { ...config, data };
    const weights = config.loss.perceptual_checkpoint;
    if (weights === undefined) return { ...config, data };
    const perceptual_checkpoint = [weights].flat().map((file) => resolve(file));
    return { ...config, data, loss: { ...config.loss, perceptual_checkpoint } };
  }
  const folder = textEncoder ?? config.text_encoder.path;
  if (folder === undefined) return { ...config, data };
  return { ...config, data, text_encoder: { ...config.text_encoder, path: resolve(folder) } };
}

/** Builds what a new run will train and lets it go again. */
async function rehearse(config: RunConfig, { vae, init, device }: TrainRunOptions): Promise<void> {
  if (init !== undefined && config.kind === "quickstart") {
    throw new LtxError("config", "[train] --init starts one stage, the configuration trains two: train each by itself");
  }
  if (config.kind !== "flow" && vae !== undefined) {
    const what = config.kind === "vae" ? "a VAE's run trains the VAE itself" : "the configuration trains its own VAE";
    throw new LtxError("config", `[train] --vae is for a transformer's run, ${what}: leave it out`);
  }
  if (config.kind !== "flow") {
    const trainer = await VaeTrainer.create({ config: config.kind === "vae" ? config : config.vae, device });
    await trying(trainer, init);
  }
  if (config.kind === "vae") return;
  if (config.kind === "flow" && config.latent_encoder && vae === undefined && init === undefined) throw needsVae();
  const file = vae === undefined ? undefined : await findModelFile(vae, "vae");
  await trying(
    await FlowTrainer.create({ config: config.kind === "flow" ? config : config.flow, vae: file, device }),
    init,
  );
}

async function trying(trainer: VaeTrainer | FlowTrainer, init: string | undefined): Promise<void> {
  try {
    if (init !== undefined) await trainer.initialize(init);
  } finally {
    trainer.dispose();
  }
}

function needsVae(): LtxError {
  return new LtxError(
    "config",
    "[train] a flow run needs a trained VAE: give --vae with a VAE run's folder or checkpoint",
  );
}

async function* trainBoth(
  directory: RunDirectory,
  config: QuickstartConfig,
  options: TrainRunOptions,
): AsyncGenerator<TrainEvent> {
  const stage = async (name: string, of: VaeRunConfig | FlowRunConfig) => {
    const path = directory.file(name);
    return (await RunDirectory.exists(path)) ? RunDirectory.open(path) : RunDirectory.create(path, of, { version });
  };
  const vaeFolder = await stage("vae", config.vae);
  try {
    yield* trainVae(vaeFolder, config.vae, options);
  } finally {
    await vaeFolder.close();
  }
  if (options.signal?.aborted) return;
  const flowFolder = await stage("flow", config.flow);
  try {
    yield* trainFlow(flowFolder, config.flow, { ...options, vae: vaeFolder.path });
  } finally {
    await flowFolder.close();
  }
}

async function* trainVae(
  directory: RunDirectory,
  config: VaeRunConfig,
  options: TrainRunOptions,
): AsyncGenerator<TrainEvent> {
  yield* recorded(directory, config, options, vaeEvents(directory, config, options));
}

async function* vaeEvents(
  directory: RunDirectory,
  config: VaeRunConfig,
  options: TrainRunOptions,
): AsyncGenerator<TrainEvent> {
  const { device, signal } = options;
  const { steps } = config.training;
  const start = await directory.latest(options.warn);
  if (!start || start.step < steps) {
    const trainer = await VaeTrainer.create({ config, device });
    try {
      yield* await takeUp(trainer, directory, config, start);
      const events = trainer.run({ signal, checkpoints: directory.checkpoints });
      yield* illustrated(directory, config, events, signal, {
        what: "reconstructions",
        columns: 4,
        draw: async () => sideBySide(await trainer.reconstruct(signal)),
      });
    } finally {
      trainer.dispose();
    }
    yield* lossCurve(directory, "vae");
  } else if (await directory.has("reconstructions.png")) return;
  if (signal?.aborted) return;
  const draw = async () => sideBySide(await reconstructHeldOut(directory.path, { device, signal }));
  yield* pictures(directory, "vae", steps, { what: "reconstructions", columns: 4, draw }, signal);
}

async function* trainFlow(
  directory: RunDirectory,
  config: FlowRunConfig,
  options: TrainRunOptions,
): AsyncGenerator<TrainEvent> {
  yield* recorded(directory, config, options, flowEvents(directory, config, options));
}

async function* flowEvents(
  directory: RunDirectory,
  config: FlowRunConfig,
  options: TrainRunOptions,
): AsyncGenerator<TrainEvent> {
  const { device, textEncoder, signal } = options;
  const { steps } = config.training;
  const start = await directory.latest(options.warn);
  if (!start || start.step < steps) {
    // A diffusion checkpoint holds its VAE, so a resumed run needs no other.
    const path = options.vae ?? (start ? undefined : directory.manifest.vae);
    const { init } = directory.manifest;
    if (path === undefined && !start && init === undefined && config.latent_encoder) throw needsVae();
    const vae = path === undefined ? undefined : await findModelFile(path, "vae");
    const trainer = await FlowTrainer.create({
      config,
      vae,
      device,
      textEncoder,
      latents: directory.file("latents.safetensors"),
      prompts: directory.file("prompts.safetensors"),
    });
    try {
      yield* await takeUp(trainer, directory, config, start);
      const events = trainer.run({ signal, checkpoints: directory.checkpoints });
      const draw = () => trainer.sample(promptsOf(config), signal);
      yield* illustrated(directory, config, events, signal, { what: "samples", draw });
    } finally {
      trainer.dispose();
    }
    yield* lossCurve(directory, "flow");
  } else if (await directory.has("samples.png")) return;
  if (signal?.aborted) return;
  const draw = async () => {
    const pipeline = await TextToVideo.load(directory.path, { device, textEncoder });
    try {
      return await pipeline.generate({ prompts: promptsOf(config), signal });
    } finally {
      pipeline.dispose();
    }
  };
  yield* pictures(directory, "flow", steps, { what: "samples", draw }, signal);
}

/** Goes on where the run stopped; a new one starts from the model that it was given, if any. */
async function begin(
  trainer: VaeTrainer | FlowTrainer,
  { manifest }: RunDirectory,
  start: { path: string; step: number } | null,
): Promise<void> {
  if (start) await trainer.resume(start.path, start.step);
  else if (manifest.init !== undefined) await trainer.initialize(manifest.init);
}

/** What a run shows of its model. */
interface Pictures {
  /** Name of the files. */
  what: string;
  columns?: number;
  draw(): Promise<Video>;
}

/** Passes a trainer's events on, and every `sample_every` steps draws what the model can do by then. */
async function* illustrated(
  directory: RunDirectory,
  { kind, training }: VaeRunConfig | FlowRunConfig,
  events: AsyncGenerator<TrainEvent>,
  signal: AbortSignal | undefined,
  drawn: Pictures,
): AsyncGenerator<TrainEvent> {
  const { steps, sample_every } = training;
  for await (const event of events) {
    yield event;
    if (event.type !== "step" || event.step % sample_every !== 0 || event.step >= steps || signal?.aborted) continue;
    const named = { ...drawn, what: `${drawn.what}-${event.step}` };
    yield* pictures(directory, kind, event.step, named, signal);
  }
}

/** The prompts that a run's pictures show. */
export function promptsOf(config: FlowRunConfig): string[] {
  const { prompts, num_samples } = config.sampling;
  if (prompts.length > 0) return prompts;
  return Array.from({ length: num_samples }, (_, i) =>
    Array.from({ length: config.data.digits }, (_, k) => (i + k) % 10).join(" and "),
  );
}

async function* pictures(
  directory: RunDirectory,
  stage: "vae" | "flow",
  step: number,
  { what, columns, draw }: Pictures,
  signal?: AbortSignal,
): AsyncGenerator<TrainEvent> {
  try {
    const video = await draw();
    for (const path of await video.savePictures(directory.path, what, columns)) {
      yield { type: "picture", stage, step, what, path };
    }
  } catch (error) {
    // Interrupted here, the run still ends with its checkpoint.
    if (!signal?.aborted) yield notice(stage, `${what} could not be drawn`, error);
  }
}

const notice = (stage: "vae" | "flow", what: string, error: unknown): TrainEvent => ({
  type: "notice",
  stage,
  message: `${what}: ${(error as Error).message}`,
});

/** The loss over all steps so far. */
async function* lossCurve(directory: RunDirectory, stage: "vae" | "flow"): AsyncGenerator<TrainEvent> {
  const path = directory.file("loss.png");
  try {
    const points = await directory.losses();
    if (points.length < 2) return;
    await saveLossCurve(path, [{ name: "loss", points }], { title: `${stage} loss` });
    yield { type: "picture", stage, step: points[points.length - 1][0], what: "loss", path };
  } catch (error) {
    yield notice(stage, "the loss curve could not be drawn", error);
  }
}

/** Milliseconds for which steps may wait to be written. */
const FLUSH_AFTER = 2000;

/** Events that wait at most for a disk that can't be written. */
const MOST_WAITING = 10_000;

/**
 * Passes events on and keeps them, but for progress, in the run's folder: as JSON lines and for TensorBoard. What can't be
 * written there is told once, and stops nothing.
 */
async function* recorded(
  directory: RunDirectory,
  { kind: stage, training }: VaeRunConfig | FlowRunConfig,
  { warn = () => {} }: TrainRunOptions,
  events: AsyncGenerator<TrainEvent>,
): AsyncGenerator<TrainEvent> {
  const board = new TensorBoard(directory.file("tensorboard"), training.log_every);
  let waiting: TrainEvent[] = [];
  let written = performance.now();
  const told = new Set<string>();
  let trouble: TrainEvent[] = [];
  const trying = async (what: string, work: () => Promise<void>): Promise<boolean> => {
    try {
      await work();
      return true;
    } catch (error) {
      if (!told.has(what)) trouble.push(notice(stage, what, error));
      told.add(what);
      return false;
    }
  };
  const flush = async () => {
    written = performance.now();
    const lines = waiting;
    waiting = [];
    const kept = await trying("what happens can't be written down", () => directory.append(lines));
    if (!kept) waiting = lines.slice(-MOST_WAITING);
    await trying("TensorBoard's file can't be written", () => board.flush());
  };
  try {
    for await (const event of events) {
      if (event.type !== "prepare") waiting.push(event);
      await trying("TensorBoard's file can't be written", () => board.record(event));
      if (event.type !== "step" || performance.now() - written > FLUSH_AFTER) await flush();
      yield event;
      yield* trouble;
      trouble = [];
    }
  } finally {
    await flush();
    await trying("TensorBoard's file can't be closed", () => board.close());
    for (const event of trouble) if (event.type === "notice") warn(event.message);
  }
}
