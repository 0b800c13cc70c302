import type { VaeLossConfig } from "../config/index.js";
import { check, LtxError } from "../errors.js";
import { type Initializer, Module, type Parameter } from "../nn/index.js";
import { add, affine, axpby, exp, mean, mul, posteriorLogvar, reshape, sum, sumSamples } from "../ops/index.js";
import { noGrad, type Tensor } from "../tensor/index.js";
import { klLoss } from "./kl.js";
import { reconstructionLoss } from "./reconstruction.js";
import { waveletLoss } from "./wavelet.js";

export interface VaeLossOptions {
  /** Steps of the whole training, if known: a term that starts later is never missed. */
  steps?: number;
  /** What to do about a term that is configured and not supported yet: throw, or leave it out and say so. */
  unsupported?: "error" | "skip";
}

export interface VaeLossTerms {
  /** What is minimised: (1) f32. */
  loss: Tensor;
  /** Its parts before their weights, (1) f32 each; `wavelet`, `nll` and `kl` only where they take part. */
  terms: Record<string, Tensor>;
}

/**
 * The loss of the video VAE as LTX-Video documents it (reference LPIPSWithDiscriminator):
 *
 *     e     = |x - y| or (x - y)², plus wavelet_loss_weight · the wavelet loss of its sample and channel
 *     nll   = Σ (e / exp(logvar) + logvar) / batch, logvar learned or the mean of each posterior's own
 *     loss  = (nll, or with use_nll false e reduced by rec_reduction) + kl_weight · kl
 *
 * A term has weight 0 before its `*_start`. `pixelloss_weight` is read and not used, as in the reference.
 */
export class VaeLoss extends Module {
  /** The learned log-variance, shape []. */
  logvar: Parameter | null;
  /** What is configured and left out, in words for the user. */
  readonly notices: readonly string[];
  private _config: VaeLossConfig;
  private _adversarialFrom: number;

  /** @throws {LtxError} `unavailable` for a configured term that is not supported yet, unless told to skip it. */
  constructor(config: VaeLossConfig, init: Initializer, options: VaeLossOptions = {}) {
    super();
    const { steps = Number.POSITIVE_INFINITY, unsupported = "error" } = options;
    const notices: string[] = [];
    const refuse = (message: string) => {
      if (unsupported === "error") throw new LtxError("unavailable", `[vae loss] ${message}`);
      notices.push(message);
    };
    if (config.perceptual_weight > 0 && config.perceptual_start < steps) {
      const what = `perceptual_weight ${config.perceptual_weight}`;
      if (config.perceptual_checkpoint === undefined) {
        notices.push(
          `${what} has no effect: the perceptual loss needs LPIPS weights, and perceptual_checkpoint is not set`,
        );
      } else {
        refuse(`${what}: the perceptual loss is not supported yet; set perceptual_weight to 0`);
      }
    }
    this._adversarialFrom = config.adversarial_weight > 0 ? config.adversarial_start : Number.POSITIVE_INFINITY;
    // Where the number of steps is not known, a later start is refused when it comes.
    if (
      this._adversarialFrom < steps &&
      (this._adversarialFrom === 0 || options.steps !== undefined || unsupported === "skip")
    ) {
      refuse(adversarialMessage(config));
      this._adversarialFrom = Number.POSITIVE_INFINITY;
    }
    this.logvar = config.use_nll && config.learned_logvar ? init.constant([], config.logvar_init) : null;
    this.notices = notices;
    this._config = config;
  }

  get config(): VaeLossConfig {
    return this._config;
  }

  /**
   * @param target the video (B,F,H,W,C) f32 in [0,1]
   * @param reconstruction what the decoder made of it, alike
   * @param moments the posterior's (B, …, 2C) f32; null for a VAE without variances, which has no KL term
   * @param step counted from 0
   */
  forward(target: Tensor, reconstruction: Tensor, moments: Tensor | null, step: number): VaeLossTerms {
    check(reconstruction.shape.join() === target.shape.join(), "shape_mismatch", () => {
      return `[vae loss] the reconstruction has shape [${reconstruction.shape}], the video [${target.shape}]`;
    });
    check(step < this._adversarialFrom, "unavailable", () => `[vae loss] ${adversarialMessage(this._config)}`);
    const { use_nll, rec_reduction, kl_weight, kl_start } = this._config;
    const [batch] = target.shape;
    const elements = target.size / batch;
    const terms: Record<string, Tensor> = {};

    const sums = this.elementLoss(target, reconstruction, step, terms);
    terms.reconstruction = affine(mean(sums), 1 / elements);
    let loss = rec_reduction === "sum" ? mean(sums) : terms.reconstruction;
    if (use_nll) {
      loss = this.nll(sums, elements, moments, terms);
      terms.nll = loss;
    }
    if (moments && kl_weight > 0) {
      const started = step >= kl_start;
      terms.kl = started ? klLoss(moments) : noGrad(() => klLoss(moments));
      if (started) loss = axpby(1, loss, kl_weight, terms.kl);
    }
    return { loss, terms };
  }

  /** Σ e over each sample: (B). */
  private elementLoss(target: Tensor, reconstruction: Tensor, step: number, terms: Record<string, Tensor>): Tensor {
    const { rec_loss, wavelet_loss_weight: weight, wavelet_start } = this._config;
    const sums = reconstructionLoss(rec_loss, reconstruction, target);
    if (weight === 0) return sums;
    const wavelet = () => waveletLoss(reconstruction, target);
    if (step < wavelet_start) {
      terms.wavelet = noGrad(() => mean(wavelet()));
      return sums;
    }
    const [, frames, height, width] = target.shape;
    const perChannel = wavelet();
    terms.wavelet = noGrad(() => mean(perChannel));
    return axpby(1, sums, weight * frames * height * width, sumSamples(perChannel));
  }

  private nll(sums: Tensor, elements: number, moments: Tensor | null, terms: Record<string, Tensor>): Tensor {
    const batch = sums.shape[0];
    if (this.logvar) {
      const logvar = reshape(this.logvar, [1]);
      terms.logvar = logvar;
      return axpby(1, mean(mul(sums, exp(affine(logvar, -1)))), elements, logvar);
    }
    check(moments, "invalid_argument", () => {
      return "[vae loss] the posterior has no log-variances (latent_log_var none): set learned_logvar, or use_nll to false";
    });
    const logvar = posteriorLogvar(moments);
    terms.logvar = noGrad(() => mean(logvar));
    const perSample = add(mul(sums, exp(affine(logvar, -1))), affine(logvar, elements));
    return affine(sum(perSample), 1 / batch);
  }
}

function adversarialMessage({ adversarial_weight, adversarial_start }: VaeLossConfig): string {
  return (
    `adversarial_weight ${adversarial_weight} from step ${adversarial_start} on: the discriminator is not supported yet; ` +
    "set adversarial_weight to 0, or adversarial_start to the number of training steps"
  );
}
