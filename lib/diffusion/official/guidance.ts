/**
 * How the official pipeline steers the network: classifier-free guidance (CFG, CFG*), spatiotemporal guidance (STG: away
 * from what the network answers with some attention layers perturbed) and rescaling, each with a strength by time.
 */
import { check } from "../../errors.js";
import {
  affine,
  axpby,
  full,
  meanSamples,
  mixRows,
  mul,
  reciprocal,
  sliceFirst,
  square,
  sub,
  sumSamples,
  unary,
} from "../../ops/index.js";
import { scope, type Tensor } from "../../tensor/index.js";
import { entryAt } from "./schedule.js";

export interface GuidanceOptions {
  /** Weight of CFG; it is on above 1. A list gives a number for each of `guidanceTimesteps`. */
  guidanceScale?: number | readonly number[];
  /** Weight of STG; it is on above 0. */
  stgScale?: number | readonly number[];
  /** How much of the excess contrast STG takes back, from 0 on; 1 is off, as in the official pipeline. */
  rescalingScale?: number | readonly number[];
  /** Falling times from which on the entries of the lists hold. */
  guidanceTimesteps?: readonly number[] | null;
  /** The transformer's blocks that STG perturbs: one list, or one for each of `guidanceTimesteps`. */
  skipBlockList?: readonly number[] | readonly (readonly number[])[] | null;
  /** CFG*: the negative answer is first scaled to the part of it that the positive one has. */
  cfgStarRescale?: boolean;
}

/** What holds for one step. */
export interface Guidance {
  guidanceScale: number;
  stgScale: number;
  rescalingScale: number;
  cfgStarRescale: boolean;
  /** The blocks of the perturbed branch; empty where there is none. */
  skipBlocks: readonly number[];
}

/** Whether the network must answer the negative prompt too. */
export const usesNegative = ({ guidanceScale }: Guidance): boolean => guidanceScale > 1;
/** Whether the network must answer with perturbed blocks too. */
export const usesPerturbed = ({ skipBlocks }: Guidance): boolean => skipBlocks.length > 0;
/** How many samples the network answers for each of the batch. */
export const branchCount = (guidance: Guidance): number =>
  1 + Number(usesNegative(guidance)) + Number(usesPerturbed(guidance));

/**
 * The guidance of every step of a schedule.
 * @param blocks how many the transformer has
 * @throws {LtxError} `invalid_argument`
 */
export function planGuidance(timesteps: readonly number[], options: GuidanceOptions, blocks: number): Guidance[] {
  const { guidanceTimesteps: limits = null, cfgStarRescale = false } = options;
  check(limits === null || isFalling(limits), "invalid_argument", () => {
    return `[guidance] guidanceTimesteps must be a list of falling numbers, got ${JSON.stringify(limits)}`;
  });
  const byTime = <T>(name: string, list: readonly T[]): ((t: number) => T) => {
    if (list.length === 1) return () => list[0];
    check(limits !== null, "invalid_argument", () => {
      return `[guidance] ${name} is a list of ${list.length} entries: give guidanceTimesteps with as many, or one value`;
    });
    check(list.length === limits.length, "invalid_argument", () => {
      return `[guidance] ${name} has ${list.length} entries, guidanceTimesteps has ${limits.length}: they must be as many`;
    });
    return (t) => list[entryAt(limits, t)];
  };
  const numbers = (name: string, value: number | readonly number[]): ((t: number) => number) => {
    const list = Array.isArray(value) ? value : [value];
    check(list.length > 0 && list.every(Number.isFinite), "invalid_argument", () => {
      return `[guidance] ${name} must be a number or a list of numbers, got ${JSON.stringify(value)}`;
    });
    return Array.isArray(value) ? byTime(name, value) : () => value as number;
  };
  const scale = numbers("guidanceScale", options.guidanceScale ?? 4.5);
  const stg = numbers("stgScale", options.stgScale ?? 1);
  const rescaling = numbers("rescalingScale", options.rescalingScale ?? 0.7);
  const skipped = skipBlocksByTime(options.skipBlockList ?? [], byTime);
  return timesteps.map((t) => {
    const on = stg(t) > 0;
    const skipBlocks = on ? skipped(t) : [];
    const inside = skipBlocks.every((block) => Number.isInteger(block) && block >= 0 && block < blocks);
    check(inside, "invalid_argument", () => {
      return `[guidance] skipBlockList names ${JSON.stringify(skipBlocks)}, the transformer's blocks are 0 to ${blocks - 1}`;
    });
    return {
      guidanceScale: scale(t),
      stgScale: on ? stg(t) : 0,
      rescalingScale: on ? rescaling(t) : 1,
      cfgStarRescale,
      skipBlocks: [...new Set(skipBlocks)],
    };
  });
}

