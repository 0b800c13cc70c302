/** What is asked of an official pipeline, checked against the models before anything is computed. */
import { framesFault, sizeFault } from "../../config/geometry.js";
import {
  type Guidance,
  type GuidanceOptions,
  inferenceTimesteps,
  planGuidance,
} from "../../diffusion/official/index.js";
import type { PixelClip } from "../../formats/media/clip.js";
import type { TextEmbedding } from "../../models/text-encoder/index.js";
import { SKIP_MODES, type SkipMode } from "../../models/transformer/index.js";
import type { Tensor } from "../../tensor/index.js";
import { type ConditioningItem, checkClips, checkItem, inUnit, refuse } from "./check-media.js";
import { checkPrompts, type PromptOptions } from "./check-prompts.js";
import type { ModelFacts } from "./models.js";
import type { NoiseSource } from "./noise.js";

/** How one pass is drawn; names and defaults are the official pipeline's. */
export interface PassOptions extends GuidanceOptions {
  /** 20 unless given. */
  numInferenceSteps?: number;
  /** The time of each step, falling from 1 (noise): instead of a number of steps. */
  timesteps?: readonly number[] | null;
  skipInitialInferenceSteps?: number;
  skipFinalInferenceSteps?: number;
  /** What the branch does without that STG steers away from. */
  stgMode?: SkipMode;
  /** Each step takes the state all the way and noises it anew. */
  stochasticSampling?: boolean;
  /** Amplitude of noise on what is given at full strength, so that it comes to life; 0.15 unless given. */
  imageCondNoiseScale?: number;
  /** For decoders that expect noise: the time that they are told, for all samples or each of them; 0 unless given. */
  decodeTimestep?: number | readonly number[];
  /** The share of noise they get; `decodeTimestep` unless given. */
  decodeNoiseScale?: number | readonly number[] | null;
  /** Draws in what is far from the latents' mean: 0 (off) to 1. */
  toneMapCompressionRatio?: number;
}

export interface LtxVideoOptions extends PassOptions, PromptOptions {
  /** Multiples of 32; 704 and 1216 unless given. */
  height?: number;
  width?: number;
  /** 8k + 1; 121 unless given. */
  numFrames?: number;
  /** 30 unless given. */
  frameRate?: number;
  conditioningItems?: readonly ConditioningItem[];
  /** A video to start from, noised to the first time, of any size; a list has one for each sample. */
  mediaItems?: PixelClip | readonly PixelClip[];
  /** The same as normalised latents (B, f, h, w, C) f32. */
  latents?: Tensor;
  seed?: number;
  /** Where random numbers come from, instead of the seed. */
  noise?: NoiseSource;
  /** Stops between steps and stages. */
  signal?: AbortSignal;
}

/** Options with their defaults, checked. */
export interface Request {
  prompts: readonly string[] | null;
  negativePrompts: readonly string[];
  embeds: { positive: TextEmbedding; negative: TextEmbedding | null } | null;
  /** Samples: prompts times videos of each. */
  batch: number;
  repeats: number;
  height: number;
  width: number;
  frames: number;
  /** Latent frames, height and width. */
  grid: readonly [number, number, number];
  frameRate: number;
  timesteps: readonly number[];
  guidance: readonly Guidance[];
  stgMode: SkipMode;
  stochasticSampling: boolean;
  imageCondNoiseScale: number;
  decodeTimestep: readonly number[];
  decodeNoiseScale: readonly number[];
  toneMapCompressionRatio: number;
  conditioningItems: readonly ReturnType<typeof checkItem>[];
  mediaItems: PixelClip | readonly PixelClip[] | null;
  latents: Tensor | null;
}

/**
 * @param latentsFollow whether the start is not noise, though the options have none yet
 * @throws {LtxError} `invalid_argument` with what was found and what is possible
 */
