import type { VaeLossConfig } from "../config/index.js";
import { check } from "../errors.js";
import { Discriminator } from "../models/discriminator.js";
import type { Lpips } from "../models/lpips.js";
import { type Initializer, Module, type Parameter } from "../nn/index.js";
import {
  add,
  affine,
  axpby,
  detach,
  exp,
  full,
  mean,
  mul,
  posteriorLogvar,
  reshape,
  sum,
  sumSamples,
  zeros,
} from "../ops/index.js";
import { noGrad, type Tensor } from "../tensor/index.js";
import { adaptiveWeight, discriminatorLoss, generatorLoss } from "./adversarial.js";
import { klLoss } from "./kl.js";
import { reconstructionLoss } from "./reconstruction.js";
import { waveletLoss } from "./wavelet.js";

export interface VaeLossOptions {
  /** Steps of the whole training, if known: what would only start later is not made. */
  steps?: number;
  /** LPIPS; owned by the loss from then on. */
  perceptual?: Lpips | null;
  /**
   * `reference`: the game with the discriminator is played and logged from step 0 on, before its weights are above 0.
   */
  compat?: "native" | "reference";
  /** Let no gradient of the generator's loss reach the discriminator: so natively, not so in the reference. */
  freezeDiscriminator?: boolean;
  /** Channels behind the discriminator's first convolution; 64 unless given. */
  discriminatorWidth?: number;
  /** The dtype of the discriminator's activations. */
  computeDtype?: "f32" | "bf16";
}

export interface VaeLossTerms {
  /** What is minimised: (1) f32. */
  loss: Tensor;
  /** Its parts before their weights, (1) f32 each; only those that take part. */
  terms: Record<string, Tensor>;
}

/**
 * The loss of the video VAE as LTX-Video documents it (reference LPIPSWithDiscriminator):
 *
 *     e     = |x - y| or (x - y)², plus perceptual_weight · the LPIPS of its sample
 *             plus wavelet_loss_weight · the wavelet loss of its sample and channel
 *     nll   = Σ (e / exp(logvar) + logvar) / batch, logvar learned or the mean of each posterior's own
 *     loss  = (nll, or with use_nll false e reduced by rec_reduction) + kl_weight · kl + d · generator
 *     d     = adversarial_weight, times {@link adaptiveWeight} unless use_adaptive_adversarial_weight is false
 *
 * A term has weight 0 before its `*_start`. `pixelloss_weight` is read and not used, as in the reference. Videos are
 * (B,F,H,W,C) f32 in [0,1]; images may be (B,H,W,C).
 */
export class VaeLoss extends Module {
  /** Null where the generator never meets it. */
  discriminator: Discriminator | null;
  /** The learned log-variance, shape []. */
  logvar: Parameter | null;
  /** What is configured and left out, in words for the user. */
  readonly notices: readonly string[];
  private _config: VaeLossConfig;
  private _options: VaeLossOptions;

  constructor(config: VaeLossConfig, init: Initializer, options: VaeLossOptions = {}) {
    super();
    const { steps = Number.POSITIVE_INFINITY, perceptual, compat, discriminatorWidth: width, computeDtype } = options;
    const notices: string[] = [];
    const wantsPerceptual = config.perceptual_weight > 0 && config.perceptual_start < steps;
    if (wantsPerceptual && !perceptual) {
      notices.push(
        `perceptual_weight ${config.perceptual_weight} has no effect: the perceptual loss needs LPIPS weights, and perceptual_checkpoint is not set`,
      );
    }
    const met = config.adversarial_weight > 0 && config.adversarial_start < steps;
    const { use_reconstruction_gan: paired, disc_num_layers: layers, use_3d: use3d } = config;
    const game = {
      inputChannels: config.disc_in_channels * (paired ? 2 : 1),
      outputChannels: paired ? 2 : 1,
      layers,
      width,
      use3d,
      computeDtype,
    };
    this.discriminator = met || compat === "reference" ? new Discriminator(game, init) : null;
    const usesLogvar = config.use_nll || compat === "reference";
    this.logvar = config.learned_logvar && usesLogvar ? init.constant([], config.logvar_init) : null;
    this.notices = notices;
    this._config = config;
    this._options = options;
  }

