import { empty, launch, type Tensor } from "../tensor/index.js";

/** The L2 norm over all values of a list of tensors: (1) f32. */
export function globalNorm(tensors: readonly Tensor[]): Tensor {
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

/** One update of all parameters in one pass, in place. */
export function adamUpdate(state: AdamState, o: AdamStep): void {
  const scalars = [
    o.lr,
    o.betas[0],
    o.betas[1],
    o.eps,
    o.weightDecay,
    o.decoupled ? 1 : 0,
    1 - o.betas[0] ** o.step,
    1 - o.betas[1] ** o.step,
    o.maxNorm ?? 0,
  ];
  launch("adam", [o.norm, ...state.params, ...state.grads, ...state.m, ...state.v], scalars);
}

/** average = decay · average + (1 - decay) · value for each pair, in place. */
export function emaUpdate(averages: readonly Tensor[], values: readonly Tensor[], decay: number): void {
  launch("ema", [...averages, ...values], [decay]);
}
