import { parseOfficialUpsampler } from "../../../lib/config/index.js";
import { adainFilterLatent, toneMapLatents } from "../../../lib/diffusion/index.js";
import { LatentUpsampler } from "../../../lib/models/index.js";
import { PerChannelStatistics } from "../../../lib/models/video-vae/latent-statistics.js";
import { affine, toChannelsFirst, toChannelsLast } from "../../../lib/ops/index.js";
import { noGrad, type Tensor } from "../../../lib/tensor/index.js";
import { constant, evaluate, init } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";

/** What stands behind each output's name as a number, by its beginning. */
function outputs(fixture: Fixture, prefix: string, compute: (value: number) => Tensor): [string, Tensor][] {
  const names = fixture.names(`output/${prefix}_`).map((name) => name.slice("output/".length));
  return names.map((name) => [name, toChannelsFirst(compute(Number(name.slice(prefix.length + 1))))]);
}

/** The upsampler on latents as they are and on normalised ones; what is done to the latter; the tone map. */
export const latentUpsampler: GoldenCase = (fixture) => {
  const { latent_upsampler, param_prefix: prefix = "" } = fixture.config;
  const model = new LatentUpsampler(parseOfficialUpsampler(latent_upsampler, fixture.path), init());
  model.loadStateDict(fixture.state(prefix));
  return evaluate(model, () =>
    noGrad(() => {
      const latents = toChannelsLast(constant(fixture, "input/latents"));
      const statistics = new PerChannelStatistics(latents.shape[4], init());
      for (const name of ["std-of-means", "mean-of-means"] as const) {
        statistics[name].write(fixture.data(`input/${name}`));
      }
      const normalized = statistics.normalize(model.forward(statistics.denormalize(latents)));
      statistics.dispose();
      const output: Record<string, Tensor> = {
        upsampled: toChannelsFirst(model.forward(latents)),
        upsampled_normalized: toChannelsFirst(normalized),
        ...Object.fromEntries(outputs(fixture, "adain", (factor) => adainFilterLatent(normalized, latents, factor))),
        ...Object.fromEntries(outputs(fixture, "tone_map", (ratio) => toneMapLatents(affine(latents, 3), ratio))),
      };
      return { output };
    }),
  );
};