  get config(): VaeLossConfig {
    return this._config;
  }

  private get logsAll(): boolean {
    return this._options.compat === "reference";
  }

  /**
   * The generator's side.
   * @param target the video (B,F,H,W,C) f32 in [0,1]
   * @param reconstruction what the decoder made of it, alike
   * @param moments the posterior's (B, …, 2C) f32; null for a VAE without variances, which has no KL term
   * @param step counted from 0
   * @param lastWeight the decoder's last weight, which an adaptive adversarial weight needs
   * @param weights (B) f32: how much each sample's nll counts, or its e with use_nll false; 1 unless given. The adaptive
   * adversarial weight and the logged terms leave them out; `weighted_nll` has them.
   * @throws {LtxError} `shape_mismatch`, `invalid_argument`
   */
  forward(
    target: Tensor,
    reconstruction: Tensor,
    moments: Tensor | null,
    step: number,
    lastWeight: Tensor | null = null,
    weights: Tensor | null = null,
  ): VaeLossTerms {
    check(
      !weights || (weights.shape.join() === `${target.shape[0]}` && weights.dtype === "f32"),
      "shape_mismatch",
      () => {
        return `[vae loss] weights expects f32 [${target.shape[0]}], one for each sample, got ${weights}`;
      },
    );
    check(reconstruction.shape.join() === target.shape.join(), "shape_mismatch", () => {
      return `[vae loss] the reconstruction has shape [${reconstruction.shape}], the video [${target.shape}]`;
    });
    const { use_nll, rec_reduction, kl_weight, kl_start } = this._config;
    const elements = target.size / target.shape[0];
    const terms: Record<string, Tensor> = {};
    const videos = [asVideo(target), asVideo(reconstruction)] as const;

    const sums = this.elementLoss(...videos, step, terms);
    const shown = this.logsAll && (moments !== null || this.logvar !== null);
    const nll = use_nll || shown ? this.nll(sums, weights, elements, moments, target.dims === 4, terms) : null;
    terms.reconstruction = affine(mean(sums), 1 / elements);
    const plain = rec_reduction === "sum" ? mean(sums) : terms.reconstruction;
    const data = nll ?? plain;
    let loss = nll && use_nll ? (terms.weighted_nll ?? nll) : plain;
    if (weights && !use_nll) loss = affine(mean(mul(sums, weights)), rec_reduction === "sum" ? 1 : 1 / elements);
    if (moments && (kl_weight > 0 || this.logsAll)) {
      const started = kl_weight > 0 && step >= kl_start;
      terms.kl = started ? klLoss(moments) : noGrad(() => klLoss(moments));
      if (started) loss = axpby(1, loss, kl_weight, terms.kl);
    }
    const adversarial = this.adversarial(...videos, data, step, lastWeight, terms);
    return { loss: adversarial ? add(loss, adversarial) : loss, terms };
  }

  /**
   * The discriminator's side: its loss, which passes no gradient to the reconstruction. Null while it does not learn.
   * @param target the video (B,F,H,W,C) f32 in [0,1]
   * @param reconstruction what the decoder made of it, alike
   */
  discriminate(target: Tensor, reconstruction: Tensor, step: number): VaeLossTerms | null {
    const { discriminator, logsAll, _config: config } = this;
    const started = step >= config.disc_start;
    if (!discriminator || !(started || logsAll)) return null;
    const [real, fake] = [target, reconstruction].map((video) => asVideo(detach(video)));
    const verdict = discriminatorLoss(config, discriminator, real, fake);
    const loss = started ? verdict.loss : affine(verdict.loss, 0);
    return { loss, terms: { discriminator: loss, logits_real: verdict.real, logits_fake: verdict.fake } };
  }

