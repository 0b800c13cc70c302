import { integer } from "../arguments.js";
import { MAX_LAYERS } from "../config/geometry.js";
import type { UpsamplerConfig } from "../config/official/upsampler.js";
import { check } from "../errors.js";
import { Conv2d, Conv3d, type Initializer, Module } from "../nn/index.js";
import { add, depthToSpace, reshape, silu } from "../ops/index.js";
import { scope, type Tensor } from "../tensor/index.js";
import { GroupNorm } from "./video-vae/norms.js";

const GROUPS = 32;
const EPS = 1e-5;

const groupNorm = (channels: number, init: Initializer) => new GroupNorm(channels, GROUPS, EPS, init);

/** A 3×3(×3) convolution with zeros around it. */
function convolution(dims: 2 | 3, inputs: number, outputs: number, init: Initializer): Conv3d {
  if (dims === 2) return new Conv2d(inputs, outputs, 3, init, { padding: 1 });
  return new Conv3d(inputs, outputs, [3, 3, 3], init, { padTime: [1, 1], padSpace: [1, 1] });
}

class ResBlock extends Module {
  conv1: Conv3d;
  norm1: GroupNorm;
  conv2: Conv3d;
  norm2: GroupNorm;

  constructor(channels: number, dims: 2 | 3, init: Initializer) {
    super();
    this.conv1 = convolution(dims, channels, channels, init);
    this.norm1 = groupNorm(channels, init);
    this.conv2 = convolution(dims, channels, channels, init);
    this.norm2 = groupNorm(channels, init);
  }

  forward(x: Tensor): Tensor {
    return scope(() => {
      const h = this.norm1.forward(this.conv1.forward(x), { activation: "silu" });
      return silu(add(this.norm2.forward(this.conv2.forward(h)), x));
    });
  }
}

/**
 * Latents to latents of twice the height and width, or 2F - 1 frames, or both (reference LatentUpsampler). They are
 * (B,f,h,w,C) f32 and not normalised; property names are the official keys.
 */
export class LatentUpsampler extends Module {
  initial_conv: Conv3d;
  initial_norm: GroupNorm;
  res_blocks: ResBlock[];
  /** A convolution whose channels unfold; the key has its place in a list. */
  upsampler: Conv3d[];
  post_upsample_res_blocks: ResBlock[];
  final_conv: Conv3d;
  private _config: UpsamplerConfig;

  constructor(config: UpsamplerConfig, init: Initializer) {
    super();
    const { in_channels: channels, mid_channels: mid, num_blocks_per_stage: count, dims } = config;
    integer("upsampler", "num_blocks_per_stage", count, 0, MAX_LAYERS);
    const blocks = () => Array.from({ length: count }, () => new ResBlock(mid, dims, init));
    const [time, height, width] = strideOf(config);
    this.initial_conv = convolution(dims, channels, mid, init);
    this.initial_norm = init.whole(() => groupNorm(mid, init));
    this.res_blocks = blocks();
    // Where frames stay as many they are upsampled by themselves.
    this.upsampler = [convolution(time === 1 ? 2 : 3, mid, mid * time * height * width, init)];
    this.post_upsample_res_blocks = blocks();
    this.final_conv = convolution(dims, mid, channels, init);
    this._config = config;
  }

  get config(): UpsamplerConfig {
    return this._config;
  }

  /** @throws {LtxError} `shape_mismatch` */
  forward(latents: Tensor): Tensor {
    const { in_channels: channels, dims } = this._config;
    const [batch, frames, height, width, c] = latents.shape;
    check(latents.dims === 5 && c === channels, "shape_mismatch", () => {
      return `[latent upsampler] expects latents (B,f,h,w,${channels}), got [${latents.shape}]`;
    });
    return scope(() => {
      if (dims === 3) return this.run(latents);
      // Norms then see one frame at a time.
      const y = this.run(reshape(latents, [batch * frames, 1, height, width, channels]));
      return reshape(y, [batch, frames, ...y.shape.slice(2)]);
    });
  }

  private run(x: Tensor): Tensor {
    let h = this.initial_norm.forward(this.initial_conv.forward(x), { activation: "silu" });
    const step = (next: Tensor) => {
      h.dispose(); // the tape, if any, holds what it needs
      h = next;
    };
    for (const block of this.res_blocks) step(block.forward(h));
    const stride = strideOf(this._config);
    for (const convolution of this.upsampler) {
      step(convolution.forward(h));
      step(depthToSpace(h, { stride, dropFirst: stride[0] === 2 }));
    }
    for (const block of this.post_upsample_res_blocks) step(block.forward(h));
    return this.final_conv.forward(h);
  }
}

/** By what time, height and width grow. */
function strideOf({ spatial_upsample: spatial, temporal_upsample: temporal }: UpsamplerConfig) {
  const space = spatial ? 2 : 1;
  return [temporal ? 2 : 1, space, space] as const;
}