export function checkRequest(options: LtxVideoOptions, facts: ModelFacts, latentsFollow = false): Request {
  const { height = 704, width = 1216, numFrames = 121, frameRate = 30 } = options;
  const { spatialFactor: space, temporalFactor: time } = facts;
  const fault =
    sizeFault("height", height, space) ?? sizeFault("width", width, space) ?? framesFault("numFrames", numFrames, time);
  if (fault) refuse(fault);
  if (!(Number.isFinite(frameRate) && frameRate > 0)) refuse(`frameRate ${frameRate}: needs a number above 0`);
  const grid = [(numFrames - 1) / time + 1, height / space, width / space] as const;
  const text = checkPrompts(options, facts.transformer);
  const { batch } = text;
  const timesteps = checkedTimesteps(options, facts, grid[0] * grid[1] * grid[2]);
  const guidance = planGuidance(timesteps, options, facts.transformer.num_layers);
  if (text.embeds && !text.embeds.negative && guidance.some(({ guidanceScale }) => guidanceScale > 1)) {
    refuse("promptEmbeds with guidanceScale above 1 need negativePromptEmbeds and negativePromptAttentionMask");
  }
  const { mediaItems = null, latents = null } = options;
  checkStart({ mediaItems, latents, latentsFollow, time: timesteps[0] });
  const latentShape = [batch, ...grid, facts.latentChannels];
  if (latents && (latents.shape.join() !== latentShape.join() || latents.dtype !== "f32")) {
    refuse(`latents must be f32 [${latentShape}], got ${latents}`);
  }
  if (mediaItems) checkClips("mediaItems", mediaItems, batch, (frames) => frames === numFrames, `${numFrames} frames`);
  const { decodeTimestep = 0 } = options;
  const items = options.conditioningItems ?? [];
  return {
    ...text,
    height,
    width,
    frames: numFrames,
    grid,
    frameRate,
    timesteps,
    guidance,
    ...drawingOptions(options),
    decodeTimestep: eachSample("decodeTimestep", decodeTimestep, batch),
    decodeNoiseScale: eachSample("decodeNoiseScale", options.decodeNoiseScale ?? decodeTimestep, batch),
    conditioningItems: items.map((item, i) => checkItem(item, i, { batch, numFrames, time })),
    mediaItems,
    latents,
  };
}

function drawingOptions(options: LtxVideoOptions) {
  const { stgMode = "attention_values", stochasticSampling = false } = options;
  const { toneMapCompressionRatio = 0, imageCondNoiseScale = 0.15 } = options;
  if (!SKIP_MODES.includes(stgMode)) {
    refuse(`stgMode ${JSON.stringify(stgMode)}: needs one of ${SKIP_MODES.join(", ")}`);
  }
  inUnit("toneMapCompressionRatio", toneMapCompressionRatio);
  if (!(Number.isFinite(imageCondNoiseScale) && imageCondNoiseScale >= 0)) {
    refuse(`imageCondNoiseScale ${imageCondNoiseScale}: needs a number from 0`);
  }
  return { stgMode, stochasticSampling, toneMapCompressionRatio, imageCondNoiseScale };
}

/** Pure noise leaves nothing of a video that one starts from. */
function checkStart(start: { mediaItems: unknown; latents: unknown; latentsFollow: boolean; time: number }): void {
  const { mediaItems, latents, latentsFollow, time } = start;
  if (mediaItems && latents) refuse("mediaItems and latents exclude each other");
  if (time < 1 || !(mediaItems || latents || latentsFollow)) return;
  const what = mediaItems ? "mediaItems" : latents ? "latents" : "the first pass's latents";
  refuse(
    `${what} would be replaced by noise, as the first step begins at time 1: give skipInitialInferenceSteps, or ` +
      "timesteps below 1",
  );
}

function checkedTimesteps(options: LtxVideoOptions, facts: ModelFacts, tokens: number): number[] {
  const { timesteps, numInferenceSteps = 20, skipInitialInferenceSteps, skipFinalInferenceSteps } = options;
  const times = inferenceTimesteps(facts.scheduler, {
    ...(timesteps ? { timesteps } : { numInferenceSteps }),
    skipInitialInferenceSteps,
    skipFinalInferenceSteps,
    tokens,
  });
  const { allowedInferenceSteps: allowed } = facts;
  const unknown = allowed && times.find((t) => !allowed.some((known) => Math.abs(t - known) < 5e-5));
  if (allowed && unknown !== null && unknown !== undefined) {
    refuse(
      `the checkpoint was distilled for the times ${allowed.join(", ")}, and ${unknown.toFixed(4)} is none of them: ` +
        "give timesteps from these",
    );
  }
  return times;
}

function eachSample(name: string, value: number | readonly number[], batch: number): number[] {
  const list = typeof value === "number" ? Array<number>(batch).fill(value) : [...value];
  if (list.length !== batch) refuse(`${name} has ${list.length} entries, the batch ${batch}`);
  for (const entry of list) inUnit(name, entry);
  return list;
}
