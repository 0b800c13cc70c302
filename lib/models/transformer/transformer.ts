import { innerDim } from "../../config/geometry.js";
import type { TransformerConfig } from "../../config/transformer.js";
import { check } from "../../errors.js";
import { type Initializer, Linear, Module, type Parameter, TimestepEmbedding } from "../../nn/index.js";
import { addRows, affine, cast, depthToSpace, normAct, reshape, silu } from "../../ops/index.js";
import { checkpoint, scope, Tensor } from "../../tensor/index.js";
import { adaRowCount, TransformerBlock } from "./block.js";
import {
  absolutePositions,
  type Grid,
  GridCache,
  type Positions,
  prepareRope,
  type RopeOptions,
  type RopeTables,
  ropeAt,
  ropeCache,
} from "./rope.js";
import { type SkipLayers, type SkippedRows, skippedRows } from "./skip-layers.js";

/** Of the last norm; the reference's `norm_eps` is that of the blocks alone. */
const OUT_EPS = 1e-6;
/** Added to the scores of tokens that the mask drops. */
const MASKED = -10000;

/** What the transformer reads of a configuration. */
export type TransformerOptions = Pick<
  TransformerConfig,
  | "input_channels"
  | "out_channels"
  | "num_layers"
  | "num_attention_heads"
  | "attention_head_dim"
  | "cross_attention_dim"
  | "caption_channels"
  | "activation_fn"
  | "attention_bias"
  | "norm_elementwise_affine"
  | "norm_eps"
  | "qk_norm"
  | "standardization_norm"
  | "adaptive_norm"
  | "positional_embedding_type"
  | "positional_embedding_theta"
  | "positional_embedding_max_pos"
  | "project_to_2d_pos"
  | "timestep_scale_multiplier"
>;

type BlockInputs = readonly [
  h: Tensor,
  ada: Tensor | null,
  cos: Tensor | null,
  sin: Tensor | null,
  context: Tensor,
  mask: Tensor | null,
  kept: Tensor | null,
  skipped: Tensor | null,
];

/** Where the tokens of {@link LtxVideoTransformer.forwardTokens} are, and what is left out. */
export interface TokenOptions {
  /** Of tokens (L,D), see {@link LtxVideoTransformer.ropeAt}. */
  rope?: RopeTables | null;
  /** (L,1.5·D), of models with absolute positions. */
  absolute?: Tensor | null;
  skip?: SkipLayers | null;
}

/** Linear, GELU (tanh), Linear: the text's features to the width of the stream. */
class CaptionProjection extends Module {
  linear_1: Linear;
  linear_2: Linear;

  constructor(inputs: number, dim: number, init: Initializer) {
    super();
    this.linear_1 = new Linear(inputs, dim, init);
    this.linear_2 = new Linear(dim, dim, init);
  }

  forward(x: Tensor): Tensor {
    return this.linear_2.forward(this.linear_1.forward(x, "gelu_tanh"));
  }
}

/** PixArt's adaLN-single: one time embedding, from which one Linear makes the modulation of all blocks. */
class AdaLayerNormSingle extends Module {
  emb: TimestepEmbedding;
  linear: Linear;

  constructor(dim: number, rows: number, init: Initializer) {
    super();
    this.emb = new TimestepEmbedding(dim, init);
    this.linear = new Linear(dim, rows * dim, init);
  }
}

/**
 * The score network of LTX-Video: latent voxels are tokens, a stack of blocks with attention among them and to the text,
 * modulated by the flow time. Parameters are f32 under the reference's keys; activations are in `computeDtype`, the time
 * embedding and the modulation in f32.
 */
export class LtxVideoTransformer extends Module {
  patchify_proj: Linear;
  to_2d_proj: Linear | null;
  adaln_single: AdaLayerNormSingle;
  caption_projection: CaptionProjection | null;
  transformer_blocks: TransformerBlock[];
  scale_shift_table: Parameter;
  proj_out: Linear;
  private _rope: ReturnType<typeof ropeCache> | null = null;
  private _absolute: GridCache<{ table: Tensor }> | null = null;

