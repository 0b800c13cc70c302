import { vaeFactors } from "../../config/geometry.js";
import type { OfficialVaeConfig } from "../../config/official/vae.js";
import { check } from "../../errors.js";
import { isUnusedStatistic } from "../../formats/official/keys.js";
import { type Conv3d, type Initializer, Module } from "../../nn/index.js";
import { affine, cast, normal, posteriorSample, type RandomKey } from "../../ops/index.js";
import { scope, Tensor, wantsGrad } from "../../tensor/index.js";
import { decoderConfig, encoderConfig, quantConvs } from "./coders.js";
import { Decoder } from "./decoder.js";
import { Encoder } from "./encoder.js";
import { LatentNorm, PerChannelStatistics } from "./latent-statistics.js";
import { NoisePlanes } from "./noise.js";
import { posteriorMean } from "./posterior.js";
import { DECODE_BUDGET, planDecode, type TilePlan } from "./tile-plan.js";
import { decodeTiled } from "./tiling.js";

export interface CausalVideoAutoencoderOptions {
  /** The dtype of activations; moments, latents and pixels are f32 always. */
  computeDtype?: "f32" | "bf16";
  /** Whether backward computes the inside of each residual block anew: less memory, about a third more time. */
  gradientCheckpointing?: boolean;
  /** Whether latents are brought to unit scale channel by channel, else by `scaling_factor`. */
  perChannelNormalize?: boolean;
}

export interface LatentDecodeOptions {
  /** For decoders that inject noise: the planes (H,W) f32 in the order of use, or the key to draw them with. */
  noise?: readonly Tensor[] | RandomKey;
  /**
   * `auto`: in tiles where the whole doesn't fit into the memory that is free; `off`: never; or by a plan. What is
   * differentiated is decoded as a whole.
   */
  tiling?: "auto" | "off" | TilePlan;
}

/** `a.b.c` is in the modules `a` and `a.b`. */
function prefixesOf(key: string): string[] {
  const parts = key.split(".");
  return parts.slice(1).map((_, i) => parts.slice(0, i + 1).join("."));
}

/**
 * The VAE of the official releases (reference CausalVideoAutoencoder with its vae_encode and vae_decode). Videos are
 * (B,F,H,W,C) around [-1,1], latents (B,f,h,w,C) and normalised, all f32; property names are the official keys.
 */
export class CausalVideoAutoencoder extends Module {
  encoder: Encoder;
  decoder: Decoder;
  quant_conv: Conv3d | null;
  post_quant_conv: Conv3d | null;
  latent_norm_out: LatentNorm | null;
  per_channel_statistics: PerChannelStatistics;
  private _config: OfficialVaeConfig;
  private _options: CausalVideoAutoencoderOptions;
  /** The names of all modules, once they are asked for. */
  private _blocks: ReadonlySet<string> | null = null;

  /** @throws {LtxError} `invalid_argument` for impossible widths. */
  constructor(config: OfficialVaeConfig, init: Initializer, options: CausalVideoAutoencoderOptions = {}) {
    super();
    const { gradientCheckpointing } = options;
    this.encoder = init.whole(() => new Encoder(encoderConfig(config), init, { gradientCheckpointing }));
    this.decoder = init.whole(() => new Decoder(decoderConfig(config), init, { gradientCheckpointing }));
    const { quant_conv, post_quant_conv } = init.whole(() => quantConvs(config, init));
    this.quant_conv = quant_conv;
    this.post_quant_conv = post_quant_conv;
    this.latent_norm_out = config.normalize_latent_channels ? new LatentNorm(config.latent_channels, init) : null;
    this.per_channel_statistics = new PerChannelStatistics(config.latent_channels, init);
    this._config = config;
    this._options = options;
  }

  /** Whether a file may lack a key of this model: without it a channel's mean is 0. */
  static optionalKey(key: string): boolean {
    return key === "per_channel_statistics.mean-of-means";
  }

  /**
   * Whether a key that this model lacks may stand in a file: statistics that only training used, and leftovers of norms in
   * blocks that it has.
   */
  unusedKey(key: string): boolean {
    if (isUnusedStatistic(key)) return true;
    const [, block] = /^(.+)\.(?:norm[123]|conv_norm_out)\.(?:norm\.)?(?:weight|bias)$/.exec(key) ?? [];
    this._blocks ??= new Set([...this.namedState()].flatMap(([own]) => prefixesOf(own)));
    return block !== undefined && this._blocks.has(block);
  }

  get config(): OfficialVaeConfig {
    return this._config;
  }

  /** Pixels per latent pixel. */
  get spatialFactor(): number {
    return vaeFactors(this._config).space;
  }

  /** Frames per latent frame after the first. */
  get temporalFactor(): number {
    return vaeFactors(this._config).time;
  }

