import { integer } from "../arguments.js";
import { check, LtxError, stopIfAborted } from "../errors.js";
import { affine, axpby, full, normal, type RandomKey } from "../ops/index.js";
import { keep, noGrad, scope, type Tensor } from "../tensor/index.js";
import { guided } from "./guidance.js";
import { type HeldFrames, heldVelocity, keepHeld } from "./held-frames.js";
import { MIN_TIME, type Velocity } from "./rectified-flow.js";

export interface SamplerOptions {
  /** The model; with guidance it answers for twice the batch, see {@link guided}. */
  velocity: Velocity;
  /** Pure noise (B, …) f32, the state at t = 0. Stays the caller's. */
  start: Tensor;
  /** N: the way from noise (t = 0) to data (t = 1) is divided into N equal steps. */
  steps: number;
  /** How many of the N steps at the end are left out, for a decoder that removes the rest of the noise itself. */
  initialTimestep?: number;
  /** Weight of classifier-free guidance; null or 1 for none. */
  guidance?: number | null;
  /** Frames whose end is known: the others are denoised beside them and grow out of them. */
  held?: HeldFrames | null;
  /**
   * Every step is made that many times, with fresh noise in between that leads back to its beginning; 1 unless given.
   * It lets free frames follow held ones (Lugmayr et al., "RePaint", CVPR 2022): what a step makes of them is noised
   * again and seen once more beside the known frames.
   */
  resample?: { times: number; key: RandomKey };
  /** Stops between two steps. */
  signal?: AbortSignal;
  /** Waits for the device after that many steps, so that the queue stays short and other work gets its turn. */
  syncEvery?: number;
}

/** One step done (or queued, see `syncEvery`). */
export interface SamplerStep {
  /** Counted from 1. */
  step: number;
  /** How many there will be: N - initialTimestep. */
  steps: number;
  /** What the model was told for this step. */
  modelTime: number;
  /** The flow time t of the state now: step / N. */
  time: number;
  /** The state now, owned by the sampler and valid until the next step, except the last one, which is the caller's. */
  latents: Tensor;
}

/** The model's time before step k = 0 … N - 1 of N: from {@link MIN_TIME} up in equal steps, never 1. */
export const modelTime = (k: number, steps: number): number =>
  (integer("sampler", "k", k, 0) / integer("sampler", "steps", steps, 1)) * (1 - MIN_TIME) + MIN_TIME;

/**
 * What is left of the noise at flow time t, as a decoder must be told. The state x_t = t·x0 + (1 - t)·n is, divided by t,
 * x0 + ((1 - t)/t)·n: clean data plus noise of amplitude (1 - t)/t, which is how a decoder trained on z + a·ε sees its
 * input. Where the flow runs on x0 = z·s, the amplitude in the decoder's own units is (1 - t)/(t·s).
 */
export function remainingNoise(t: number): number {
  check(t > 0 && t <= 1, "invalid_argument", () => `[sampler] the flow time must lie in (0, 1], got ${t}`);
  return (1 - t) / t;
}

/** The draw of fresh noise for repetition r of step k: the key's purpose, apart by 65536 for each. */
const PURPOSE_STRIDE = 65536;

/**
 * The state at time t0 from the one at t1: t0·x0 + (1 - t0)·noise for new noise, of which as much comes from `state` as
 * t1 leaves. `state` belongs to the enclosing scope.
 */
function backTo(t0: number, t1: number, state: Tensor, key: RandomKey): Tensor {
  const kept = t0 / t1;
  const added = Math.sqrt(Math.max(0, (1 - t0) ** 2 - (kept * (1 - t1)) ** 2));
  return axpby(kept, state, added, normal(state.shape, key, { device: state.device }));
}

/**
 * Euler's method along the flow, from noise at t = 0: x += v(x, t)/N, N - initialTimestep times. The model is told the
 * reference's times, {@link modelTime}; the step is 1/N for any N. The generator yields after every step; its last
 * `latents` belong to the caller, everything else is freed, also when the loop is left early.
 * @throws {LtxError} `invalid_argument`; `aborted` when the signal stops it.
 */
