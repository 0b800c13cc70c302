/**
 * How a video is decoded piece by piece. A decoder's memory is that of its last blocks, where frames are large, and these
 * see only a few positions around each pixel. So the first blocks run on the whole video and the others on tiles that
 * overlap by all that they see: the pixels that are kept are those of the whole video, there is nothing to blend.
 */

import { checkShape, number } from "../../arguments.js";
import { check, LtxError } from "../../errors.js";
import { showBytes } from "../../tensor/byte-size.js";
import type { Shape } from "../../tensor/index.js";
import type { Stride } from "./blocks.js";
import { type DecoderConfig, divisor } from "./decoder.js";
import { layersOf, STRIDES } from "./encoder.js";
import type { Range } from "./noise.js";

/** How much of the free memory a decoding may plan with: the rest is for what plans don't count. */
export const DECODE_BUDGET = 0.85;

export interface TilePlan {
  /** The blocks before this one run on the whole video. */
  from: number;
  /** Into how many parts frames, height and width are cut; all 1: the whole video at once. */
  parts: readonly [frames: number, height: number, width: number];
  /** What decoding takes at most beyond weights and latents, in bytes; an estimate. */
  bytes: number;
  /** The arithmetic in relation to that of decoding the whole at once. */
  work: number;
}

/** A tile along one axis. */
export interface Part {
  /** What it takes of the positions before the first block that runs on tiles. */
  input: Range;
  /** What it gives of the video. */
  core: Range;
  /** Where in the video the first position is that comes out of it. */
  offset: number;
}

/** A block of the decoder, or what follows them (`up_blocks.length`): some convolutions, then space and time unfold. */
interface Stage {
  convolutions: number;
  stride: Stride;
  /** Whether each output depends on all positions. */
  global: boolean;
  /** Channels of the input. */
  channels: number;
  /** Multiplications per input position. */
  work: number;
  /** Values alive at most, per input position. */
  values: number;
}

type Axis = 0 | 1 | 2;
const TIME: Axis = 0;
const AXES = [0, 1, 2] as const;

const TAPS = 27;
/** What attention keeps beside its input: queries, keys, values, their results and the sums with them. */
const ATTENTION_VALUES = 7;
/** In how many parts an axis is cut at most. */
const MOST_PARTS = 16;

/** The stages of a decoder in the order in which they run, on activations of `bytesPerValue`. */
function decoderStages(config: DecoderConfig, bytesPerValue = 4): Stage[] {
  const { blocks, patch_size: patch, norm_layer: norm } = config;
  // Other edges than zeros are added in copies of the input.
  const copies = (config.spatial_padding_mode ?? "zeros") === "zeros" ? 0 : 2;
  let width = blocks.reduce((channels, block) => channels * divisor(block), config.base_channels);
  const stages = blocks.map((block): Stage => {
    const [name, params] = block;
    const narrow = width / divisor(block);
    const stage = { convolutions: 2, stride: [1, 1, 1] as Stride, global: norm === "group_norm", channels: width };
    const before = width;
    width = narrow;
    if (name === "res_x" || name === "attn_res_x") {
      const layers = layersOf(params);
      const attends = name === "attn_res_x";
      return {
        ...stage,
        convolutions: 2 * layers,
        global: stage.global || attends,
        work: layers * before * before * (2 * TAPS + (attends ? 4 : 0)),
        values: before * (attends ? ATTENTION_VALUES : 3 + copies),
      };
    }
    if (name === "res_x_y") {
      const work = TAPS * narrow * (before + narrow) + before * narrow;
      return { ...stage, work, values: (2 + copies) * before + 2 * narrow };
    }
    const stride = STRIDES[name as keyof typeof STRIDES];
    const unfolded = stride[0] * stride[1] * stride[2] * narrow;
    const residual = typeof params !== "number" && params.residual === true;
    return {
      ...stage,
      convolutions: 1,
      stride,
      global: false,
      work: TAPS * before * unfolded,
      values: Math.max(before + (residual ? 3 : 2) * unfolded, (1 + 2 * copies) * before),
    };
  });
  const pixels = config.out_channels * patch ** 2;
  stages.push({
    convolutions: 1,
    stride: [1, patch, patch],
    global: norm === "group_norm",
    channels: width,
    work: TAPS * width * pixels,
    // Pixels are unpatched, and then cast to f32 if they aren't.
    values: Math.max((2 + copies) * width, width + pixels, (bytesPerValue === 4 ? 2 : 1 + 4 / bytesPerValue) * pixels),
  });
  return stages;
}

