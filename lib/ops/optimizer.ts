import { checkOptions, finite, integer, list } from "../arguments.js";
import { check } from "../errors.js";
import { checkFloats, checkLists, checkOperands, checkSingles, empty, launch, type Tensor } from "../tensor/index.js";
import { checkAdam } from "./hyperparameters.js";

/** The L2 norm over all values of a list of tensors: (1) f32. */
export function globalNorm(tensors: readonly Tensor[]): Tensor {
  checkFloats(
    "global_norm",
    Object.fromEntries(list("global_norm", "tensors", tensors).map((t, i) => [`tensors[${i}]`, t])),
  );
  const norm = empty([1], { device: tensors[0]?.device });
  launch("global_norm", [norm, ...tensors]);
  return norm;
}

export interface AdamState {
  params: readonly Tensor[];
  grads: readonly Tensor[];
  m: readonly Tensor[];
  v: readonly Tensor[];
}

export interface AdamStep {
  lr: number;
  betas: readonly [number, number];
  eps: number;
  weightDecay: number;
  /** AdamW's decay of the weights instead of the gradients. */
  decoupled: boolean;
  /** Counted from 1. */
  step: number;
  /** Gradients are scaled by min(1, maxNorm / (norm + 1e-6)); nothing happens when the norm is not finite. */
  norm?: Tensor | null;
  maxNorm?: number;
}

const STATE = ["params", "grads", "m", "v"] as const;
const STEP = ["lr", "betas", "eps", "weightDecay", "decoupled", "step", "norm", "maxNorm"] as const;

/**
 * One update of all parameters in one pass, in place: lists of f32 tensors, one of each for every parameter.
 * @throws {LtxError} `shape_mismatch` when lists or sizes differ, `dtype_mismatch`, `invalid_argument`.
 */
export function adamUpdate(state: AdamState, o: AdamStep): void {
  checkOptions("adam", state, STATE);
  checkOptions("adam", o, STEP);
  const { params, grads, m, v } = state;
  checkLists("adam", { params, grads, m, v });
  const { norm = null, maxNorm = 0 } = o;
  checkAdam({ ...o, maxNorm });
  integer("adam", "step", o.step, 1);
  checkOperands("adam", {}, { norm, params: params[0] });
  checkSingles("adam", { norm });
  check(!norm || norm.size === 1, "shape_mismatch", () => `[adam] norm expects one element, got [${norm?.shape}]`);
  const scalars = [
    o.lr,
    o.betas[0],
    o.betas[1],
    o.eps,
    o.weightDecay,
    o.decoupled ? 1 : 0,
    1 - o.betas[0] ** o.step,
    1 - o.betas[1] ** o.step,
    maxNorm,
  ];
  launch("adam", [norm, ...params, ...grads, ...m, ...v], scalars);
}

/**
 * average = decay · average + (1 - decay) · value for each pair of f32 tensors, in place.
 * @throws {LtxError} `shape_mismatch` when lists or sizes differ, `dtype_mismatch`, `invalid_argument`.
 */
export function emaUpdate(averages: readonly Tensor[], values: readonly Tensor[], decay: number): void {
  checkLists("ema", { averages, values });
  finite("ema", "decay", decay, 0, 1);
  launch("ema", [...averages, ...values], [decay]);
}
