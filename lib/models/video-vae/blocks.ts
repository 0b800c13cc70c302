/** The building blocks of encoder and decoder. All of them map (B,F,H,W,C) to (B,F',H',W',C') in the dtype they get. */
import { check } from "../../errors.js";
import { CausalConv3d, Conv3d, type Initializer, Module, type Parameter, TimestepEmbedding } from "../../nn/index.js";
import { add, addPlane, addRows, depthToSpace, reshape } from "../../ops/index.js";
import { scope, type Tensor } from "../../tensor/index.js";
import type { NoisePlanes } from "./noise.js";
import { ChannelNorm, createNorm, type Norm, type VaeNormKind } from "./norms.js";

/** What a decoder's blocks are conditioned on; an encoder's blocks get none of it. */
export interface BlockContext {
  /** Times (B) f32, already multiplied by the timestep scale. */
  timestep?: Tensor | null;
  /** The noise of blocks that inject it. */
  noise?: NoisePlanes | null;
}

export interface ResnetOptions {
  norm: VaeNormKind;
  /** Of group norm. */
  groups?: number;
  /** Of group and layer norm. */
  eps?: number;
  causal?: boolean;
  /** Whether each convolution is followed by noise, scaled by channel. */
  injectNoise?: boolean;
  /** Whether the norms are modulated by a table and an embedding of the time. */
  timestepConditioning?: boolean;
}

/** A modulation table: (rows, C) plus an embedding (B, rows·C), together (B, rows, C) f32. */
export function modulationTable(table: Parameter, embedding: Tensor): Tensor {
  const [rows, channels] = table.shape;
  check(embedding.size === embedding.shape[0] * rows * channels, "shape_mismatch", () => {
    return `[video vae] time embedding [${embedding.shape}] does not fit a table of ${rows} rows and ${channels} channels`;
  });
  return addRows(reshape(embedding, [embedding.shape[0], rows, channels]), table);
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

  constructor(inputs: number, outputs: number, init: Initializer, options: ResnetOptions) {
    super();
    const { norm, groups = 32, eps = 1e-6, causal = true, injectNoise = false, timestepConditioning = false } = options;
    const noiseScale = (channels: number) => (injectNoise ? init.constant([channels, 1, 1], 0) : null);
    // The table modulates both norms, so it exists only where they have the same width.
    check(!timestepConditioning || inputs === outputs, "invalid_argument", () => {
      return `[video vae] a timestep-conditioned residual block keeps its width, got ${inputs} to ${outputs} channels`;
    });
    this.scale_shift_table = timestepConditioning ? init.normal([4, inputs], 1 / Math.sqrt(inputs)) : null;
    this.norm1 = createNorm(norm, inputs, init, { groups, eps });
    this.conv1 = new CausalConv3d(inputs, outputs, init, { causal });
    this.per_channel_scale1 = noiseScale(outputs);
    this.norm2 = createNorm(norm, outputs, init, { groups, eps });
    this.conv2 = new CausalConv3d(outputs, outputs, init, { causal });
    this.per_channel_scale2 = noiseScale(outputs);
    this.conv_shortcut = inputs === outputs ? null : new Conv3d(inputs, outputs, [1, 1, 1], init);
    this.norm3 = inputs === outputs ? null : new ChannelNorm(inputs, eps, init);
  }

  /**
   * @param embedding (B, 4·C) f32, where the block is conditioned; its rows are shift1, scale1, shift2, scale2
   * @param noise where the block injects noise
   */
  forward(x: Tensor, embedding: Tensor | null = null, noise: NoisePlanes | null = null): Tensor {
    return scope(() => {
      const table = this.scale_shift_table;
      check(!table || embedding, "invalid_argument", () => "[video vae] this residual block needs a time embedding");
      const ada = table && embedding ? modulationTable(table, embedding) : null;
      const modulation = (row: number) => (ada ? { ada, shift: row, scale: row + 1 } : null);
      const inject = (h: Tensor, scale: Parameter | null) => (scale ? addNoise(h, scale, noise) : h);

      let h = this.norm1.forward(x, { modulation: modulation(0), activation: "silu" });
      h = inject(this.conv1.forward(h), this.per_channel_scale1);
      h = this.norm2.forward(h, { modulation: modulation(2), activation: "silu" });
      const shortcut = this.conv_shortcut && this.norm3 ? this.conv_shortcut.forward(this.norm3.forward(x)) : x;
      return inject(this.conv2.forward(h, shortcut), this.per_channel_scale2);
    });
  }
}

function addNoise(h: Tensor, scale: Parameter, noise: NoisePlanes | null): Tensor {
  check(noise, "invalid_argument", () => {
    return "[video vae] a block injects noise: give its planes, or a random key to draw them with";
  });
  return addPlane(h, noise.next(h.shape[2], h.shape[3], h.device), scale);
}

/** `res_x`: residual blocks of one width that share a time embedder (reference UNetMidBlock3D). */
export class UNetMidBlock3D extends Module {
  time_embedder: TimestepEmbedding | null;
  res_blocks: ResnetBlock3D[];

  constructor(channels: number, layers: number, init: Initializer, options: ResnetOptions) {
    super();
    this.time_embedder = options.timestepConditioning ? new TimestepEmbedding(4 * channels, init) : null;
    this.res_blocks = Array.from({ length: layers }, () => new ResnetBlock3D(channels, channels, init, options));
  }

  forward(x: Tensor, { timestep = null, noise = null }: BlockContext = {}): Tensor {
    return scope(() => {
      check(!this.time_embedder || timestep, "invalid_argument", () => "[video vae] this block needs a timestep");
      const embedding = this.time_embedder && timestep ? this.time_embedder.forward(timestep) : null;
      let h = x;
      for (const block of this.res_blocks) {
        const next = block.forward(h, embedding, noise);
        if (h !== x) h.dispose(); // the tape, if any, holds what it needs
        h = next;
      }
      return h;
    });
  }
}

export interface UpsampleOptions {
  /** Factors of (time, height, width), each 1 or 2. */
  stride: readonly [number, number, number];
  causal?: boolean;
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
    const { stride, factor = 1, residual = false, causal = true } = options;
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
    this.conv = new CausalConv3d(channels, (patch * channels) / factor, init, { causal });
    this._options = options;
  }

  forward(x: Tensor): Tensor {
    return scope(() => {
      const { stride, factor = 1, residual = false } = this._options;
      const dropFirst = stride[0] === 2;
      const y = depthToSpace(this.conv.forward(x), { stride, dropFirst });
      if (!residual) return y;
      const repeat = (stride[0] * stride[1] * stride[2]) / factor;
      return add(y, depthToSpace(x, { stride, dropFirst, repeat }));
    });
  }
}
