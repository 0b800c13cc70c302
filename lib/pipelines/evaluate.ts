/** How good a trained model is: its VAE on held-out clips, and whether generated clips show what was asked for. */
import { homedir } from "node:os";
import { basename, dirname, isAbsolute, join } from "node:path";
import type { FlowRunConfig, RunConfig } from "../config/index.js";
import { type DataSource, openData } from "../data/index.js";
import { listCheckpoints } from "../formats/checkpoint.js";
import { isFile } from "../formats/paths.js";
import { openTensorFile } from "../formats/tensor-file.js";
import { DIGIT_CLASSES, type DigitClassifier, likeliestDigits } from "../models/digit-classifier.js";
import { affine } from "../ops/index.js";
import { noGrad, device as openDevice, scope, Tensor } from "../tensor/index.js";
import { keptDigitClassifier } from "../training/digit-classifier-trainer.js";
import { findModelFile } from "./checkpoint-path.js";
import { kindOf, openCheckpoint } from "./open-checkpoint.js";
import { drawPrompts } from "./prompts.js";
import { loadVae, type Reconstruction, reconstructClips } from "./reconstruct.js";
import { type LoadOptions, TextToVideo } from "./text-to-video.js";
import { Video } from "./video.js";

export interface EvaluateOptions extends LoadOptions {
  /** Held-out clips for the VAE; 64 unless given. */
  clips?: number;
  /** Clips to generate and read; 100 unless given. */
  samples?: number;
  /** Real held-out clips to read beside them; 500 unless given, since they cost next to nothing. */
  realClips?: number;
  /** Euler steps and guidance of the generated clips; the configuration's unless given. */
  steps?: number;
  guidance?: number;
  /** Of clips, prompts and noise; the configuration's unless given. */
  seed?: number;
  /** Updates of the classifier; see {@link keptDigitClassifier}. */
  classifierSteps?: number;
  signal?: AbortSignal;
  onProgress?: (what: "classifier" | "samples", done: number, total: number) => void;
}

/** What the classifier made of clips that show known digits. */
export interface DigitScore {
  clips: number;
  /** The share of clips whose digits were all recognised, in whatever order. */
  accuracy: number;
  /** For each digit from 0 to 9, how often it was to be seen, and how often it was recognised. */
  perDigit: { shown: number; recognised: number }[];
}

export interface Evaluation {
  /** Null where the flow runs on pixels. */
  vae: Reconstruction | null;
  /** Null for a VAE's checkpoint. */
  digits: {
    generated: DigitScore;
    /** The same classifier on real held-out clips: what it cannot read there it cannot ask of a model. */
    real: DigitScore;
    /** The generated clips; where something else was read, the prompt says what. */
    video: Video;
  } | null;
}

/** Clips that are drawn, or read, at once. */
const BATCH = 16;

/**
 * Evaluates a VAE's or a text-to-video model's checkpoint. The classifier is trained at the first time and kept in the
 * run's folder, of a file from elsewhere in `~/.cache/ltx-native`. It always names as many digits as a clip has: of clips that show nothing it recognises what chance does.
 * @param path a run's folder, a checkpoint's folder, or a model file
 * @throws LtxError `checkpoint`, `config`, `invalid_argument`, `aborted`
 */
export async function evaluate(path: string, options: EvaluateOptions = {}): Promise<Evaluation> {
  const file = await modelFile(path);
  const { clips = 64, signal } = options;
  if ((await kindOfFile(file)) !== "flow") {
    const checkpoint = await openCheckpoint(file, "vae", options.config);
    const vae = loadVae(checkpoint, openDevice(options.device));
    try {
      return {
        vae: await reconstructClips(vae, await heldOut(checkpoint.config, clips, options), clips, signal),
        digits: null,
      };
    } finally {
      vae.dispose();
    }
  }
  const pipeline = await TextToVideo.load(file, options);
  try {
    const { vae } = pipeline.model;
    const reconstruction =
      vae && (await reconstructClips(vae, await heldOut(pipeline.config, clips, options), clips, signal));
    return { vae: reconstruction, digits: await scoreDigits(pipeline, await classifierFolder(file), options) };
  } finally {
    pipeline.dispose();
  }
}

/** Of a quickstart the transformer's stage, if it has come so far. */
async function modelFile(path: string): Promise<string> {
  const begun = (await listCheckpoints(join(path, "flow", "checkpoints"))).length > 0;
  return findModelFile(path, begun ? "flow" : "vae");
}

async function kindOfFile(file: string): Promise<"vae" | "flow" | undefined> {
  const { tensors, close } = await openTensorFile(file);
  await close();
  return kindOf(tensors.keys());
}

/** Where the classifier is kept: in the folder of the run that wrote a model file, else in the user's cache. */
async function classifierFolder(file: string): Promise<string> {
  const checkpoints = dirname(dirname(file));
  const run = dirname(checkpoints);
  if (basename(checkpoints) === "checkpoints" && (await isFile(join(run, "run.json")))) return run;
  const { XDG_CACHE_HOME: cache } = process.env;
  return join(cache && isAbsolute(cache) ? cache : join(homedir(), ".cache"), "ltx-native");
}

async function heldOut({ data }: Exclude<RunConfig, { kind: "quickstart" }>, count: number, { seed }: EvaluateOptions) {
  return openData({ ...data, seed: seed ?? data.seed }, "test", count);
}

