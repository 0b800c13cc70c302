import type { VaeConfig } from "../../config/index.js";
import { check } from "../../errors.js";
import { type Conv3d, Initializer, Module } from "../../nn/index.js";
import {
  affine,
  cast,
  clamp,
  posteriorKl,
  posteriorSample,
  type RandomKey,
  toChannelsFirst,
  toChannelsLast,
  zeros,
} from "../../ops/index.js";
import { type Device, device as openDevice, scope, type Tensor } from "../../tensor/index.js";
import { decoderConfig, encoderConfig, quantConvs } from "./coders.js";
import { Decoder } from "./decoder.js";
import { Encoder } from "./encoder.js";
import { fitFrames } from "./frames.js";
import { NoisePlanes } from "./noise.js";
import { posteriorMean } from "./posterior.js";

export interface VideoVaeOptions {
  device?: Device;
  /** Of the initial values. */
  seed?: number;
  /** The dtype of activations; parameters, moments, latents and pixels are f32 always. */
  computeDtype?: "f32" | "bf16";
  /** Whether backward computes the inside of each residual block anew: less memory, about a third more time. */
  gradientCheckpointing?: boolean;
}

export interface DecodeOptions {
  /** For decoders that inject noise: the planes (H, W) f32 in the order of use, or the key to draw them with. */
  noise?: readonly Tensor[] | RandomKey;
}

/**
 * The causal video autoencoder of LTX-Video (reference CausalVideoAutoencoder), initialised as PyTorch would. Videos are
 * (B,F,H,W,C) with values in [0,1], latents (B,f,h,w,C), all f32; property names are the reference's state-dict keys.
 */
export class VideoVae extends Module {
  encoder: Encoder;
  decoder: Decoder;
  quant_conv: Conv3d | null;
  post_quant_conv: Conv3d | null;
  private _config: VaeConfig;
  private _dtype: "f32" | "bf16";

  /** @throws {LtxError} `invalid_argument` for impossible widths. */
  constructor(config: VaeConfig, options: VideoVaeOptions = {}) {
    super();
    const init = new Initializer(options.device ?? openDevice(), options.seed);
    const { gradientCheckpointing } = options;
    this.encoder = init.whole(() => new Encoder(encoderConfig(config), init, { gradientCheckpointing }));
    this.decoder = init.whole(() => new Decoder(decoderConfig(config), init, { gradientCheckpointing }));
    const { quant_conv, post_quant_conv } = init.whole(() => quantConvs(config, init));
    this.quant_conv = quant_conv;
    this.post_quant_conv = post_quant_conv;
    this._config = config;
    this._dtype = options.computeDtype ?? "f32";
  }

  get config(): VaeConfig {
    return this._config;
  }

  /** Whether moments hold log-variances; without them the latent is the encoder's output itself. */
  get stochastic(): boolean {
    return this._config.latent_log_var !== "none";
  }

  /** The video with as many frames as the configuration expects, see {@link fitFrames}; unchanged where it names none. */
  fitFrames(video: Tensor): Tensor {
    return fitFrames(video, this._config.input_number_of_frames ?? video.shape[1]);
  }

  /**
   * Video (B,F,H,W,C) in [0,1] to the posterior's moments (B,f,h,w,2C): C means, then C log-variances, not clamped;
   * with latent_log_var none only the C means. Any number of frames is taken as it is, but only those of the form
   * time·k + 1 (see vaeFactors) come back from decode.
   * @throws {LtxError} `shape_mismatch` when channels, height or width don't fit.
   */
  encodeMoments(video: Tensor): Tensor {
    const { in_channels: channels, patch_size: p } = this._config;
    const [, , height, width, c] = video.shape;
    check(video.dims === 5 && c === channels, "shape_mismatch", () => {
      return `[video vae] encode expects a video (B,F,H,W,${channels}), got [${video.shape}]`;
    });
    check(height % p === 0 && width % p === 0, "shape_mismatch", () => {
      return `[video vae] height ${height} and width ${width} must be multiples of the patch size ${p}`;
    });
    return scope(() => {
      const moments = this.encoder.forward(affine(video, 2, -1, this._dtype));
      return cast(this.quant_conv ? this.quant_conv.forward(moments) : moments, "f32");
    });
  }

  /** mean + exp(logvar / 2) · noise, noise (B,f,h,w,C); the means themselves with latent_log_var none. */
  sample(moments: Tensor, noise: Tensor | null): Tensor {
    if (!this.stochastic) return moments;
    check(noise, "invalid_argument", () => "[video vae] sample needs noise of the latent's shape; mode() needs none");
    return posteriorSample(moments, noise);
  }

  /** The posterior's mean (B,f,h,w,C). */
  mode(moments: Tensor): Tensor {
    return this.stochastic ? posteriorMean(moments) : moments;
  }

  /** Each sample's divergence from the unit Gaussian, summed: (B); 0 with latent_log_var none. */
  kl(moments: Tensor): Tensor {
    if (this.stochastic) return posteriorKl(moments);
    return zeros([moments.shape[0]], { device: moments.device });
  }

  /**
   * Latents (B,f,h,w,C) to a video (B,F,H,W,C) in [0,1]; values outside are cut, with no gradient.
   * @param timestep (B) f32: the amplitude of the noise on the latents, for a timestep-conditioned decoder; else null
   */
  decode(z: Tensor, timestep: Tensor | null, options: DecodeOptions = {}): Tensor {
    return scope(() => affine(clamp(this.decodeUnclamped(z, timestep, options), -1, 1), 0.5, 0.5));
  }

  /** As {@link decode}, before the values are cut: a video in about [-1,1]. */
  decodeUnclamped(z: Tensor, timestep: Tensor | null, options: DecodeOptions = {}): Tensor {
    const { latent_channels: channels } = this._config;
    check(z.dims === 5 && z.shape[4] === channels, "shape_mismatch", () => {
      return `[video vae] decode expects latents (B,f,h,w,${channels}), got [${z.shape}]`;
    });
    return scope(() => {
      const x = cast(z, this._dtype);
      const noise = options.noise ? new NoisePlanes(options.noise) : null;
      const latents = this.post_quant_conv ? this.post_quant_conv.forward(x) : x;
      return cast(this.decoder.forward(latents, timestep, noise), "f32");
    });
  }

  /** {@link encodeMoments} in the order of axes of the references: (B,C,F,H,W) to (B,2C,f,h,w). */
  encodeChannelsFirst(video: Tensor): Tensor {
    return scope(() => toChannelsFirst(this.encodeMoments(toChannelsLast(video))));
  }

  /** {@link decode} in the order of axes of the references: (B,C,f,h,w) to (B,C,F,H,W). */
  decodeChannelsFirst(z: Tensor, timestep: Tensor | null, options: DecodeOptions = {}): Tensor {
    return scope(() => toChannelsFirst(this.decode(toChannelsLast(z), timestep, options)));
  }
}