const isFalling = (values: readonly number[]): boolean =>
  Array.isArray(values) &&
  values.length > 0 &&
  values.every((v, i) => Number.isFinite(v) && (i === 0 || v < values[i - 1]));

function skipBlocksByTime(
  value: readonly number[] | readonly (readonly number[])[],
  byTime: <T>(name: string, list: readonly T[]) => (t: number) => T,
): (t: number) => readonly number[] {
  const isList = (entry: unknown): boolean => Array.isArray(entry);
  const lists = Array.isArray(value) && value.length > 0 && value.every(isList);
  check(Array.isArray(value) && (lists || !value.some(isList)), "invalid_argument", () => {
    return `[guidance] skipBlockList must be a list of block numbers, or a list of such lists, got ${JSON.stringify(value)}`;
  });
  if (lists) return byTime("skipBlockList", value as readonly (readonly number[])[]);
  return () => value as readonly number[];
}

/**
 * The velocity (B, L, C) that the network's answers (branches · B, L, C) lead to: they are those to the negative prompts,
 * to the positive ones, and to the positive ones with perturbed blocks, as far as the guidance uses them.
 */
export function guide(answers: Tensor, guidance: Guidance): Tensor {
  const { guidanceScale, stgScale, rescalingScale, cfgStarRescale } = guidance;
  return scope(() => {
    const batch = answers.shape[0] / branchCount(guidance);
    const branch = (i: number) => sliceFirst(answers, i * batch, batch);
    const first = Number(usesNegative(guidance));
    const positive = branch(first);
    let result = positive;
    if (first) {
      const negative = cfgStarRescale ? projected(branch(0), positive) : branch(0);
      result = axpby(guidanceScale, positive, 1 - guidanceScale, negative);
    }
    if (usesPerturbed(guidance)) result = axpby(1, result, stgScale, sub(positive, branch(first + 1)));
    return rescalingScale === 1 ? result : rescaled(result, positive, rescalingScale);
  });
}

/** The negative answer times ⟨positive, negative⟩ / |negative|², sample by sample. */
function projected(negative: Tensor, positive: Tensor): Tensor {
  const size = affine(sumSamples(square(negative)), 1, 1e-8);
  const factor = mul(sumSamples(mul(positive, negative)), reciprocal(size));
  return mixRows(negative, null, factor, null);
}

/** `x` with its standard deviation moved towards that of `to`: all the way for strength 1. */
function rescaled(x: Tensor, to: Tensor, strength: number): Tensor {
  const ratio = mul(deviations(to), reciprocal(deviations(x)));
  return mixRows(x, null, affine(ratio, strength, 1 - strength), null);
}

/** The standard deviation over each sample, unbiased: (B). */
function deviations(x: Tensor): Tensor {
  const samples = x.shape[0];
  const mean = meanSamples(x);
  const centred = mixRows(x, full(x.shape, 1, { device: x.device }), null, affine(mean, -1));
  return unary("sqrt", affine(sumSamples(square(centred)), 1 / (x.size / samples - 1)));
}