async function scoreDigits(
  pipeline: TextToVideo,
  folder: string,
  options: EvaluateOptions,
): Promise<Evaluation["digits"]> {
  const { samples = 100, realClips = 500, signal, onProgress } = options;
  const { config, device } = pipeline;
  const classifier = await keptDigitClassifier(folder, config.data, {
    device,
    signal,
    steps: options.classifierSteps,
    onStep: (done, total) => onProgress?.("classifier", done, total),
  });
  try {
    const real = await scoreReal(classifier, await labelledClips(config, realClips, options));
    const asked = drawPrompts(config.data, samples, options.seed ?? config.sampling.seed);
    const video = await generateAll(
      pipeline,
      asked.map(({ prompt }) => prompt),
      options,
    );
    const labels = asked.map(({ labels }) => labels);
    const found = await readVideo(classifier, video);
    return { generated: score(labels, found), real, video: annotated(video, labels, found) };
  } finally {
    classifier.dispose();
  }
}

async function generateAll(
  pipeline: TextToVideo,
  prompts: readonly string[],
  { steps, guidance, seed, signal, onProgress }: EvaluateOptions,
): Promise<Video> {
  const parts: Video[] = [];
  for (let from = 0; from < prompts.length; from += BATCH) {
    const some = prompts.slice(from, from + BATCH);
    parts.push(await pipeline.generate({ prompts: some, steps, guidance, seed, draw: from / BATCH, signal }));
    onProgress?.("samples", from + some.length, prompts.length);
  }
  const [{ frames, height, width, channels }] = parts;
  return new Video(
    parts.flatMap(({ clips }) => clips),
    frames,
    height,
    width,
    channels,
    prompts,
  );
}

/** Held-out clips whose digits are known: drawn ones, where those of the data set come without labels. */
async function labelledClips(config: FlowRunConfig, count: number, options: EvaluateOptions): Promise<DataSource> {
  const data = await heldOut(config, count, options);
  if ((await data.clip(0)).labels) return data;
  return heldOut({ ...config, data: { ...config.data, source: "moving-mnist" } }, count, options);
}

async function scoreReal(classifier: DigitClassifier, data: DataSource): Promise<DigitScore> {
  const { frames, height, width, channels } = data;
  const clips = await Promise.all(Array.from({ length: data.length }, (_, i) => data.clip(i)));
  const video = new Video(
    clips.map((clip) => clip.video),
    frames,
    height,
    width,
    channels,
  );
  return score(
    clips.map(({ labels = [] }) => labels),
    await readVideo(classifier, video),
  );
}

/** The digits of each clip, ascending: every frame's log-odds count alike. */
export async function readVideo(classifier: DigitClassifier, video: Video): Promise<number[][]> {
  const { frames, height, width } = video;
  const { digits, device } = classifier;
  const found: number[][] = [];
  for (let from = 0; from < video.clips.length; from += BATCH) {
    const clips = video.clips.slice(from, from + BATCH).map((clip) => grey(clip, video.channels));
    const logOdds = scope(() =>
      noGrad(() => {
        const pixels = new Uint8Array(Buffer.concat(clips));
        const x = Tensor.from(pixels, [clips.length, frames, height, width, 1], { device });
        return classifier.forward(affine(x, 1 / 255));
      }),
    );
    const values = (await logOdds.read().finally(() => logOdds.dispose())) as Float32Array;
    for (const i of clips.keys()) {
      const sum = new Float64Array(DIGIT_CLASSES * digits);
      for (let k = 0; k < frames * sum.length; k++) sum[k % sum.length] += values[i * frames * sum.length + k];
      found.push(likeliestDigits(sum, digits));
    }
  }
  return found;
}

function grey(clip: Uint8Array, channels: number): Uint8Array {
  if (channels === 1) return clip;
  return Uint8Array.from({ length: clip.length / channels }, (_, i) => {
    const pixel = clip.subarray(i * channels, (i + 1) * channels);
    return Math.round(pixel.reduce((sum, value) => sum + value, 0) / channels);
  });
}

const counts = (digits: readonly number[]): number[] =>
  Array.from({ length: DIGIT_CLASSES }, (_, digit) => digits.filter((d) => d === digit).length);

/** Compares what clips show with what was read in them. */
export function score(shown: readonly (readonly number[])[], found: readonly (readonly number[])[]): DigitScore {
  const perDigit = Array.from({ length: DIGIT_CLASSES }, () => ({ shown: 0, recognised: 0 }));
  let right = 0;
  for (const [i, labels] of shown.entries()) {
    const [there, read] = [counts(labels), counts(found[i])];
    for (const [digit, row] of perDigit.entries()) {
      row.shown += there[digit];
      row.recognised += Math.min(there[digit], read[digit]);
    }
    if (there.every((count, digit) => count === read[digit])) right++;
  }
  return { clips: shown.length, accuracy: right / shown.length, perDigit };
}

function annotated(video: Video, labels: readonly number[][], found: readonly number[][]): Video {
  const prompts = video.prompts.map((prompt, i) => {
    const right = [...labels[i]].sort((a, b) => a - b).join() === found[i].join();
    return right ? prompt : `${prompt} (read ${found[i].join(", ")})`;
  });
  return new Video(video.clips, video.frames, video.height, video.width, video.channels, prompts);
}
