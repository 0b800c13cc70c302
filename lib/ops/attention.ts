import { checkOptions, finite, show } from "../arguments.js";
import { check } from "../errors.js";
import { checkFloats, checkSingles, empty, launch, record, type Tensor, wantsGrad } from "../tensor/index.js";

export interface AttentionOptions {
  heads: number;
  /** RMS norm of q and k over their full width, before the heads are split: weights (D) f32. */
  qWeight?: Tensor | null;
  kWeight?: Tensor | null;
  eps?: number;
  /** Rotary embedding of q and k: cos and sin (L, D) f32, constants. */
  cos?: Tensor | null;
  sin?: Tensor | null;
  /** Added to the scores: (B, Lk) f32, a constant. */
  mask?: Tensor | null;
  /** Added to the scores of every sample: (heads, Lq, Lk) f32. Without gradients only. */
  bias?: Tensor | null;
  /** Of the scores; 1/√(head width) unless given. */
  scale?: number;
}

const OPTIONS = ["heads", "qWeight", "kWeight", "eps", "cos", "sin", "mask", "bias", "scale"] as const;

/**
 * softmax(q̂ k̂ᵀ · scale + mask + bias) v for each head, where q̂ and k̂ are q and k after the optional norm and rotation, in one
 * op. q (B,Lq,D), k, v (B,Lk,D), result (B,Lq,D), D = heads · head width. Backward recomputes the probabilities.
 * @throws {LtxError} `shape_mismatch`, `dtype_mismatch`; `unavailable` when a gradient is wanted through scores with a bias.
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): Tensor {
  checkOptions("attention", options, OPTIONS);
  const {
    heads,
    qWeight = null,
    kWeight = null,
    eps = 1e-5,
    cos = null,
    sin = null,
    mask = null,
    bias = null,
  } = options;
  checkFloats("attention", { q, k, v }, { qWeight, kWeight, cos, sin, mask, bias });
  finite("attention", "eps", eps, 0);
  const [batch, length, width] = q.shape;
  const keys = k.shape[1];
  check(
    q.dims === 3 && k.dims === 3 && k.shape.join() === v.shape.join() && k.shape[0] === batch && k.shape[2] === width,
    "shape_mismatch",
    () => {
      return `[attention] expects q (B,Lq,D) and k, v (B,Lk,D), got [${q.shape}], [${k.shape}], [${v.shape}]`;
    },
  );
  check(
    q.dtype === k.dtype && k.dtype === v.dtype,
    "dtype_mismatch",
    () => `[attention] q, k, v are ${q.dtype}, ${k.dtype}, ${v.dtype}`,
  );
  check(Number.isSafeInteger(heads) && heads > 0 && width % heads === 0, "shape_mismatch", () => {
    return `[attention] width ${width} does not divide into ${show(heads)} heads`;
  });
  check(
    (qWeight === null) === (kWeight === null) && (!qWeight || (qWeight.size === width && kWeight?.size === width)),
    "shape_mismatch",
    () => {
      return `[attention] norm weights expect [${width}] both, got ${qWeight} and ${kWeight}`;
    },
  );
  check(
    (!cos && !sin) || (cos?.size === length * width && sin?.size === cos.size && length === keys && width % 2 === 0),
    "shape_mismatch",
    () => {
      return `[attention] rotation tables expect [${length},${width}] of an even width and as many keys as queries, got cos ${cos} and sin ${sin} for ${keys} keys`;
    },
  );
  check(
    !mask || mask.size === batch * keys,
    "shape_mismatch",
    () => `[attention] mask expects [${batch},${keys}], got [${mask?.shape}]`,
  );
  check(!bias || bias.shape.join() === [heads, length, keys].join(), "shape_mismatch", () => {
    return `[attention] bias expects [${heads},${length},${keys}], got [${bias?.shape}]`;
  });
  check(!bias || !wantsGrad(q, k, v, qWeight, kWeight, bias), "unavailable", () => {
    return "[attention] scores with a bias have no gradient: run the model inside noGrad, or detach its inputs";
  });
  checkSingles("attention", { qWeight, kWeight, cos, sin, mask, bias });
  const scale = finite("attention", "scale", options.scale ?? (width > 0 ? (width / heads) ** -0.5 : 1));
  const scalars = [heads, eps, scale];
  const { device } = q;
  const y = empty(q.shape, { dtype: q.dtype, device });
  const lse = empty([batch, heads, length], { device });
  const qRstd = qWeight ? empty([batch, length], { device }) : null;
  const kRstd = kWeight ? empty([batch, keys], { device }) : null;
  const inputs = [q, k, v, qWeight, kWeight, cos, sin, mask];
  const outputs = [y, lse, qRstd, kRstd];
  launch("attention", [...inputs, bias, ...outputs], scalars);
  record("attention", y, [q, k, v, qWeight, kWeight], [...inputs, ...outputs], (grad) => {
    const grads = [q, k, v, qWeight, kWeight].map((t) => t && empty(t.shape, { dtype: t.dtype, device }));
    launch("attention_backward", [...inputs, ...outputs, grad, ...grads], scalars);
    return grads;
  });
  for (const t of [lse, qRstd, kRstd]) t?.dispose(); // the tape, if any, holds them
  return y;
}

/** Rotates neighbouring channels: x (B, L, D), cos, sin (L, D) f32: (a, b) to (a·cos - b·sin, b·cos + a·sin). */
export function rope(x: Tensor, cos: Tensor, sin: Tensor): Tensor {
  checkFloats("rope", { x, cos, sin });
  const [, length, width] = x.shape;
  check(
    x.dims === 3 && width % 2 === 0 && cos.size === length * width && sin.size === cos.size,
    "shape_mismatch",
    () => {
      return `[rope] tables [${cos.shape}], [${sin.shape}] do not fit input [${x.shape}]`;
    },
  );
  checkSingles("rope", { cos, sin });
  const y = empty(x.shape, { dtype: x.dtype, device: x.device });
  launch("rope", [x, cos, sin, y], [0]);
  return record("rope", y, [x], [cos, sin], (grad) => {
    const dx = empty(x.shape, { dtype: x.dtype, device: x.device });
    launch("rope", [grad, cos, sin, dx], [1]);
    return [dx];
  });
}
