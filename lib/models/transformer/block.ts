import { type Initializer, Linear, Module, type Parameter } from "../../nn/index.js";
import { add, addRows, affine, gatedAdd, mixRows, mul, silu, sliceLast, unary } from "../../ops/index.js";
import type { Tensor } from "../../tensor/index.js";
import { Attention, BlockNorm } from "./attention.js";
import type { RopeTables } from "./rope.js";
import type { SkippedRows } from "./skip-layers.js";

export type AdaptiveNorm = "single_scale_shift" | "single_scale" | "none";

/**
 * What the feed-forward applies to its hidden values, under the names of the reference's classes: GELU exactly or by its
 * tanh form, GELU of one half that gates the other, or x·sigmoid(1.702 x), which the references call
 * `geglu-approximate` although nothing is gated.
 */
export type FeedForwardActivation = "gelu" | "gelu-approximate" | "geglu" | "geglu-approximate";

export interface BlockConfig {
  dim: number;
  heads: number;
  contextDim: number;
  adaptiveNorm: AdaptiveNorm;
  norm: "rms_norm" | "layer_norm";
  normAffine: boolean;
  normEps: number;
  qkNorm: "rms_norm" | "layer_norm" | null;
  attentionBias: boolean;
  activation: FeedForwardActivation;
}

/** The rows of a block's modulation table, by what they do. */
interface AdaRows {
  count: number;
  attention: { shift: number | null; scale: number; gate: number };
  feedForward: { shift: number | null; scale: number; gate: number };
}

const adaRows: Record<Exclude<AdaptiveNorm, "none">, AdaRows> = {
  single_scale_shift: {
    count: 6,
    attention: { shift: 0, scale: 1, gate: 2 },
    feedForward: { shift: 3, scale: 4, gate: 5 },
  },
  single_scale: {
    count: 4,
    attention: { shift: null, scale: 0, gate: 1 },
    feedForward: { shift: null, scale: 2, gate: 3 },
  },
};

/** How many rows of width D the shared time embedding gives each block. */
export function adaRowCount(kind: AdaptiveNorm): number {
  return kind === "none" ? 6 : adaRows[kind].count; // the reference makes (and never reads) six for `none`
}

/** Linear to 4·D (8·D for `geglu`), activation, Linear back. Keys `net.0.proj`, `net.2`. */
export class FeedForward extends Module {
  net: [Module & { proj: Linear }, null, Linear];

  constructor(
    dim: number,
    private readonly _activation: FeedForwardActivation,
    init: Initializer,
  ) {
    super();
    const up = new (class extends Module {
      proj = new Linear(dim, (_activation === "geglu" ? 8 : 4) * dim, init);
    })();
    this.net = [up, null, new Linear(4 * dim, dim, init)];
  }

  forward(x: Tensor): Tensor {
    return this.net[2].forward(this.hidden(x, this.net[0].proj));
  }

  private hidden(x: Tensor, proj: Linear): Tensor {
    switch (this._activation) {
      case "gelu":
        return proj.forward(x, "gelu");
      case "gelu-approximate":
        return proj.forward(x, "gelu_tanh");
      case "geglu": {
        const both = proj.forward(x);
        const width = both.shape[both.dims - 1] / 2;
        return mul(sliceLast(both, 0, width), unary("gelu", sliceLast(both, width, width)));
      }
      case "geglu-approximate":
        return affine(silu(affine(proj.forward(x), 1.702)), 1 / 1.702);
    }
  }
}

/**
 * One block: self-attention, cross-attention to the text, feed-forward, each added to the stream. With adaptive norms the
 * first and the last are modulated and gated by the time, and the cross-attention reads the stream without a norm.
 */
export class TransformerBlock extends Module {
  norm1: BlockNorm;
  attn1: Attention;
  attn2_norm: BlockNorm | null;
  attn2: Attention;
  norm2: BlockNorm;
  ff: FeedForward;
  scale_shift_table: Parameter | null;
  private _rows: AdaRows | null;

  constructor(config: BlockConfig, init: Initializer) {
    super();
    const { dim, heads, contextDim, qkNorm, attentionBias: bias, adaptiveNorm } = config;
    const norm = () => new BlockNorm(dim, init, { kind: config.norm, eps: config.normEps, affine: config.normAffine });
    this._rows = adaptiveNorm === "none" ? null : adaRows[adaptiveNorm];
    this.norm1 = norm();
    this.attn1 = new Attention({ dim, heads, qkNorm, bias }, init);
    this.attn2_norm = adaptiveNorm === "none" ? norm() : null;
    this.attn2 = new Attention({ dim, heads, contextDim, qkNorm, bias }, init);
    this.norm2 = norm();
    this.ff = new FeedForward(dim, config.activation, init);
    this.scale_shift_table = this._rows && init.normal([this._rows.count, dim], dim ** -0.5);
  }

  /**
   * x (B,L,D), text (B,Lt,contextDim) in x's dtype, mask (B,Lt) f32 added to the scores, ada (G,rows,D) f32 shared by all
   * blocks (unread without adaptive norms). `skip` names samples that do without parts of the block.
   * @returns (B,L,D) in x's dtype.
   */
  forward(
    x: Tensor,
    ada: Tensor | null,
    rope: RopeTables | null,
    text: Tensor,
    mask: Tensor | null,
    skip: SkippedRows | null = null,
  ): Tensor {
    const table = ada && this.scale_shift_table ? addRows(ada, this.scale_shift_table) : null;
    const { attention, feedForward } = this._rows ?? {};
    const attended = modulated(this.norm1, x, table, attention);
    const inside = skip?.mode === "attention_values" || skip?.mode === "attention_skip";
    let h = residual(
      x,
      this.attn1.forward(attended, attended, { rope, skip: inside ? skip : null }),
      table,
      attention?.gate,
    );
    if (skip?.mode === "residual") h = mixRows(h, x, skip.kept, skip.skipped);
    h = add(h, this.attn2.forward(this.attn2_norm?.forward(h) ?? h, text, { mask }));
    h = residual(h, this.ff.forward(modulated(this.norm2, h, table, feedForward)), table, feedForward?.gate);
    return skip?.mode === "transformer_block" ? mixRows(h, x, skip.kept, skip.skipped) : h;
  }
}

/** norm(x)·(1 + scale) + shift, in one pass where there is a shift. */
function modulated(norm: BlockNorm, x: Tensor, table: Tensor | null, rows: AdaRows["attention"] | undefined): Tensor {
  if (!table || !rows) return norm.forward(x);
  if (rows.shift !== null) return norm.forward(x, { ada: table, shift: rows.shift, scale: rows.scale });
  const normed = norm.forward(x);
  return gatedAdd(normed, normed, table, rows.scale);
}

function residual(x: Tensor, h: Tensor, table: Tensor | null, gate: number | undefined): Tensor {
  return table && gate !== undefined ? gatedAdd(x, h, table, gate) : add(x, h);
}
