import { check, LtxError } from "../../errors.js";
import { CausalConv3d, type Initializer, Module, type Parameter, TimestepEmbedding } from "../../nn/index.js";
import { depthToSpace, mul } from "../../ops/index.js";
import { scope, type Tensor } from "../../tensor/index.js";
import {
  type BlockContext,
  DepthToSpaceUpsample,
  modulationTable,
  ResnetBlock3D,
  through,
  UNetMidBlock3D,
} from "./blocks.js";
import { type BlockSpec, type CoderConfig, type CoderOptions, layersOf, multiplierOf, STRIDES } from "./encoder.js";
import type { NoiseSource } from "./noise.js";
import { createNorm, type Norm } from "./norms.js";

export interface DecoderConfig extends CoderConfig {
  causal: boolean;
  timestep_conditioning: boolean;
}

type UpBlock = UNetMidBlock3D | ResnetBlock3D | DepthToSpaceUpsample;

/** By what a decoder block divides the channels. */
export function divisor([name, params]: BlockSpec): number {
  return multiplierOf(params, name === "res_x_y" ? 2 : 1);
}

/** Latent to video: convolution, blocks in the order in which they are listed, norm, SiLU, convolution, unpatching. */
export class Decoder extends Module {
  /** What times are multiplied by before they are embedded; shape []. */
  timestep_scale_multiplier: Parameter | null;
  last_scale_shift_table: Parameter | null;
  conv_in: CausalConv3d;
  up_blocks: UpBlock[] = [];
  conv_norm_out: Norm;
  conv_out: CausalConv3d;
  last_time_embedder: TimestepEmbedding | null;
  private _patch: number;
  private _config: DecoderConfig;

  constructor(config: DecoderConfig, init: Initializer, options: CoderOptions = {}) {
    super();
    const { norm_layer: norm, norm_num_groups: groups, patch_size, timestep_conditioning } = config;
    const padding = { causal: config.causal, spatialPadding: config.spatial_padding_mode };
    const resnet = { norm, groups, ...padding, ...options };
    let width = config.blocks.reduce((channels, block) => channels * divisor(block), config.base_channels);
    this.timestep_scale_multiplier = timestep_conditioning ? init.constant([], 1000) : null;
    this.conv_in = new CausalConv3d(config.in_channels, width, init, padding);
    for (const block of config.blocks) {
      const [name, params] = block;
      const given = typeof params === "number" ? {} : params;
      const { inject_noise: injectNoise = false, residual = false, attention_head_dim: attentionHeadDim } = given;
      const narrow = width / divisor(block);
      switch (name) {
        case "res_x":
        case "attn_res_x": {
          check(name === "res_x" || attentionHeadDim, "config", () => {
            return "[video vae] a decoder block attn_res_x needs attention_head_dim, the width of its heads";
          });
          const block = { ...resnet, injectNoise, timestepConditioning: timestep_conditioning, attentionHeadDim };
          this.up_blocks.push(new UNetMidBlock3D(width, layersOf(params), init, block));
          break;
        }
        case "res_x_y":
          this.up_blocks.push(new ResnetBlock3D(width, narrow, init, { ...resnet, injectNoise }));
          break;
        case "compress_time":
        case "compress_space":
        case "compress_all": {
          const upsample = { stride: STRIDES[name], ...padding, residual, factor: divisor(block) };
          this.up_blocks.push(new DepthToSpaceUpsample(width, init, upsample));
          break;
        }
        default:
          throw new LtxError("config", `[video vae] the decoder has no block ${name}`);
      }
      width = narrow;
    }
    this.conv_norm_out = createNorm(norm, width, init, { groups, eps: 1e-6 });
    this.conv_out = new CausalConv3d(width, config.out_channels * patch_size ** 2, init, padding);
    this.last_scale_shift_table = timestep_conditioning ? init.normal([2, width], 1 / Math.sqrt(width)) : null;
    this.last_time_embedder = timestep_conditioning ? new TimestepEmbedding(2 * width, init) : null;
    this._patch = patch_size;
    this._config = config;
  }

  get config(): DecoderConfig {
    return this._config;
  }

  /**
   * Latents (B,f,h,w,C) to pixels (B,F,H,W,C) around [-1,1], not clamped, in z's dtype.
   * @param timestep (B) f32, the amplitude of the latents' noise, for a timestep-conditioned decoder; else null
   */
  forward(z: Tensor, timestep: Tensor | null = null, noise: NoiseSource | null = null): Tensor {
    return scope(() => {
      const context = this.context(z, timestep, noise);
      return this.end(this.blocks(this.begin(z), 0, this.up_blocks.length, context), context);
    });
  }

  /** What the blocks of one pass are conditioned on. @throws {LtxError} when the timestep is not what the model needs */
  context(z: Tensor, timestep: Tensor | null, noise: NoiseSource | null): BlockContext {
    return { timestep: this.scaled(z, timestep), noise, owned: true };
  }

  /** Latents to what the first block takes. */
  begin(z: Tensor): Tensor {
    return this.conv_in.forward(z);
  }

  /** Runs blocks [from, to) and frees what each of them read, x too. */
  blocks(x: Tensor, from: number, to: number, context: BlockContext): Tensor {
    return this.up_blocks.slice(from, to).reduce((h, block) => through(h, (h) => run(block, h, context)), x);
  }

  /** What the last block gives to pixels; x is freed. */
  end(x: Tensor, context: BlockContext): Tensor {
    const h = through(x, (h) => this.normOut(h, context.timestep ?? null));
    const y = through(h, (h) => this.conv_out.forward(h));
    const p = this._patch;
    return p === 1 ? y : through(y, (h) => depthToSpace(h, { stride: [1, p, p], order: "time_width_height" }));
  }

  private scaled(z: Tensor, timestep: Tensor | null): Tensor | null {
    const scale = this.timestep_scale_multiplier;
    if (!scale) {
      check(
        !timestep,
        "invalid_argument",
        () => "[video vae] this decoder has no timestep_conditioning: pass null as timestep",
      );
      return null;
    }
    check(timestep, "invalid_argument", () => {
      return "[video vae] this decoder has timestep_conditioning: give a timestep for each sample, e.g. 0.001 for clean latents";
    });
    check(timestep.size === z.shape[0] && timestep.dtype === "f32", "shape_mismatch", () => {
      return `[video vae] timestep expects f32 [${z.shape[0]}], one for each latent, got ${timestep}`;
    });
    return mul(timestep, scale);
  }

  private normOut(h: Tensor, timestep: Tensor | null): Tensor {
    const { last_time_embedder: embedder, last_scale_shift_table: table } = this;
    const ada = embedder && table && timestep ? modulationTable(table, embedder.forward(timestep)) : null;
    return this.conv_norm_out.forward(h, {
      modulation: ada ? { ada, shift: 0, scale: 1 } : null,
      activation: "silu",
    });
  }
}

function run(block: UpBlock, h: Tensor, context: BlockContext): Tensor {
  if (block instanceof UNetMidBlock3D) return block.forward(h, context);
  if (block instanceof ResnetBlock3D) return block.forward(h, null, context.noise ?? null);
  return block.forward(h);
}
