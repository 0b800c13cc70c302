import { dirname, join } from "node:path";
import { parseOfficialTransformer } from "../../../lib/config/official/transformer.js";
import { parseOfficialUpsampler } from "../../../lib/config/official/upsampler.js";
import { parseOfficialVae } from "../../../lib/config/official/vae.js";
import { check } from "../../../lib/errors.js";
import { loadWeights } from "../../../lib/formats/load-weights.js";
import { type OfficialModels, openOfficial } from "../../../lib/formats/official/open.js";
import { LatentUpsampler } from "../../../lib/models/latent-upsampler.js";
import { LtxVideoTransformer } from "../../../lib/models/transformer/index.js";
import { CausalVideoAutoencoder } from "../../../lib/models/video-vae/index.js";
import { toChannelsFirst, toChannelsLast } from "../../../lib/ops/index.js";
import { noGrad, type Tensor } from "../../../lib/tensor/index.js";
import { constant, evaluate, init } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";
import { sampleTokens } from "./official-transformer.js";

/** What the models compute that are in the files beside the fixture: in each type, and once more as diffusers has them. */
export const officialCheckpoint: GoldenCase = async (fixture) => {
  const { diffusers, diffusers_outputs_equal: same, latent_upsampler: upscaler, ...variants } = fixture.config.files;
  const at = (path: string) => join(dirname(fixture.path), path);
  const result = new Map<string, Float32Array>();
  for (const [variant, path] of Object.entries<string>(variants)) {
    const outputs = await withModels(at(path), (models) => modelOutputs(fixture, models));
    for (const [name, values] of outputs) result.set(`${name}_${variant}`, values);
  }
  if (diffusers) {
    for (const [name, values] of await withModels(at(diffusers), (models) => modelOutputs(fixture, models))) {
      const expected = result.get(`${name}_${same}`);
      check(expected && Buffer.from(expected.buffer).equals(Buffer.from(values.buffer)), "checkpoint", () => {
        return `[golden] ${name} of the diffusers folder differs from that of the ${same} file`;
      });
    }
  }
  if (!upscaler) return result;
  const upsampled = await withModels(at(upscaler), (models) => upsample(fixture, models));
  return new Map([...result, ...upsampled]);
};

async function withModels<T>(path: string, body: (models: OfficialModels) => Promise<T>): Promise<T> {
  const models = await openOfficial(path);
  try {
    return await body(models);
  } finally {
    await models.close();
  }
}

async function modelOutputs(fixture: Fixture, models: OfficialModels): Promise<Map<string, Float32Array>> {
  const { configs, path } = models;
  const transformer = new LtxVideoTransformer(parseOfficialTransformer(configs.transformer, path).options, init());
  await loadWeights(transformer, models.module("transformer"));
  const sample = await evaluate(transformer, () => ({
    output: { sample: noGrad(() => sampleTokens(fixture, transformer)) },
  }));
  const vae = new CausalVideoAutoencoder(parseOfficialVae(configs.vae, path), init());
  vae.requiresGrad(false);
  const { optionalKey: optional } = CausalVideoAutoencoder;
  await loadWeights(vae, models.module("vae"), { optional, ignore: (key) => vae.unusedKey(key) });
  const coded = await evaluate(vae, () => {
    const moments = vae.encodeMoments(toChannelsLast(constant(fixture, "input/media")));
    const timestep = vae.timestepConditioning ? constant(fixture, "input/decode_timestep") : null;
    const latents = toChannelsLast(constant(fixture, "input/latents"));
    const video = vae.decode(latents, timestep, { noise: planes(fixture) });
    return { output: { mode: toChannelsFirst(vae.mode(moments)), video: toChannelsFirst(video) } };
  });
  return new Map([...sample, ...coded].filter(([name]) => name.startsWith("output/")));
}

/** The maps that the decoder adds, in the order of the reference's draws. */
function planes(fixture: Fixture): Tensor[] | undefined {
  const names = fixture.names("input/noise_").filter((name) => name.endsWith("_vae_inject"));
  return names.length > 0 ? names.sort().map((name) => constant(fixture, name)) : undefined;
}

async function upsample(fixture: Fixture, models: OfficialModels): Promise<Map<string, Float32Array>> {
  const upsampler = new LatentUpsampler(parseOfficialUpsampler(models.configs.upsampler, models.path), init());
  upsampler.requiresGrad(false);
  await loadWeights(upsampler, models.module("upsampler"));
  return evaluate(upsampler, () => {
    const latents = toChannelsLast(constant(fixture, "input/latents"));
    return { output: { upsampled: toChannelsFirst(upsampler.forward(latents)) } };
  });
}
