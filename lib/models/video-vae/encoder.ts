import { LtxError } from "../../errors.js";
import { CausalConv3d, type Initializer, Module, type SpatialPadding } from "../../nn/index.js";
import { concatLast, expandMoments, full, sliceLast, spaceToDepth } from "../../ops/index.js";
import { scope, type Tensor } from "../../tensor/index.js";
import { ResnetBlock3D, SpaceToDepthDownsample, type Stride, UNetMidBlock3D } from "./blocks.js";
import { createNorm, type Norm, type VaeNormKind } from "./norms.js";

/** Parameters behind a block's name; a number is `num_layers`. */
export type BlockParams =
  | number
  | {
      num_layers?: number;
      multiplier?: number;
      residual?: boolean;
      inject_noise?: boolean;
      attention_head_dim?: number;
    };

/** A block's name and parameters, as configurations list them. */
export type BlockSpec = readonly [name: string, params: BlockParams];

export const layersOf = (params: BlockParams): number =>
  typeof params === "number" ? params : (params.num_layers ?? 1);
export const multiplierOf = (params: BlockParams, fallback: number): number =>
  typeof params === "number" ? fallback : (params.multiplier ?? fallback);

/** What encoder and decoder share; the names are the reference's constructor's. */
export interface CoderConfig {
  in_channels: number;
  out_channels: number;
  blocks: readonly BlockSpec[];
  base_channels: number;
  norm_num_groups: number;
  patch_size: number;
  norm_layer: VaeNormKind;
  spatial_padding_mode?: SpatialPadding;
}

export interface CoderOptions {
  /** Whether backward computes the inside of residual blocks anew instead of keeping it. Others keep only their input. */
  gradientCheckpointing?: boolean;
}

export interface EncoderConfig extends CoderConfig {
  /** How log-variances come with the means: one each, one for all, none (they are then all -30), or no posterior. */
  latent_log_var: "per_channel" | "uniform" | "constant" | "none";
}

type DownBlock = UNetMidBlock3D | ResnetBlock3D | CausalConv3d | SpaceToDepthDownsample;

/** The stride of each resampling block's axes, by the beginning of its name. */
export const STRIDES = { compress_time: [2, 1, 1], compress_space: [1, 2, 2], compress_all: [2, 2, 2] } as const;

/** Video to moments: patches, blocks, norm, SiLU, convolution; every convolution is causal. */
export class Encoder extends Module {
  conv_in: CausalConv3d;
  down_blocks: DownBlock[] = [];
  conv_norm_out: Norm;
  conv_out: CausalConv3d;
  private _patch: number;
  private _logvar: EncoderConfig["latent_log_var"];

  constructor(config: EncoderConfig, init: Initializer, options: CoderOptions = {}) {
    super();
    const { norm_layer: norm, norm_num_groups: groups, patch_size, out_channels, latent_log_var } = config;
    const padding = { causal: true, spatialPadding: config.spatial_padding_mode };
    const resnet = { norm, groups, ...padding, ...options };
    let width = config.base_channels;
    const convolution = (stride: Stride, outputs: number) =>
      new CausalConv3d(width, outputs, init, { stride, ...padding });
    this.conv_in = new CausalConv3d(config.in_channels * patch_size ** 2, width, init, padding);
    for (const [name, params] of config.blocks) {
      switch (name) {
        case "res_x":
          this.down_blocks.push(new UNetMidBlock3D(width, layersOf(params), init, resnet));
          break;
        case "res_x_y": {
          const wide = width * multiplierOf(params, 2);
          this.down_blocks.push(new ResnetBlock3D(width, wide, init, resnet));
          width = wide;
          break;
        }
        case "compress_time":
        case "compress_space":
        case "compress_all": {
          const wide = width * multiplierOf(params, 1);
          this.down_blocks.push(convolution(STRIDES[name], wide));
          width = wide;
          break;
        }
        case "compress_all_x_y": {
          const wide = width * multiplierOf(params, 2);
          this.down_blocks.push(convolution(STRIDES.compress_all, wide));
          width = wide;
          break;
        }
        case "compress_time_res":
        case "compress_space_res":
        case "compress_all_res": {
          const wide = width * multiplierOf(params, 2);
          const stride = STRIDES[name.slice(0, -"_res".length) as keyof typeof STRIDES];
          this.down_blocks.push(new SpaceToDepthDownsample(width, wide, init, { stride, ...padding }));
          width = wide;
          break;
        }
        default:
          throw new LtxError("config", `[video vae] the encoder has no block ${name}`);
      }
    }
    const shared = out_channels + 1; // with "constant" the last channel is computed and not used
    const moments = { per_channel: 2 * out_channels, uniform: shared, constant: shared, none: out_channels };
    this.conv_norm_out = createNorm(norm, width, init, { groups, eps: 1e-6 });
    this.conv_out = new CausalConv3d(width, moments[latent_log_var], init, padding);
    this._patch = patch_size;
    this._logvar = latent_log_var;
  }

  /** Pixels in [-1,1], (B,F,H,W,C), to moments (B,f,h,w,2C), or (B,f,h,w,C) for latent_log_var none; in x's dtype. */
  forward(x: Tensor): Tensor {
    return scope(() => {
      const p = this._patch;
      const patches = p === 1 ? x : spaceToDepth(x, { stride: [1, p, p], order: "time_width_height" });
      let h = this.conv_in.forward(patches);
      if (patches !== x) patches.dispose(); // the tape, if any, holds what it needs
      for (const block of this.down_blocks) {
        const next = block instanceof UNetMidBlock3D ? block.forward(h, { owned: true }) : block.forward(h);
        h.dispose();
        h = next;
      }
      const y = this.conv_out.forward(this.conv_norm_out.forward(h, { activation: "silu" }));
      if (this._logvar === "uniform") return expandMoments(y);
      return this._logvar === "constant" ? constantMoments(y) : y;
    });
  }
}

/** The log-variance of every channel under latent_log_var "constant": next to none. */
const CONSTANT_LOGVAR = -30;

/** (…, C + 1) to (…, 2C): the first C channels, then the constant. */
function constantMoments(y: Tensor): Tensor {
  const channels = y.shape[4] - 1;
  const means = sliceLast(y, 0, channels);
  return concatLast(means, full(means.shape, CONSTANT_LOGVAR, { dtype: y.dtype, device: y.device }));
}