  /** @throws {LtxError} `config` for widths that don't fit together. */
  constructor(
    readonly config: TransformerOptions,
    init: Initializer,
    /** `gradientCheckpointing`: backward computes each block's inside anew instead of keeping it. */
    readonly options: { computeDtype?: "f32" | "bf16"; gradientCheckpointing?: boolean } = {},
  ) {
    super();
    const dim = innerDim(config);
    const { caption_channels: captionChannels, cross_attention_dim: contextDim } = config;
    check(dim % 2 === 0 && dim >= 6, "config", () => {
      return `[transformer] num_attention_heads · attention_head_dim must be an even number from 6, got ${dim}`;
    });
    check(!captionChannels || contextDim === dim, "config", () => {
      return `[transformer] cross_attention_dim must be num_attention_heads · attention_head_dim = ${dim}, got ${contextDim}`;
    });
    this.patchify_proj = new Linear(config.input_channels, dim, init);
    this.to_2d_proj = null;
    if (config.positional_embedding_type === "rope") {
      const { positional_embedding_theta: theta, positional_embedding_max_pos: maxPos } = config;
      this._rope = ropeCache({ dim, theta, maxPos });
    } else {
      this.to_2d_proj = init.whole(() => this.absoluteProjection(dim, init));
    }
    this.adaln_single = new AdaLayerNormSingle(dim, adaRowCount(config.adaptive_norm), init);
    this.caption_projection = captionChannels ? new CaptionProjection(captionChannels, dim, init) : null;
    const block = {
      dim,
      heads: config.num_attention_heads,
      contextDim,
      adaptiveNorm: config.adaptive_norm,
      norm: config.standardization_norm,
      normAffine: config.norm_elementwise_affine,
      normEps: config.norm_eps,
      qkNorm: config.qk_norm,
      attentionBias: config.attention_bias,
      activation: config.activation_fn,
    };
    this.transformer_blocks = Array.from({ length: config.num_layers }, () => new TransformerBlock(block, init));
    this.scale_shift_table = init.normal([2, dim], dim ** -0.5);
    this.proj_out = new Linear(dim, config.out_channels, init);
  }

  /**
   * The velocity (B,F,H,W,Cout) f32 of latents (B,F,H,W,C) at time t (B) f32 in [0, 1], where 1 is data, given text
   * (B,Lt,Ct) and textMask (B,Lt) f32, 1 for tokens that count (all of them when null). t may also name a time for each
   * token, (B, F·H·W).
   * @throws {LtxError} `shape_mismatch`, `dtype_mismatch`.
   */
  forward(latents: Tensor, t: Tensor, text: Tensor, textMask: Tensor | null = null): Tensor {
    const { input_channels: channels, out_channels: outputs } = this.config;
    const [batch, frames, height, width] = latents.shape;
    check(latents.dims === 5 && latents.shape[4] === channels, "shape_mismatch", () => {
      return `[transformer] expects latents (B,F,H,W,${channels}), got [${latents.shape}]`;
    });
    const grid: Grid = [frames, height, width];
    return scope(() => {
      const tokens = reshape(latents, [batch, frames * height * width, channels]);
      const rope = this._rope?.get(grid, latents.device) ?? null;
      const absolute = this._absolute?.get(grid, latents.device).table;
      const velocity = this.forwardTokens(tokens, t, text, textMask, { rope, absolute });
      return reshape(velocity, [batch, ...grid, outputs]);
    });
  }

  /**
   * The rotary tables of tokens at `positions`, in the units of `positional_embedding_max_pos`, computed as the official
   * models were trained. The caller disposes of them.
   * @throws {LtxError} `config` for models with absolute positions.
   */
  ropeAt(positions: Positions): RopeTables {
    return ropeAt(positions, this.ropeOptions(), this.device);
  }

  /** {@link ropeAt} in parts, between which the event loop has its turn. @throws {LtxError} `aborted` */
  prepareRope(positions: Positions, signal?: AbortSignal): Promise<RopeTables> {
    return prepareRope(positions, this.ropeOptions(), this.device, signal);
  }

  private ropeOptions(): RopeOptions {
    const { positional_embedding_theta: theta, positional_embedding_max_pos: maxPos } = this.config;
    check(this._rope, "config", () => "[transformer] positional_embedding_type absolute has no rotary tables");
    return { dim: innerDim(this.config), theta, maxPos, angles: "f32" };
  }

