import { parseLossParams, parseVaeParams } from "../../../lib/config/index.js";
import { VaeLoss } from "../../../lib/losses/index.js";
import { VideoVae } from "../../../lib/models/video-vae/index.js";
import { affine, toChannelsLast } from "../../../lib/ops/index.js";
import { Adam } from "../../../lib/optim/index.js";
import { scope, Tensor } from "../../../lib/tensor/index.js";
import { applyGradients } from "../../../lib/training/trainer.js";
import { vaeStep } from "../../../lib/training/vae-step.js";
import { init } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";

/** Entry `index` of a tensor's leading dimensions. */
function entry(fixture: Fixture, name: string, ...index: number[]): Tensor {
  const shape = fixture.shape(name);
  const inner = shape.slice(index.length);
  const size = inner.reduce((n, d) => n * d, 1);
  const at = index.reduce((offset, i, axis) => offset * shape[axis] + i, 0) * size;
  return Tensor.from(fixture.data(name).slice(at, at + size), inner);
}

/** The names of the file for what a step reports. */
const LOGGED: Record<string, string> = {
  loss_g: "loss",
  grad_norm: "norm",
  loss_d: "discriminator",
  disc_loss: "discriminator",
  d_weight: "adversarial_weight",
  g_loss: "generator",
  kl_loss: "kl",
  nll_loss: "nll",
  rec_loss: "reconstruction",
  w_loss: "wavelet",
  logvar: "logvar",
  logits_real: "logits_real",
  logits_fake: "logits_fake",
};

async function train(fixture: Fixture, variant: string): Promise<Map<string, Float32Array>> {
  const { vae_params, base_channels, norm_num_groups, ndf, steps, learning_rate } = fixture.config;
  const { betas, eps, max_grad_norm: maxGradNorm } = fixture.config;
  const { loss_config, ...params } = vae_params;
  const vae = new VideoVae(parseVaeParams({ ...params, base_channels, norm_num_groups }, fixture.name));
  const loss = new VaeLoss(parseLossParams(loss_config.params, fixture.name, params.in_channels), init(), {
    compat: "reference",
    discriminatorWidth: ndf,
    freezeDiscriminator: variant === "separate",
  });
  const initial = fixture.state();
  const isLoss = ([key]: [string, unknown]) => key.startsWith("loss.");
  vae.loadStateDict(new Map([...initial].filter((entry) => !isLoss(entry))));
  loss.loadStateDict(new Map([...initial].filter(isLoss)), "loss.");
  const optimizers = [vae.parameters(), loss.discriminator?.parameters() ?? []].map(
    (parameters) => new Adam(parameters, { lr: learning_rate, betas, eps, maxGradNorm }),
  );

  const curves = new Map(Object.keys(LOGGED).map((name) => [name, new Float32Array(steps)]));
  for (let step = 0; step < steps; step++) {
    const draw = (pass: number) => ({
      posterior: toChannelsLast(entry(fixture, "input/posterior_noise", step, pass)),
      amplitude: vae.config.timestep_conditioning ? affine(entry(fixture, "input/u", step, pass), 0.2) : null,
      latent: toChannelsLast(entry(fixture, "input/epsilon", step, pass)),
      layers: [],
    });
    const reported: Record<string, Tensor> = scope(() => {
      const x = toChannelsLast(entry(fixture, "input/batches", step));
      const result = vaeStep({ vae, loss }, x, step, draw, { reference: true });
      const [norm] = applyGradients(optimizers, 1, true);
      return { ...result.terms, loss: result.loss, norm };
    });
    for (const [name, term] of Object.entries(LOGGED)) {
      if (reported[term]) (curves.get(name) as Float32Array)[step] = await reported[term].item();
    }
    for (const tensor of Object.values(reported)) tensor.dispose();
  }

  const result = new Map([...curves].map(([name, values]) => [`output/${variant}.${name}`, values]));
  for (const [key, { data }] of [...(await vae.stateDict()), ...(await loss.stateDict("loss."))]) {
    const before = initial.get(key)?.data;
    result.set(`output/${variant}.final.${key}`, data);
    if (before)
      result.set(
        `output/${variant}.delta.${key}`,
        data.map((value, i) => value - before[i]),
      );
  }
  for (const owner of [vae, loss, ...optimizers]) owner.dispose();
  return result;
}

/** Training steps of a VAE and its discriminator, with all that is drawn given. */
export const vaeCurve: GoldenCase = async (fixture) => {
  const curves: [string, Float32Array][] = [];
  for (const variant of fixture.config.variants) curves.push(...(await train(fixture, variant)));
  return new Map(curves);
};
