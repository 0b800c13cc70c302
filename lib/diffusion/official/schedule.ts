/**
 * The times of the official pipeline's denoising steps: 1 is pure noise, 0 the clean latents, and the network predicts
 * noise - x0. A schedule lists the time before each step, falling; 0 follows after the last one.
 */
import type { SchedulerConfig } from "../../config/official/scheduler.js";
import { check } from "../../errors.js";

export interface ScheduleOptions {
  /** How many steps, before any are skipped. */
  numInferenceSteps?: number;
  /** The times themselves, instead of a number of steps; of these, too, some may be skipped. */
  timesteps?: readonly number[];
  /** Steps to leave out at the beginning: for a start that is not pure noise. */
  skipInitialInferenceSteps?: number;
  /** Steps to leave out at the end: the last one that is made goes straight to 0. */
  skipFinalInferenceSteps?: number;
  /** Latent pixels of one sample: frames · height · width. */
  tokens: number;
  /**
   * Keeps the official float32 arithmetic also where it makes times of very many tokens the same. Otherwise those, and
   * only those, are computed exactly.
   */
  float32?: boolean;
}

/**
 * The schedule as float32 values.
 * @throws {LtxError} `invalid_argument`, `config`
 */
export function inferenceTimesteps(config: SchedulerConfig, options: ScheduleOptions): number[] {
  const {
    timesteps,
    numInferenceSteps,
    skipInitialInferenceSteps: first = 0,
    skipFinalInferenceSteps: last = 0,
  } = options;
  const times = timesteps === undefined ? spreadTimes(config, numInferenceSteps, options) : checkedTimesteps(timesteps);
  const whole = (n: number) => Number.isSafeInteger(n) && n >= 0;
  check(whole(first) && whole(last) && first + last < times.length, "invalid_argument", () => {
    return (
      `[schedule] skipInitialInferenceSteps and skipFinalInferenceSteps must be whole numbers that leave one of the ` +
      `${times.length} steps, got ${first} and ${last}`
    );
  });
  return times.map(Math.fround).slice(first, times.length - last);
}

function spreadTimes(
  config: SchedulerConfig,
  wanted: number | undefined,
  { tokens, float32 = false }: ScheduleOptions,
): number[] {
  check(wanted !== undefined && Number.isSafeInteger(wanted) && wanted >= 1, "invalid_argument", () => {
    return `[schedule] numInferenceSteps must be a whole number from 1, got ${wanted}`;
  });
  const times = spread(config, Math.min(wanted, config.num_train_timesteps));
  // Rounded as officially: it decides which entry of a guidance list holds for a first time of 1 or the number below 1.
  const official = shifted(config, times, tokens, Math.fround);
  const falling = official.every((t, i) => i === 0 || t < official[i - 1]);
  return float32 || falling ? official : shifted(config, times, tokens, exactly);
}

function checkedTimesteps(timesteps: readonly number[]): number[] {
  const times = Array.isArray(timesteps) ? timesteps.map(Math.fround) : [];
  const falling =
    times.length > 0 && times.every((t, i) => t > 0 && t <= (i === 0 ? 1 : times[i - 1]) && t !== times[i - 1]);
  check(falling, "invalid_argument", () => {
    return `[schedule] timesteps must be a list of falling numbers in (0, 1], got ${JSON.stringify(timesteps)}`;
  });
  return times;
}

/** The times before they are shifted. */
function spread({ sampler, shift }: SchedulerConfig, steps: number): number[] {
  const uniform = Array.from({ length: steps }, (_, i) => (steps - i) / steps);
  switch (sampler) {
    case "Uniform":
      return uniform;
    case "Constant":
      return uniform.map((t) => logisticShift(t, shift ?? 0, exactly));
    case "LinearQuadratic":
      return uniform.map((_, i) => 1 - linearQuadratic(i, steps));
  }
}

/** Of the way from noise, what the linear half of the steps covers. */
const LINEAR_PART = 0.025;

/** The way gone before step i of n: a line through the first half of the steps, then a parabola that it touches. */
function linearQuadratic(i: number, steps: number): number {
  const linear = Math.floor(steps / 2);
  if (linear === 0) return 0;
  const slope = LINEAR_PART / linear;
  const beyond = Math.max(0, i - linear) / (steps - linear);
  return slope * i + (1 - slope * steps) * beyond ** 2;
}

/** How numbers are rounded after each operation. */
type Round = (value: number) => number;
const exactly: Round = (value) => value;

/** t with the odds of its noise multiplied by e^shift. The order of operations is PyTorch's. */
function logisticShift(t: number, shift: number, round: Round): number {
  const factor = round(Math.exp(shift));
  return round(round(1 / round(factor + round(round(1 / t) - 1))) * factor);
}

/** SD3's shift by the number of tokens: a line through these two points, beyond them too. */
const SD3_SHIFT = { tokens: [1024, 4096], shift: [0.95, 2.05] } as const;

function sd3Shift(count: number): number {
  const { tokens, shift } = SD3_SHIFT;
  return shift[0] + ((count - tokens[0]) / (tokens[1] - tokens[0])) * (shift[1] - shift[0]);
}

function shifted(config: SchedulerConfig, times: number[], tokens: number, round: Round): number[] {
  const { shifting, base_resolution: base, target_shift_terminal: terminal } = config;
  if (shifting === null) return times;
  const move = (shift: number) => times.map((t) => logisticShift(round(t), shift, round));
  if (shifting === "SimpleDiffusion") return move(Math.log(tokens / (base ?? 1024)));
  const moved = move(sd3Shift(tokens));
  const end = round(1 - moved[moved.length - 1]);
  // A single step starts at 1, and there is no way to stretch.
  if (terminal === null || end <= 0) return moved;
  const scale = round(end / round(1 - terminal));
  return moved.map((t) => round(1 - round(round(1 - t) / scale)));
}

/** Times closer than this are the same. */
const TIME_EPS = 1e-6;

/** The time that a step from t leads to: the largest of the schedule below t, or 0. */
export function nextTime(timesteps: readonly number[], t: number): number {
  return timesteps.find((candidate) => candidate < t - TIME_EPS) ?? 0;
}

/** Whether a token that must not be noisier than `limit` takes part in the step from t. */
export const takesPart = (t: number, limit: number): boolean => t - TIME_EPS < limit;

/**
 * Of a list of numbers by time the one for t: that of the first of `guidanceTimesteps` (falling) that t has reached, or
 * the last one.
 */
export function entryAt(guidanceTimesteps: readonly number[], t: number): number {
  const index = guidanceTimesteps.findIndex((limit) => Math.fround(limit) <= Math.fround(t));
  return index < 0 ? guidanceTimesteps.length - 1 : index;
}