  /** Whether the decoder takes a timestep. */
  get timestepConditioning(): boolean {
    return this._config.timestep_conditioning;
  }

  private get dtype(): "f32" | "bf16" {
    return this._options.computeDtype ?? "f32";
  }

  /**
   * A video (B,F,H,W,C) in [-1,1] to the posterior's moments (B,f,h,w,2C): C means, then C log-variances, not clamped;
   * with latent_log_var none the C means alone.
   * @throws {LtxError} `shape_mismatch`, `invalid_argument` for a size that the model doesn't take.
   */
  encodeMoments(video: Tensor): Tensor {
    const { in_channels: channels } = this._config;
    const [, frames, height, width, c] = video.shape;
    check(video.dims === 5 && c === channels, "shape_mismatch", () => {
      return `[video vae] encode expects a video (B,F,H,W,${channels}), got [${video.shape}]`;
    });
    vaeFactors(this._config).latentShape(frames, height, width);
    return scope(() => {
      const encoded = this.encoder.forward(cast(video, this.dtype));
      const moments = cast(this.quant_conv ? this.quant_conv.forward(encoded) : encoded, "f32");
      return this.latent_norm_out ? this.latent_norm_out.normalize(moments) : moments;
    });
  }

  /** The posterior's mean (B,f,h,w,C), not normalised. */
  mode(moments: Tensor): Tensor {
    return this._config.latent_log_var === "none" ? moments : posteriorMean(moments);
  }

  /**
   * A video (B,F,H,W,C) in [-1,1] to normalised latents (B,f,h,w,C), drawn from the posterior.
   * @param noise standard normal values of the latents' shape, the key to draw them with, or null for the mean
   */
  encode(video: Tensor, noise: Tensor | RandomKey | null): Tensor {
    return scope(() => this.normalize(this.sample(this.encodeMoments(video), noise)));
  }

  /** A draw from the posterior, not normalised; its mean without noise. */
  sample(moments: Tensor, noise: Tensor | RandomKey | null): Tensor {
    if (!noise || this._config.latent_log_var === "none") return this.mode(moments);
    if (noise instanceof Tensor) return posteriorSample(moments, noise);
    return scope(() => {
      const shape = [...moments.shape.slice(0, -1), this._config.latent_channels];
      return posteriorSample(moments, normal(shape, noise, { device: moments.device }));
    });
  }

  /** Latents as the encoder gives them to those that the transformer works on. */
  normalize(latents: Tensor): Tensor {
    if (this._options.perChannelNormalize === false) return affine(latents, this._config.scaling_factor);
    return this.per_channel_statistics.normalize(latents);
  }

  /** The inverse of {@link normalize}. */
  denormalize(latents: Tensor): Tensor {
    if (this._options.perChannelNormalize === false) return affine(latents, 1 / this._config.scaling_factor);
    return this.per_channel_statistics.denormalize(latents);
  }

  /**
   * Normalised latents (B,f,h,w,C) to a video (B,F,H,W,C) around [-1,1], not clamped.
   * @param timestep (B) f32: the amplitude of the noise on the latents, for a timestep-conditioned decoder; else null
   * @throws {LtxError} `out_of_memory` when it fits not even in tiles
   */
  decode(latents: Tensor, timestep: Tensor | null, options: LatentDecodeOptions = {}): Tensor {
    const { latent_channels: channels } = this._config;
    check(latents.dims === 5 && latents.shape[4] === channels && latents.size > 0, "shape_mismatch", () => {
      return `[video vae] decode expects latents (B,f,h,w,${channels}), got [${latents.shape}]`;
    });
    const { noise = null, tiling = "auto" } = options;
    return scope(() => {
      const own = this.denormalize(latents);
      const z = cast(this.latent_norm_out ? this.latent_norm_out.denormalize(own) : own, this.dtype);
      const x = this.post_quant_conv ? this.post_quant_conv.forward(z) : z;
      // What is differentiated stays whole.
      const whole = tiling === "off" || wantsGrad(x, ...this.decoder.parameters());
      const plan = whole ? null : tiling === "auto" ? this.planDecode(x.shape) : tiling;
      if (plan?.parts.some((n) => n > 1)) return decodeTiled(this.decoder, x, timestep, noise, plan);
      return cast(this.decoder.forward(x, timestep, noise && new NoisePlanes(noise)), "f32");
    });
  }

  /**
   * How latents of a shape (B,f,h,w,C) are decoded within `budget` bytes, by default most of what the device has free.
   * @throws {LtxError} `out_of_memory` when that is too little even in tiles
   */
  planDecode(shape: readonly number[], budget = DECODE_BUDGET * this.device.available()): TilePlan {
    return planDecode(this.decoder.config, shape, budget, this.dtype === "f32" ? 4 : 2);
  }
}
