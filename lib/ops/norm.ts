import { checkOptions, choice, finite, integer } from "../arguments.js";
import { check } from "../errors.js";
import { checkFloats, empty, launch, record, type Shape, type Tensor } from "../tensor/index.js";
import { Norm, type NormKind, Unary } from "./enums.js";

/** Rows of a modulation table: which one shifts and which one scales. */
export interface Modulation {
  /** (G, rows, C): each run of (rows of x) / G rows is modulated by its own entry, e.g. G = batch. */
  ada: Tensor;
  shift: number;
  scale: number;
}

export interface NormOptions {
  kind: NormKind;
  eps?: number;
  /** (C) f32, with `bias`; rms and pixel norm take a weight alone. */
  weight?: Tensor | null;
  bias?: Tensor | null;
  modulation?: Modulation | null;
  activation?: "none" | "silu";
  /** Of group norm. */
  groups?: number;
}

const OPTIONS = ["kind", "eps", "weight", "bias", "modulation", "activation", "groups"] as const;
const ACTIVATIONS = { none: Unary.none, silu: Unary.silu };

const statsShape = (x: Tensor, kind: NormKind, groups: number): Shape => {
  const rows = x.shape.slice(0, -1);
  if (kind === "none") return [1];
  if (kind === "layer_norm") return [...rows, 2];
  if (kind === "group_norm") return [x.shape[0], groups, 2];
  return rows;
};

/**
 * act((norm(x) · weight + bias) · (1 + scale) + shift) in one pass over x (…, C), channels last.
 * Pixel norm is x / √(mean(x²) + eps); group norm takes its statistics over all positions of a sample (first dimension).
 * @throws {LtxError} `shape_mismatch` when weight, bias, table or groups don't fit the channels.
 */
export function normAct(x: Tensor, options: NormOptions): Tensor {
  checkOptions("norm", options, OPTIONS);
  const { kind, eps = 1e-6, weight = null, bias = null, modulation = null, activation = "none", groups = 1 } = options;
  const norm = choice("norm", "kind", kind, Norm);
  const act = choice("norm", "activation", activation, ACTIVATIONS);
  finite("norm", "eps", eps, 0);
  integer("norm", "groups", groups, 1);
  if (modulation) checkOptions("norm", modulation, ["ada", "shift", "scale"]);
  const ada = modulation?.ada ?? null;
  const shift = integer("norm", "the row that shifts", modulation ? modulation.shift : 0, 0);
  const scale = integer("norm", "the row that scales", modulation ? modulation.scale : 0, 0);
  checkFloats("norm", { x }, { weight, bias, ada });
  check(x.dims > 0, "shape_mismatch", () => `[norm] expects (…,C), got [${x.shape}]`);
  const channels = x.shape[x.dims - 1];
  for (const [name, p] of [
    ["weight", weight],
    ["bias", bias],
  ] as const) {
    check(!p || (p.size === channels && p.dtype === "f32"), "shape_mismatch", () => {
      return `[norm] ${name} expects f32 [${channels}], got ${p} (input shape [${x.shape}])`;
    });
  }
  check(kind !== "group_norm" || channels % groups === 0, "shape_mismatch", () => {
    return `[norm] ${channels} channels do not divide into ${groups} groups`;
  });
  check(!modulation || ada, "invalid_argument", () => "[norm] the modulation has no table: give it as ada");
  if (ada) {
    const rows = channels ? x.size / channels : 0;
    const fits =
      ada.dims === 3 && ada.shape[2] === channels && (rows === 0 || (ada.shape[0] > 0 && rows % ada.shape[0] === 0));
    check(fits && Math.max(shift, scale) < ada.shape[1], "shape_mismatch", () => {
      return `[norm] modulation table [${ada.shape}] with rows ${shift} and ${scale} does not fit input [${x.shape}]`;
    });
  }
  const scalars = [norm, act, eps, groups, shift, scale];
  const y = empty(x.shape, { dtype: x.dtype, device: x.device });
  const stats = empty(statsShape(x, kind, groups), { device: x.device });
  launch("norm_act", [x, weight, bias, ada, y, stats], scalars);
  record("norm_act", y, [x, weight, bias, ada], [x, weight, bias, ada, stats], (grad, needs) => {
    const grads = [x, weight, bias, ada].map((t, i) =>
      t && (needs[i] || i === 0) ? empty(t.shape, { dtype: t.dtype, device: t.device }) : null,
    );
    launch("norm_act_backward", [x, weight, bias, ada, stats, grad, ...grads], scalars);
    return grads;
  });
  stats.dispose(); // the tape, if any, holds it
  return y;
}
