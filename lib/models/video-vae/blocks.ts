/** The building blocks of encoder and decoder. All of them map (B,F,H,W,C) to (B,F',H',W',C') in the dtype they get. */
import { integer } from "../../arguments.js";
import { MAX_LAYERS } from "../../config/geometry.js";
import { check } from "../../errors.js";
import {
  CausalConv3d,
  Conv3d,
  type Initializer,
  Module,
  type Parameter,
  replicateEdges,
  type SpatialPadding,
  TimestepEmbedding,
} from "../../nn/index.js";
import { add, addPlane, addRows, depthToSpace, full, linear, reshape, spaceToDepth } from "../../ops/index.js";
import { checkpoint, scope, type Tensor } from "../../tensor/index.js";
import { Attention } from "../transformer/attention.js";
import type { NoiseSource } from "./noise.js";
import { ChannelNorm, createNorm, type Norm, type VaeNormKind } from "./norms.js";

/** What a decoder's blocks are conditioned on; an encoder's blocks get none of it. */
export interface BlockContext {
  /** Times (B) f32, already multiplied by the timestep scale. */
  timestep?: Tensor | null;
  /** The noise of blocks that inject it. */
  noise?: NoiseSource | null;
  /** Whether the input is freed as soon as it is read. */
  owned?: boolean;
}

/** Of every block's convolutions. */
export interface ConvolutionOptions {
  causal?: boolean;
  spatialPadding?: SpatialPadding;
}

export interface ResnetOptions extends ConvolutionOptions {
  norm: VaeNormKind;
  /** Of group norm. */
  groups?: number;
  /** Of group and layer norm. */
  eps?: number;
  /** Whether each convolution is followed by noise, scaled by channel. */
  injectNoise?: boolean;
  /** Whether the norms are modulated by a table and an embedding of the time. */
  timestepConditioning?: boolean;
  /** Whether backward computes the block's inside anew instead of keeping it. */
  gradientCheckpointing?: boolean;
}

/** A modulation table: (rows, C) plus an embedding (B, rows·C), together (B, rows, C) f32. */
export function modulationTable(table: Parameter, embedding: Tensor): Tensor {
  const [rows, channels] = table.shape;
  check(embedding.size === embedding.shape[0] * rows * channels, "shape_mismatch", () => {
    return `[video vae] time embedding [${embedding.shape}] does not fit a table of ${rows} rows and ${channels} channels`;
  });
  return addRows(reshape(embedding, [embedding.shape[0], rows, channels]), table);
}

/** f(x), behind which x is gone: the tape, if any, holds what it needs of it. */
export function through(x: Tensor, f: (x: Tensor) => Tensor): Tensor {
  const y = f(x);
  if (y !== x) x.dispose();
  return y;
}

/**
 * Norm, modulation, SiLU, convolution, noise; the same again; plus the input, which a layer norm and a 1×1×1
 * convolution bring to the new width when that differs (reference ResnetBlock3D).
 */
export class ResnetBlock3D extends Module {
  scale_shift_table: Parameter | null;
  norm1: Norm;
  conv1: CausalConv3d;
  per_channel_scale1: Parameter | null;
  norm2: Norm;
  conv2: CausalConv3d;
  per_channel_scale2: Parameter | null;
  conv_shortcut: Conv3d | null;
  norm3: ChannelNorm | null;
  private _checkpointed: boolean;

  constructor(inputs: number, outputs: number, init: Initializer, options: ResnetOptions) {
    super();
    const { norm, groups = 32, eps = 1e-6, injectNoise = false, timestepConditioning = false } = options;
    const noiseScale = (channels: number) => (injectNoise ? init.constant([channels, 1, 1], 0) : null);
    // The table modulates both norms, so it exists only where they have the same width.
    check(!timestepConditioning || inputs === outputs, "invalid_argument", () => {
      return `[video vae] a timestep-conditioned residual block keeps its width, got ${inputs} to ${outputs} channels`;
    });
    this.scale_shift_table = timestepConditioning ? init.normal([4, inputs], 1 / Math.sqrt(inputs)) : null;
    this.norm1 = createNorm(norm, inputs, init, { groups, eps });
    this.conv1 = new CausalConv3d(inputs, outputs, init, options);
    this.per_channel_scale1 = noiseScale(outputs);
    this.norm2 = createNorm(norm, outputs, init, { groups, eps });
    this.conv2 = new CausalConv3d(outputs, outputs, init, options);
    this.per_channel_scale2 = noiseScale(outputs);
    this.conv_shortcut = inputs === outputs ? null : new Conv3d(inputs, outputs, [1, 1, 1], init);
    this.norm3 = inputs === outputs ? null : new ChannelNorm(inputs, eps, init);
    this._checkpointed = options.gradientCheckpointing ?? false;
  }