export async function* eulerSteps(options: SamplerOptions): AsyncGenerator<SamplerStep, void, undefined> {
  const { start, steps: total, initialTimestep = 0, guidance = null, held = null, signal, syncEvery = 2 } = options;
  const { times, key } = options.resample ?? { times: 1, key: { seed: 0, step: 0, purpose: 0 } };
  const positive = (n: number) => Number.isSafeInteger(n) && n > 0;
  check(positive(total), "invalid_argument", () => `[sampler] steps must be an integer from 1, got ${total}`);
  check(
    positive(syncEvery),
    "invalid_argument",
    () => `[sampler] syncEvery must be an integer from 1, got ${syncEvery}`,
  );
  check(
    Number.isInteger(initialTimestep) && initialTimestep >= 0 && initialTimestep < total,
    "invalid_argument",
    () => {
      return `[sampler] initialTimestep must be an integer from 0 to steps - 1 = ${total - 1}, got ${initialTimestep}`;
    },
  );
  check(positive(times), "invalid_argument", () => `[sampler] resample must be an integer from 1, got ${times}`);
  check(times === 1 || key.purpose + PURPOSE_STRIDE * total * times < 2 ** 32, "invalid_argument", () => {
    return `[sampler] ${total} steps, each made ${times} times, need more draws of noise than there are: use fewer`;
  });
  const velocity = guided(options.velocity, guidance);
  const steps = total - initialTimestep;
  let state: Tensor | null = null;
  try {
    for (let k = 0; k < steps; k++) {
      const time = modelTime(k, total);
      for (let again = 0; again < times; again++) {
        stopIfAborted(signal, "[sampler] stopped by the caller");
        const before: Tensor = state ?? start;
        const next = noGrad(() =>
          scope(() => {
            const t = full([start.shape[0]], time, { device: start.device });
            const v = velocity(before, t);
            const after = axpby(1, before, 1 / total, held ? heldVelocity(v, held) : v);
            if (again + 1 === times) return after;
            const purpose = key.purpose + PURPOSE_STRIDE * (k * times + again);
            const back = backTo(k / total, (k + 1) / total, after, { ...key, purpose });
            return held ? keepHeld(back, before, held) : back;
          }),
        );
        state?.dispose();
        state = keep(next);
        const done = k * times + again + 1;
        if (done % syncEvery === 0 || done === steps * times) await state.ready();
      }
      const latents = state as Tensor;
      if (k + 1 === steps) state = null;
      yield { step: k + 1, steps, modelTime: time, time: (k + 1) / total, latents };
    }
  } finally {
    state?.dispose();
  }
}

/** What sampling gives: data plus noise of a known amplitude, as a decoder takes it. */
export interface Sample {
  /** x0 + noise·n (B, …) f32, i.e. the final state divided by its flow time; the caller's. */
  latents: Tensor;
  /** {@link remainingNoise} of the final time: 0 unless steps were left out. */
  noise: number;
}

/** Runs {@link eulerSteps} to its end. `onStep` hears how many steps are done, and of how many. */
export async function eulerSample(
  options: SamplerOptions & { onStep?: (done: number, total: number) => void },
): Promise<Sample> {
  for await (const { step, steps, time, latents } of eulerSteps(options)) {
    if (step < steps) {
      options.onStep?.(step, steps);
      continue;
    }
    let sample = latents;
    try {
      if (time < 1) sample = keep(noGrad(() => scope(() => affine(latents, 1 / time))));
      options.onStep?.(step, steps);
      return { latents: sample, noise: remainingNoise(time) };
    } catch (error) {
      sample.dispose();
      throw error;
    } finally {
      if (sample !== latents) latents.dispose();
    }
  }
  throw new LtxError("invalid_argument", "[sampler] no step was made");
}