/** How many positions come out of `count` of them along an axis. A doubled time is without its first frame. */
function unfold(stage: Stage, axis: Axis, count: number): number {
  const factor = stage.stride[axis];
  return axis === TIME && factor > 1 ? factor * count - 1 : factor * count;
}

/** The input positions that outputs [from, to) of a stage depend on; it may reach beyond the ends. */
function seen(stage: Stage, axis: Axis, [from, to]: Range, causal: boolean): Range {
  const { convolutions, stride } = stage;
  const factor = stride[axis];
  const last = axis === TIME ? Math.ceil((to - 1) / factor) : Math.floor((to - 1) / factor);
  const [before, behind] = axis === TIME && causal ? [2, 0] : [1, 1];
  return [Math.floor(from / factor) - before * convolutions, last + 1 + behind * convolutions];
}

/** Positions along an axis before each stage, and behind the last one. */
function sizes(stages: readonly Stage[], axis: Axis, latent: number): number[] {
  const result = [latent];
  for (const stage of stages) result.push(unfold(stage, axis, result[result.length - 1]));
  return result;
}

/** The parts of an axis of `latent` positions whose `count` cores have, as near as can be, the same size. */
export function cut(config: DecoderConfig, axis: Axis, latent: number, from: number, count: number): Part[] {
  return cutStages(decoderStages(config), axis, latent, from, count, config.causal);
}

function cutStages(
  stages: readonly Stage[],
  axis: Axis,
  latent: number,
  from: number,
  count: number,
  causal: boolean,
): Part[] {
  const size = sizes(stages, axis, latent);
  const tail = stages.slice(from);
  const scale = tail.reduce((product, { stride }) => product * stride[axis], 1);
  // Where the outputs of position i begin: those of the first one are a single frame where time is doubled.
  const begin = (i: number) => (axis === TIME ? Math.max(0, scale * (i - 1) + 1) : scale * i);
  return Array.from({ length: count }, (_, k) => {
    const core: Range = [
      begin(Math.floor((k * size[from]) / count)),
      begin(Math.floor(((k + 1) * size[from]) / count)),
    ];
    const input = tail.reduceRight<Range>((range, stage, j) => {
      const [first, end] = seen(stage, axis, range, causal);
      return [Math.max(first, 0), Math.min(end, size[from + j])];
    }, core);
    return { input, core, offset: scale * input[0] };
  });
}

/** Of all parts of an axis: the positions before each stage, summed and of the largest part. */
interface Extent {
  total: number[];
  largest: number[];
  /** Of the cores in the video. */
  core: number;
}

function extentOf(stages: readonly Stage[], axis: Axis, from: number, parts: readonly Part[]): Extent {
  const lengths = parts.map(({ input }) => sizes(stages.slice(from), axis, input[1] - input[0]));
  const over = (reduce: (values: number[]) => number) => lengths[0].map((_, j) => reduce(lengths.map((l) => l[j])));
  return {
    total: over((values) => values.reduce((sum, v) => sum + v, 0)),
    largest: over((values) => Math.max(...values)),
    core: Math.max(...parts.map(({ core }) => core[1] - core[0])),
  };
}

/**
 * The plan with the least work among those that `budget` bytes suffice for: the whole video at once where it fits.
 * @param latents (B,f,h,w,C), of activations with `bytesPerValue`
 * @throws {LtxError} `out_of_memory` when even the smallest tiles don't fit
 */
