import { type Initializer, LayerNorm, Linear, Module, type Parameter } from "../../nn/index.js";
import { attention, mixRows, normAct } from "../../ops/index.js";
import type { Tensor } from "../../tensor/index.js";
import type { RopeTables } from "./rope.js";
import type { SkippedRows } from "./skip-layers.js";

/** Of the norms of q and k; fixed in the reference, unlike that of the blocks. */
const QK_EPS = 1e-5;

/** RMS norm with a weight, whose arithmetic is fused into the op that follows. */
export class RmsNorm extends Module {
  weight: Parameter;

  constructor(channels: number, init: Initializer) {
    super();
    this.weight = init.constant([channels], 1);
  }
}

export interface AttentionConfig {
  dim: number;
  heads: number;
  /** The width of what keys and values are made from; `dim` unless given. */
  contextDim?: number;
  qkNorm: "rms_norm" | "layer_norm" | null;
  bias: boolean;
}

/** Multi-head attention whose q and k are normed over the full width, before the heads are split. */
export class Attention extends Module {
  q_norm: RmsNorm | LayerNorm | null;
  k_norm: RmsNorm | LayerNorm | null;
  to_q: Linear;
  to_k: Linear;
  to_v: Linear;
  /** An array, as the reference's keys are `to_out.0.*`. */
  to_out: [Linear];

  constructor(
    private _config: AttentionConfig,
    init: Initializer,
  ) {
    super();
    const { dim, contextDim = dim, qkNorm, bias } = _config;
    const norm = () => {
      if (qkNorm === "rms_norm") return new RmsNorm(dim, init);
      return qkNorm === "layer_norm" ? new LayerNorm(dim, init, { eps: QK_EPS }) : null;
    };
    this.q_norm = norm();
    this.k_norm = norm();
    this.to_q = new Linear(dim, dim, init, { bias });
    this.to_k = new Linear(contextDim, dim, init, { bias });
    this.to_v = new Linear(contextDim, dim, init, { bias });
    this.to_out = [new Linear(dim, dim, init)];
  }

  /**
   * x (B,Lq,D), context (B,Lk,C) in one dtype; `rope` turns q and k, `mask` (B,Lk) f32 is added to the scores. The samples
   * that `skip` names go to the last Linear as they came, or as their values (Lk = Lq), without attention.
   * @returns (B,Lq,D) in x's dtype.
   */
  forward(
    x: Tensor,
    context: Tensor,
    options: { rope?: RopeTables | null; mask?: Tensor | null; skip?: SkippedRows | null } = {},
  ): Tensor {
    const { q_norm, k_norm } = this;
    const rms = q_norm instanceof RmsNorm && k_norm instanceof RmsNorm;
    let q = this.to_q.forward(x);
    let k = this.to_k.forward(context);
    if (q_norm instanceof LayerNorm) q = q_norm.forward(q);
    if (k_norm instanceof LayerNorm) k = k_norm.forward(k);
    const v = this.to_v.forward(context);
    const y = attention(q, k, v, {
      heads: this._config.heads,
      eps: QK_EPS,
      qWeight: rms ? q_norm.weight : null,
      kWeight: rms ? k_norm.weight : null,
      cos: options.rope?.cos,
      sin: options.rope?.sin,
      mask: options.mask,
    });
    const { skip = null } = options;
    if (!skip) return this.to_out[0].forward(y);
    const instead = skip.mode === "attention_values" ? v : x;
    return this.to_out[0].forward(mixRows(y, instead, skip.kept, skip.skipped));
  }
}

/** RMS or layer norm of a block, with the modulation that follows it; parameters only where the model has them. */
export class BlockNorm extends Module {
  weight: Parameter | null;
  bias: Parameter | null;

  constructor(
    channels: number,
    init: Initializer,
    private _options: { kind: "rms_norm" | "layer_norm"; eps: number; affine: boolean },
  ) {
    super();
    const { kind, affine } = _options;
    this.weight = affine ? init.constant([channels], 1) : null;
    this.bias = affine && kind === "layer_norm" ? init.constant([channels], 0) : null;
  }

  /** `modulation` names rows of ada (G,rows,C): norm(x)·(1 + scale) + shift. */
  forward(x: Tensor, modulation: { ada: Tensor; shift: number; scale: number } | null = null): Tensor {
    const { kind, eps } = this._options;
    return normAct(x, { kind, eps, weight: this.weight, bias: this.bias, modulation });
  }
}
