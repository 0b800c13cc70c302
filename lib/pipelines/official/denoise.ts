/** The loop over the steps: from the start to tokens without noise. */
import { joinSamples } from "../../diffusion/guidance.js";
import {
  branchCount,
  type ConditionedState,
  flowStep,
  type Guidance,
  guide,
  stirGiven,
  takesPart,
  usesNegative,
  usesPerturbed,
} from "../../diffusion/official/index.js";
import { stopIfAborted } from "../../errors.js";
import type { TextEmbedding } from "../../models/text-encoder/index.js";
import { type LtxVideoTransformer, type RopeTables, type SkipMode, skipMask } from "../../models/transformer/index.js";
import { noGrad, scope, Tensor } from "../../tensor/index.js";
import type { NoiseSource } from "./noise.js";

/** A step that was made. */
export interface DenoisingStep {
  /** Counted from 1. */
  step: number;
  steps: number;
  /** The time at which the step began: 1 is noise. */
  timestep: number;
  /** The tokens (B, L, C) now, those of conditioning items first; freed when the listener is done. */
  tokens: Tensor;
  /** Of a multi-scale pipeline: 1 or 2. */
  pass: number;
}

/** Features of the prompts; `negative` is there where a step needs it. */
export interface PromptFeatures {
  positive: TextEmbedding;
  negative: TextEmbedding | null;
}

export interface DenoiseOptions {
  transformer: LtxVideoTransformer;
  /** Of the state's tokens. */
  rope: RopeTables;
  text: PromptFeatures;
  /** Falling. */
  timesteps: readonly number[];
  /** For each of them. */
  guidance: readonly Guidance[];
  stgMode: SkipMode;
  /** Amplitude of the noise that stirs given tokens. */
  imageCondNoiseScale: number;
  stochasticSampling: boolean;
  noise: NoiseSource;
  signal?: AbortSignal;
  onStep?: (step: Omit<DenoisingStep, "pass">) => void | Promise<void>;
}

/**
 * Makes all steps, starting from the state's tokens, which stay the caller's.
 * @returns tokens (B, L, C), the caller's
 * @throws {LtxError} `aborted`
 */
export async function denoise(state: ConditionedState, options: DenoiseOptions): Promise<Tensor> {
  const { timesteps, signal } = options;
  let tokens: Tensor | null = null;
  try {
    for (const [i, timestep] of timesteps.entries()) {
      stopIfAborted(signal);
      const before: Tensor = tokens ?? state.tokens;
      const after = noGrad(() => scope(() => step(before, state, i, options)));
      tokens?.dispose();
      tokens = after;
      await tokens.ready();
      await options.onStep?.({ step: i + 1, steps: timesteps.length, timestep, tokens });
    }
    stopIfAborted(signal);
    const result = tokens as Tensor;
    tokens = null;
    return result;
  } finally {
    tokens?.dispose();
  }
}

function step(
  tokens: Tensor,
  { tokens: start, strengths, groups }: ConditionedState,
  i: number,
  options: DenoiseOptions,
) {
  const { timesteps, noise, imageCondNoiseScale: scale } = options;
  const time = timesteps[i];
  const guidance = options.guidance[i];
  let x = tokens;
  if (strengths && scale > 0) {
    x = stirGiven(x, { start, strengths, noise: noise.draw("image_cond", x.shape), scale, time });
  }
  // What is given needs no more steps than its strength leaves noise.
  const limits = strengths?.map((strength) => 1 - strength);
  const times = limits?.map((limit) => Math.min(time, limit)) ?? Float32Array.of(time);
  const { grid } = groups[0];
  const velocity = guide(answers(x, limits ? every(times, grid[1] * grid[2]) : times, guidance, options), guidance);
  return flowStep(x, velocity, {
    timesteps,
    time: limits ? times : time,
    noise: options.stochasticSampling ? noise.draw("stochastic", x.shape) : null,
    active: limits ? Array.from(limits, (limit) => takesPart(time, limit)) : null,
  });
}

/** Every n-th number: tokens of one latent frame have one time. */
const every = (values: Float32Array, n: number): Float32Array => values.filter((_, i) => i % n === 0);

/** What the network says of each branch that the guidance uses. */
function answers(x: Tensor, times: Float32Array, guidance: Guidance, options: DenoiseOptions): Tensor {
  const { transformer, rope, text, stgMode } = options;
  const { device, shape } = x;
  const [batch] = shape;
  const branches = branchCount(guidance);
  const negative = usesNegative(guidance) ? text.negative : null;
  const texts = [...(negative ? [negative] : []), ...Array(branches - (negative ? 1 : 0)).fill(text.positive)];
  const rows = branches * batch;
  const each = Float32Array.from({ length: rows * times.length }, (_, k) => times[k % times.length]);
  const perturbed = Array.from({ length: batch }, (_, b) => rows - batch + b);
  return transformer.forwardTokens(
    branches === 1 ? x : joinSamples(Array(branches).fill(x)),
    Tensor.from(each, [rows, times.length], { device }),
    joinSamples(texts.map(({ embeddings }) => embeddings)),
    joinSamples(texts.map(({ mask }) => mask)),
    {
      rope,
      skip: usesPerturbed(guidance)
        ? { mode: stgMode, mask: skipMask(transformer.config.num_layers, rows, guidance.skipBlocks, perturbed) }
        : null,
    },
  );
}