  /** Σ e over each sample: (B). */
  private elementLoss(target: Tensor, reconstruction: Tensor, step: number, terms: Record<string, Tensor>): Tensor {
    const { rec_loss, perceptual_weight, perceptual_start, wavelet_loss_weight, wavelet_start } = this._config;
    const { perceptual } = this._options;
    const [, frames, height, width, channels] = target.shape;
    const positions = frames * height * width;
    let sums = reconstructionLoss(rec_loss, reconstruction, target);
    if (perceptual && perceptual_weight > 0 && step >= perceptual_start) {
      const distance = perceptual.forward(target, reconstruction);
      terms.perceptual = noGrad(() => mean(distance));
      sums = axpby(1, sums, perceptual_weight * positions * channels, distance);
    }
    if (wavelet_loss_weight > 0) {
      const perChannel = () => waveletLoss(reconstruction, target);
      if (step >= wavelet_start) {
        const wavelet = perChannel();
        terms.wavelet = noGrad(() => mean(wavelet));
        sums = axpby(1, sums, wavelet_loss_weight * positions, sumSamples(wavelet));
      } else terms.wavelet = this.logsAll ? zeros([1], { device: target.device }) : noGrad(() => mean(perChannel()));
    }
    return sums;
  }

  /** The batch's nll; with weights `terms` also gets what is minimised instead. */
  private nll(
    sums: Tensor,
    weights: Tensor | null,
    elements: number,
    moments: Tensor | null,
    images: boolean,
    terms: Record<string, Tensor>,
  ): Tensor {
    const batch = sums.shape[0];
    const shared = this.logvar
      ? reshape(this.logvar, [1])
      : this.logsAll && images && moments
        ? imageLogvar(moments)
        : null;
    if (shared) {
      terms.logvar = noGrad(() => affine(shared, 1));
      const scaled = mul(sums, exp(affine(shared, -1)));
      terms.nll = axpby(1, mean(scaled), elements, shared);
      if (weights) terms.weighted_nll = axpby(1, mean(mul(scaled, weights)), elements, mul(shared, mean(weights)));
      return terms.nll;
    }
    check(moments, "invalid_argument", () => {
      return "[vae loss] the posterior has no log-variances (latent_log_var none): set learned_logvar, or use_nll to false";
    });
    const logvar = posteriorLogvar(moments);
    terms.logvar = noGrad(() => mean(logvar));
    const perSample = add(mul(sums, exp(affine(logvar, -1))), affine(logvar, elements));
    terms.nll = affine(sum(perSample), 1 / batch);
    if (weights) terms.weighted_nll = affine(sum(mul(perSample, weights)), 1 / batch);
    return terms.nll;
  }

  /** d · generator, or null while its weight is 0. */
  private adversarial(
    target: Tensor,
    reconstruction: Tensor,
    data: Tensor,
    step: number,
    lastWeight: Tensor | null,
    terms: Record<string, Tensor>,
  ): Tensor | null {
    const { discriminator, logsAll, _config: config } = this;
    const { adversarial_weight: factor, use_adaptive_adversarial_weight: adaptive } = config;
    const started = step >= config.adversarial_start;
    check(discriminator || factor === 0 || !started, "invalid_argument", () => {
      const { steps } = this._options;
      return `[vae loss] step ${step} is past adversarial_start ${config.adversarial_start}, but the run was planned for ${steps} steps and made no discriminator: set training.steps`;
    });
    if (!discriminator || !(started || logsAll)) return null;
    check(!adaptive || lastWeight, "invalid_argument", () => {
      return "[vae loss] use_adaptive_adversarial_weight needs the decoder's last weight";
    });
    const play = () => generatorLoss(config, discriminator, target, reconstruction);
    const generator = (this._options.freezeDiscriminator ?? !logsAll) ? frozen(discriminator, play) : play();
    const weight = lastWeight && adaptive ? affine(adaptiveWeight(data, generator, lastWeight), factor) : null;
    terms.generator = generator;
    terms.adversarial_weight = weight ?? full([1], factor, { device: target.device });
    return started ? mul(generator, terms.adversarial_weight) : null;
  }

  override dispose(): void {
    super.dispose();
    this._options.perceptual?.dispose();
  }
}

/** Runs `body` while no gradient goes to the module's parameters. */
function frozen<T>(module: Module, body: () => T): T {
  module.requiresGrad(false);
  try {
    return body();
  } finally {
    module.requiresGrad(true);
  }
}

const asVideo = (x: Tensor): Tensor => (x.dims === 4 ? reshape(x, [x.shape[0], 1, ...x.shape.slice(1)]) : x);

/** The reference averages an image's log-variances over the last four axes, among them the batch. */
const imageLogvar = (moments: Tensor): Tensor => mean(posteriorLogvar(moments));