  /**
   * As {@link forward} on tokens x (B,L,C) wherever they are. t may have any number of times that divides B·L: each is
   * that of as many consecutive tokens.
   * @returns (B,L,Cout) f32.
   */
  forwardTokens(
    x: Tensor,
    t: Tensor,
    text: Tensor,
    textMask: Tensor | null = null,
    { rope, absolute, skip }: TokenOptions = {},
  ): Tensor {
    this.checkInputs(x, t, text, textMask);
    check(rope || !this._rope, "invalid_argument", () => "[transformer] tokens need the tables of ropeAt(positions)");
    return scope(() => {
      const skips = skippedRows(skip, this.transformer_blocks.length, x.shape[0], x.device);
      const dtype = this.options.computeDtype ?? "f32";
      let h = this.patchify_proj.forward(cast(x, dtype));
      if (this.to_2d_proj && absolute) h = addRows(h, cast(this.to_2d_proj.forward(absolute), dtype));
      const embedded = this.adaln_single.emb.forward(
        affine(reshape(t, [t.size]), this.config.timestep_scale_multiplier),
      );
      const ada = this.blockTable(embedded);
      const context = this.caption_projection?.forward(cast(text, dtype)) ?? cast(text, dtype);
      const mask = textMask && affine(textMask, -MASKED, MASKED);
      const { cos = null, sin = null } = rope ?? {};
      for (const [i, block] of this.transformer_blocks.entries()) {
        const before = h;
        const { mode, kept = null, skipped = null } = skips[i] ?? {};
        h = scope(() => this.runBlock(block, [before, ada, cos, sin, context, mask, kept, skipped], mode));
        before.dispose(); // what backward needs of it, the tape holds
      }
      const modulation = { ada: this.outputTable(embedded), shift: 0, scale: 1 };
      return cast(this.proj_out.forward(normAct(h, { kind: "layer_norm", eps: OUT_EPS, modulation })), "f32");
    });
  }

  override dispose(): void {
    super.dispose();
    this._rope?.dispose();
    this._absolute?.dispose();
  }

  private runBlock(block: TransformerBlock, inputs: BlockInputs, mode: SkippedRows["mode"] | undefined): Tensor {
    const run = (...[h, ada, cos, sin, context, mask, kept, skipped]: BlockInputs) => {
      const skip = mode && kept && skipped && { mode, kept, skipped };
      return block.forward(h, ada, cos && sin && { cos, sin }, context, mask, skip);
    };
    return this.options.gradientCheckpointing ? checkpoint(run, inputs, block.parameters()) : run(...inputs);
  }

  /** The rows (G, 4 or 6, D) that every block adds its own to; null without adaptive norms. */
  private blockTable(embedded: Tensor): Tensor | null {
    if (this.config.adaptive_norm === "none") return null;
    const rows = this.adaln_single.linear.forward(silu(embedded));
    return reshape(rows, [embedded.shape[0], -1, embedded.shape[1]]);
  }

  /** Shift and scale (G, 2, D) of the last norm: the time embedding itself, added to both rows of the table. */
  private outputTable(embedded: Tensor): Tensor {
    const [samples, dim] = embedded.shape;
    const twice = depthToSpace(reshape(embedded, [samples, 1, 1, 1, dim]), { stride: [1, 1, 1], repeat: 2 });
    return addRows(reshape(twice, [samples, 2, dim]), this.scale_shift_table);
  }

  private absoluteProjection(dim: number, init: Initializer): Linear {
    check(this.config.project_to_2d_pos, "config", () => {
      return "[transformer] positional_embedding_type absolute is not supported yet with project_to_2d_pos false";
    });
    check(dim % 4 === 0, "config", () => `[transformer] absolute positions need a width divisible by 4, got ${dim}`);
    const features = 1.5 * dim;
    const projection = new Linear(features, dim, init, { bias: false });
    const identity = new Float32Array(dim * features);
    for (let i = 0; i < dim; i++) identity[i * features + i] = 1;
    projection.weight.write(identity);
    this._absolute = new GridCache((grid, device) => {
      const table = absolutePositions(grid, features);
      return { table: Tensor.from(table, [table.length / features, features], { device, group: "parameters" }) };
    });
    return projection;
  }

  private checkInputs(x: Tensor, t: Tensor, text: Tensor, textMask: Tensor | null): void {
    const [batch, length] = x.shape;
    const { caption_channels: captionChannels, cross_attention_dim: contextDim } = this.config;
    const textWidth = captionChannels ?? contextDim;
    const channels = this.config.input_channels;
    check(x.dims === 3 && x.shape[2] === channels, "shape_mismatch", () => {
      return `[transformer] expects tokens (B,L,${channels}), got [${x.shape}]`;
    });
    const fits = t.size > 0 && t.size % batch === 0 && (batch * length) % t.size === 0;
    check(t.dtype === "f32" && fits, "shape_mismatch", () => {
      return `[transformer] expects a time for each of the ${batch} samples, (B) f32, or for each token or run of tokens, got ${t}`;
    });
    check(text.dims === 3 && text.shape[0] === batch && text.shape[2] === textWidth, "shape_mismatch", () => {
      return `[transformer] expects text [${batch}, L, ${textWidth}], got [${text.shape}]`;
    });
    check(!textMask || (textMask.dtype === "f32" && textMask.size === batch * text.shape[1]), "shape_mismatch", () => {
      return `[transformer] expects a mask f32 [${batch}, ${text.shape[1]}], got ${textMask}`;
    });
  }
}
