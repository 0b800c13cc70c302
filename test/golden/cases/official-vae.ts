import { parseOfficialVae } from "../../../lib/config/index.js";
import { check } from "../../../lib/errors.js";
import { CausalVideoAutoencoder } from "../../../lib/models/video-vae/index.js";
import type { Module } from "../../../lib/nn/index.js";
import { toChannelsFirst, toChannelsLast } from "../../../lib/ops/index.js";
import { noGrad, type Tensor } from "../../../lib/tensor/index.js";
import { backwardFrom, constant, evaluate, init, leaf } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";

/** The file's VAE. A file may hold one half of the parameters; what needs the other is not computed then. */
export function officialVae(fixture: Fixture, prefix: string): CausalVideoAutoencoder {
  const { vae: config, vae_per_channel_normalize: perChannelNormalize } = fixture.config;
  const vae = new CausalVideoAutoencoder(parseOfficialVae(config, fixture.path), init(), { perChannelNormalize });
  const { encoder, decoder, quant_conv, post_quant_conv, latent_norm_out } = vae;
  const halves = { encoder, decoder, quant_conv, post_quant_conv, latent_norm_out };
  let loaded = 0;
  for (const [name, module] of Object.entries(halves) as [string, Module | null][]) {
    const state = fixture.state(`${prefix}${name}.`);
    if (!module || state.size === 0) continue;
    module.loadStateDict(state);
    loaded += state.size;
  }
  const listed = fixture.parameterShapes().filter(([key]) => key.startsWith(prefix)).length;
  check(loaded === listed, "checkpoint", () => `[golden] ${fixture.name}: ${loaded} of ${listed} parameters are known`);
  for (const name of ["std-of-means", "mean-of-means"] as const) {
    vae.per_channel_statistics[name].write(fixture.data(`input/${name}`));
  }
  return vae;
}

/** The reference's draws of a kind, in the order of the calls. */
const draws = (fixture: Fixture, what: string): Tensor[] =>
  fixture
    .names("input/noise_")
    .filter((name) => name.endsWith(`_${what}`))
    .sort()
    .map((name) => constant(fixture, name));

function encoding(fixture: Fixture, vae: CausalVideoAutoencoder, media: Tensor): Record<string, Tensor> {
  const moments = vae.encodeMoments(toChannelsLast(media));
  const [noise] = draws(fixture, "posterior").map(toChannelsLast);
  const latents = vae.normalize(vae.sample(moments, noise ?? null));
  return {
    moments: toChannelsFirst(moments),
    mode: toChannelsFirst(vae.mode(moments)),
    latents: toChannelsFirst(latents),
  };
}

function decoding(fixture: Fixture, vae: CausalVideoAutoencoder, latents: Tensor): Tensor {
  const timestep = vae.timestepConditioning ? constant(fixture, "input/timestep") : null;
  const planes = draws(fixture, "vae_inject");
  const noise = planes.length > 0 ? planes : undefined;
  return toChannelsFirst(vae.decode(toChannelsLast(latents), timestep, { noise }));
}

/** `vae_encode` of the media; where the file has a cotangent, also the gradients. */
export const encodeOfficial: GoldenCase = (fixture) => {
  const prefix = fixture.config.param_prefix ?? "";
  const vae = officialVae(fixture, prefix);
  return evaluate(
    vae,
    () => {
      const media = leaf(fixture, "input/media");
      if (!fixture.has("input/cotangent_latents")) return { output: noGrad(() => encoding(fixture, vae, media)) };
      const output = encoding(fixture, vae, media);
      backwardFrom([[output.latents, constant(fixture, "input/cotangent_latents")]]);
      return { output, input: { media } };
    },
    prefix,
  );
};

/** `vae_decode` of the latents; where the file has a cotangent, also the gradients. */
export const decodeOfficial: GoldenCase = (fixture) => {
  const prefix = fixture.config.param_prefix ?? "";
  const vae = officialVae(fixture, prefix);
  return evaluate(
    vae,
    () => {
      const latents = leaf(fixture, "input/latents");
      if (!fixture.has("input/cotangent_video")) {
        return { output: { video: noGrad(() => decoding(fixture, vae, latents)) } };
      }
      const video = decoding(fixture, vae, latents);
      backwardFrom([[video, constant(fixture, "input/cotangent_video")]]);
      return { output: { video }, input: { latents } };
    },
    prefix,
  );
};

/** Both ways without gradients, each from the file's own input. */
export const fullOfficial: GoldenCase = (fixture) => {
  const vae = officialVae(fixture, fixture.config.param_prefix ?? "").requiresGrad(false);
  return evaluate(vae, () =>
    noGrad(() => {
      const { latents } = encoding(fixture, vae, constant(fixture, "input/media"));
      return { output: { latents_out: latents, video: decoding(fixture, vae, constant(fixture, "input/latents")) } };
    }),
  );
};