  /**
   * @param embedding (B, 4·C) f32, where the block is conditioned; its rows are shift1, scale1, shift2, scale2
   * @param noise where the block injects noise
   */
  forward(x: Tensor, embedding: Tensor | null = null, noise: NoiseSource | null = null): Tensor {
    return scope(() => {
      check(!this.scale_shift_table || embedding, "invalid_argument", () => {
        return "[video vae] this residual block needs a time embedding";
      });
      // Drawn outside of what may run twice.
      const plane = (scale: Parameter | null) => (scale ? nextPlane(noise, x) : null);
      const inputs = [x, embedding, plane(this.per_channel_scale1), plane(this.per_channel_scale2)] as const;
      const run = (...given: typeof inputs) => this.compute(...given);
      return this._checkpointed ? checkpoint(run, inputs, this.parameters()) : run(...inputs);
    });
  }

  private compute(x: Tensor, embedding: Tensor | null, plane1: Tensor | null, plane2: Tensor | null): Tensor {
    return scope(() => {
      const table = this.scale_shift_table;
      const ada = table && embedding ? modulationTable(table, embedding) : null;
      const modulation = (row: number) => (ada ? { ada, shift: row, scale: row + 1 } : null);
      const inject = (h: Tensor, plane: Tensor | null, scale: Parameter | null) =>
        plane && scale ? addPlane(h, plane, scale) : h;

      let h = this.norm1.forward(x, { modulation: modulation(0), activation: "silu" });
      h = through(h, (h) => this.conv1.forward(h));
      h = through(h, (h) => inject(h, plane1, this.per_channel_scale1));
      h = through(h, (h) => this.norm2.forward(h, { modulation: modulation(2), activation: "silu" }));
      const { conv_shortcut, norm3 } = this;
      const shortcut = conv_shortcut && norm3 ? through(norm3.forward(x), (h) => conv_shortcut.forward(h)) : x;
      h = through(h, (h) => this.conv2.forward(h, shortcut));
      return through(h, (h) => inject(h, plane2, this.per_channel_scale2));
    });
  }
}

function nextPlane(noise: NoiseSource | null, x: Tensor): Tensor {
  check(noise, "invalid_argument", () => {
    return "[video vae] a block injects noise: give its planes, or a random key to draw them with";
  });
  return noise.next(x.shape[2], x.shape[3], x.device);
}

/** What `attn_res_x` adds to `res_x`: each residual block is followed by attention among all positions of the clip. */
export interface MidBlockOptions extends ResnetOptions {
  /** The width of a head; without it there is no attention. */
  attentionHeadDim?: number;
}

/** `res_x` and `attn_res_x`: residual blocks of one width that share a time embedder (reference UNetMidBlock3D). */
export class UNetMidBlock3D extends Module {
  time_embedder: TimestepEmbedding | null;
  res_blocks: ResnetBlock3D[];
  attention_blocks: Attention[];
  private _checkpointed: boolean;

  constructor(channels: number, layers: number, init: Initializer, options: MidBlockOptions) {
    super();
    const { timestepConditioning, attentionHeadDim: headDim, gradientCheckpointing = false } = options;
    check(!headDim || channels % headDim === 0, "invalid_argument", () => {
      return `[video vae] attention_head_dim ${headDim} does not divide the ${channels} channels`;
    });
    integer("video vae", "layers", layers, 0, MAX_LAYERS);
    this.time_embedder = timestepConditioning ? new TimestepEmbedding(4 * channels, init) : null;
    this.res_blocks = Array.from({ length: layers }, () => new ResnetBlock3D(channels, channels, init, options));
    const attention = {
      dim: channels,
      heads: headDim ? channels / headDim : 0,
      qkNorm: "rms_norm",
      bias: true,
    } as const;
    this.attention_blocks = headDim ? this.res_blocks.map(() => new Attention(attention, init)) : [];
    this._checkpointed = gradientCheckpointing;
  }

  forward(x: Tensor, { timestep = null, noise = null, owned = false }: BlockContext = {}): Tensor {
    return scope(() => {
      check(!this.time_embedder || timestep, "invalid_argument", () => "[video vae] this block needs a timestep");
      const embedding = this.time_embedder && timestep ? this.time_embedder.forward(timestep) : null;
      let h = x;
      const step = (next: Tensor) => {
        if (owned || h !== x) h.dispose(); // the tape, if any, holds what it needs
        h = next;
      };
      for (const [i, block] of this.res_blocks.entries()) {
        step(block.forward(h, embedding, noise));
        const attention = this.attention_blocks.at(i);
        if (!attention) continue;
        const run = (h: Tensor) => attend(attention, h);
        step(this._checkpointed ? checkpoint(run, [h], attention.parameters()) : run(h));
      }
      return h;
    });
  }
}

