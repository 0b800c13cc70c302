import { parseLossParams } from "../../../lib/config/index.js";
import { check } from "../../../lib/errors.js";
import { VaeLoss } from "../../../lib/losses/index.js";
import type { Discriminator } from "../../../lib/models/discriminator.js";
import { Lpips } from "../../../lib/models/lpips.js";
import { Conv2d, Conv3d, Module, type Parameter } from "../../../lib/nn/index.js";
import { add, detach, reshape, transpose, zeros } from "../../../lib/ops/index.js";
import { backward, gradients, keep, type Tensor } from "../../../lib/tensor/index.js";
import { constant, evaluate, init, leaf } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";
import { buffers, framesLast } from "./discriminator.js";

/** The loss behind the one convolution that stands for a decoder, under the file's keys. */
class DecoderAndLoss extends Module {
  last_layer: Conv3d;
  discriminator: Discriminator | null;
  logvar: Parameter | null;
  private _loss: VaeLoss;
  private _images: boolean;

  constructor(private _fixture: Fixture) {
    super();
    const { loss_config, ndf, lpips_chns } = _fixture.config;
    const [, channels, ...size] = _fixture.shape("input/inputs");
    const hidden = _fixture.shape("input/h")[1];
    this._images = size.length === 2;
    const options = { bias: false };
    this.last_layer = this._images
      ? new Conv2d(hidden, channels, 1, init(), options)
      : new Conv3d(hidden, channels, [1, 1, 1], init(), options);
    const perceptual = lpips_chns
      ? new Lpips(_fixture.state("perceptual_loss."), { range: "unit" }, _fixture.name)
      : null;
    this._loss = new VaeLoss(parseLossParams(loss_config, _fixture.name, channels), init(), {
      compat: "reference",
      discriminatorWidth: ndf,
      perceptual,
    });
    this.discriminator = this._loss.discriminator;
    this.logvar = this._loss.logvar;
    const state = [..._fixture.state()].filter(([key]) => !key.startsWith("perceptual_loss."));
    this.loadStateDict(new Map(state));
  }

  get loss(): VaeLoss {
    return this._loss;
  }

  /** A file's tensor as the loss takes it: an image without frames. */
  take(x: Tensor): Tensor {
    const last = framesLast(x);
    const [b, , ...size] = last.shape;
    return this._images ? reshape(last, [b, ...size]) : last;
  }

  /** Inputs, and their reconstructions from h. */
  videos(h: Tensor): { target: Tensor; reconstruction: Tensor } {
    const target = this.take(constant(this._fixture, "input/inputs"));
    return { target, reconstruction: reshape(this.last_layer.forward(framesLast(h)), target.shape) };
  }

  override dispose(): void {
    super.dispose();
    this._loss.dispose();
  }
}

/**
 * The gradient that the reference's reconstruction retains. It adds up what every pass through it brings, and an adaptive
 * weight takes two of its own: of the likelihood and of the generator's loss, both before their weights.
 */
function retained(loss: VaeLoss, value: Tensor, terms: Record<string, Tensor>, reconstruction: Tensor): Tensor {
  const passes = loss.config.use_adaptive_adversarial_weight ? [value, terms.nll, terms.generator] : [value];
  return passes.map((pass) => gradients(pass, [reconstruction])[0]).reduce(add);
}

/** The file's weights (B, 1, …), one for each sample. */
function sampleWeights(fixture: Fixture): Tensor {
  const weights = constant(fixture, "input/weights");
  check(weights.size === weights.shape[0], "invalid_argument", () => {
    return `[golden] ${fixture.name}: input/weights [${weights.shape}] must hold one value for each sample`;
  });
  return reshape(weights, [weights.size]);
}

function generatorTurn(fixture: Fixture): Promise<Map<string, Float32Array>> {
  const module = new DecoderAndLoss(fixture);
  return evaluate(
    module,
    () => {
      const [h, moments] = [leaf(fixture, "input/h"), leaf(fixture, "input/moments")];
      const { target, reconstruction } = module.videos(h);
      const { global_step: step } = fixture.config;
      const { loss } = module;
      const { loss: documented, terms } = loss.forward(
        target,
        reconstruction,
        module.take(moments),
        step,
        module.last_layer.weight,
        fixture.has("input/weights") ? sampleWeights(fixture) : null,
      );
      const reconstructions = channelsFirst(detach(reconstruction));
      reconstructions.grad = keep(channelsFirst(retained(loss, documented, terms, reconstruction)));
      backward(documented);
      // With use_nll the reference drops all that follows the likelihood by an operator's precedence.
      const reference = loss.config.use_nll ? (terms.weighted_nll ?? terms.nll) : documented;
      const none = () => zeros([1]);
      const log = {
        total_loss: reference,
        logvar: terms.logvar,
        kl_loss: terms.kl,
        nll_loss: terms.nll,
        rec_loss: terms.reconstruction,
        w_loss: terms.wavelet ?? none(),
        p_loss: terms.perceptual ?? none(),
        d_weight: terms.adversarial_weight,
        g_loss: terms.generator,
      };
      const logged = Object.entries(log).map(([name, value]) => [`log_reference_${name}`, value]);
      const output = {
        reconstructions,
        loss_documented: documented,
        loss_reference: reference,
        ...Object.fromEntries(logged),
        ...buffers(module, "g."),
      };
      return { output, input: { "g.h": h, "g.moments": moments, "g.reconstructions": reconstructions } };
    },
    "g.",
  );
}

function discriminatorTurn(fixture: Fixture): Promise<Map<string, Float32Array>> {
  const module = new DecoderAndLoss(fixture);
  return evaluate(
    module,
    () => {
      const { target, reconstruction } = module.videos(constant(fixture, "input/h"));
      const verdict = module.loss.discriminate(target, reconstruction, fixture.config.global_step);
      if (!verdict) return {};
      backward(verdict.loss);
      const {
        discriminator: log_disc_loss,
        logits_real: log_logits_real,
        logits_fake: log_logits_fake,
      } = verdict.terms;
      const output = { disc_loss: verdict.loss, log_disc_loss, log_logits_real, log_logits_fake };
      return { output: { ...output, ...buffers(module, "d.") } };
    },
    "d.",
  );
}

function channelsFirst(x: Tensor): Tensor {
  const [b, ...rest] = x.shape;
  const c = rest.pop() as number;
  const size = rest.reduce((n, d) => n * d, 1);
  return reshape(transpose(reshape(x, [b, size, c])), [b, c, ...rest]);
}

/** Both turns of a step, each from the stored parameters and buffers. */
export const vaeLoss: GoldenCase = async (fixture) =>
  new Map([...(await generatorTurn(fixture)), ...(await discriminatorTurn(fixture))]);