export function planDecode(config: DecoderConfig, latents: Shape, budget: number, bytesPerValue: number): TilePlan {
  checkShape("decode", latents);
  check(latents.length === 5, "invalid_argument", () => {
    return `[decode] latents have the shape [${latents}], expected [batch, frames, height, width, channels]`;
  });
  number("decode", "budget", budget);
  const [batch, ...grid] = latents;
  const stages = decoderStages(config, bytesPerValue);
  const all = AXES.map((axis) => sizes(stages, axis, grid[axis]));
  const peak = Math.max(...peaksOf(stages, all, bytesPerValue));
  const whole: TilePlan = { from: stages.length, parts: [1, 1, 1], bytes: batch * peak, work: 1 };
  if (whole.bytes <= budget) return whole;
  let best: TilePlan | null = null;
  let least = whole.bytes;
  for (const plan of tiledPlans(config, stages, latents, bytesPerValue)) {
    least = Math.min(least, plan.bytes);
    if (plan.bytes <= budget && plan.work < (best?.work ?? Number.POSITIVE_INFINITY)) best = plan;
  }
  if (best) return best;
  const [frames, height, width] = AXES.map((axis) => all[axis][stages.length]);
  throw new LtxError(
    "out_of_memory",
    `[video vae] decoding ${batch} of ${frames}x${height}x${width} needs ${showBytes(least)} even in tiles, ${showBytes(budget)} ` +
      "are free: lower num_frames, height or width, or offload other models",
  );
}

/** Positions before stage j, all axes together. */
const volumeOf = (all: readonly number[][], j: number): number => all[0][j] * all[1][j] * all[2][j];

/** What each stage takes of the whole of a sample, in bytes. */
const peaksOf = (stages: readonly Stage[], all: readonly number[][], bytesPerValue: number): number[] =>
  stages.map(({ values }, j) => values * volumeOf(all, j) * bytesPerValue);

/** Every plan of one sample after the other in tiles. */
function* tiledPlans(
  config: DecoderConfig,
  stages: readonly Stage[],
  [batch, ...grid]: Shape,
  bytesPerValue: number,
): Generator<TilePlan> {
  const all = AXES.map((axis) => sizes(stages, axis, grid[axis]));
  const peaks = peaksOf(stages, all, bytesPerValue);
  const workBefore = [0];
  for (const [j, { work }] of stages.entries()) workBefore.push(workBefore[j] + work * volumeOf(all, j));
  const wholeWork = workBefore[stages.length];
  const pixel = config.out_channels * 4;
  const video = batch * volumeOf(all, stages.length) * pixel;
  const firstLocal = stages.map(({ global }) => global).lastIndexOf(true) + 1;
  for (let from = firstLocal; from < stages.length; from++) {
    const tail = stages.slice(from);
    const head = Math.max(0, ...peaks.slice(0, from));
    const kept = volumeOf(all, from) * stages[from].channels * bytesPerValue;
    const [frames, heights, widths] = AXES.map((axis) =>
      Array.from({ length: Math.min(all[axis][from], MOST_PARTS) }, (_, i) =>
        extentOf(stages, axis, from, cutStages(stages, axis, grid[axis], from, i + 1, config.causal)),
      ),
    );
    for (const [t, f] of frames.entries()) {
      for (const [y, h] of heights.entries()) {
        for (const [x, w] of widths.entries()) {
          let tile = 0;
          let work = workBefore[from];
          for (let j = 0; j < tail.length; j++) {
            tile = Math.max(tile, tail[j].values * f.largest[j] * h.largest[j] * w.largest[j] * bytesPerValue);
            work += tail[j].work * f.total[j] * h.total[j] * w.total[j];
          }
          // Tiles in f32 that are joined to a band of full width, and a copy of it.
          const band = (x > 0 ? 2 : 1) * f.core * h.core * all[2][stages.length] * pixel;
          const bytes = video + Math.max(head, kept + band + tile);
          yield { from, parts: [t + 1, y + 1, x + 1], bytes, work: work / wholeWork };
        }
      }
    }
  }
}