/** x plus attention among its positions. */
function attend(attention: Attention, x: Tensor): Tensor {
  return scope(() => {
    const [batch, frames, height, width, channels] = x.shape;
    const tokens = reshape(x, [batch, frames * height * width, channels]);
    return reshape(add(tokens, attention.forward(tokens, tokens)), x.shape);
  });
}

/** Factors of (time, height, width), each 1 or 2. */
export type Stride = readonly [number, number, number];

export interface UpsampleOptions extends ConvolutionOptions {
  stride: Stride;
  /** Whether the input, rearranged alike, is added. */
  residual?: boolean;
  /** By what the channels are divided. */
  factor?: number;
}

/**
 * A convolution whose channels unfold into time and space; where time is doubled the first frame is left out, so F
 * frames become 2F - 1 (reference DepthToSpaceUpsample).
 */
export class DepthToSpaceUpsample extends Module {
  conv: CausalConv3d;
  private _options: UpsampleOptions;

  constructor(channels: number, init: Initializer, options: UpsampleOptions) {
    super();
    const { stride, factor = 1, residual = false } = options;
    const patch = stride[0] * stride[1] * stride[2];
    check(channels % factor === 0, "invalid_argument", () => {
      return `[video vae] an upsampling block cannot divide ${channels} channels by its multiplier ${factor}`;
    });
    check(!residual || (channels % patch === 0 && patch % factor === 0), "invalid_argument", () => {
      return (
        `[video vae] an upsampling block with residual needs channels that ${patch} divides and a multiplier that ` +
        `divides ${patch}, got ${channels} and ${factor}`
      );
    });
    const { causal, spatialPadding } = options; // the stride is the rearrangement's, not the convolution's
    this.conv = new CausalConv3d(channels, (patch * channels) / factor, init, { causal, spatialPadding });
    this._options = options;
  }

  forward(x: Tensor): Tensor {
    return scope(() => {
      const { stride, factor = 1, residual = false } = this._options;
      const dropFirst = stride[0] === 2;
      const y = through(this.conv.forward(x), (h) => depthToSpace(h, { stride, dropFirst }));
      if (!residual) return y;
      const repeat = (stride[0] * stride[1] * stride[2]) / factor;
      return add(y, depthToSpace(x, { stride, dropFirst, repeat }));
    });
  }
}

export interface DownsampleOptions extends ConvolutionOptions {
  stride: Stride;
}

/**
 * `compress_*_res`: a convolution, then space and time fold into its channels; plus the input, folded alike and averaged
 * over runs of neighbouring channels to the new width. Where time is halved the first frame is doubled before all that,
 * so 2F - 1 frames become F (reference SpaceToDepthDownsample).
 */
export class SpaceToDepthDownsample extends Module {
  conv: CausalConv3d;
  private _stride: Stride;
  /** How many channels of the folded input make one. */
  private _group: number;

  constructor(inputs: number, outputs: number, init: Initializer, options: DownsampleOptions) {
    super();
    const { stride, causal, spatialPadding } = options;
    const patch = stride[0] * stride[1] * stride[2];
    check(outputs % patch === 0 && (inputs * patch) % outputs === 0, "invalid_argument", () => {
      return `[video vae] a downsampling block cannot make ${outputs} channels of ${inputs} with ${patch} positions each`;
    });
    this.conv = new CausalConv3d(inputs, outputs / patch, init, { causal, spatialPadding });
    this._stride = stride;
    this._group = (inputs * patch) / outputs;
  }

  forward(x: Tensor): Tensor {
    return scope(() => {
      const { _stride: stride, _group: group } = this;
      const h = stride[0] === 2 ? replicateEdges(x, 1, 1, 0) : x;
      const y = through(this.conv.forward(h), (h) => spaceToDepth(h, { stride }));
      return add(y, groupMean(spaceToDepth(h, { stride }), group));
    });
  }
}

/** The mean of each run of `group` channels: (…, C) to (…, C / group). */
function groupMean(x: Tensor, group: number): Tensor {
  if (group === 1) return x;
  const channels = x.shape[x.dims - 1] / group;
  const mean = full([1, group], 1 / group, { device: x.device });
  return reshape(linear(reshape(x, [x.size / group, group]), mean), [...x.shape.slice(0, -1), channels]);
}
