import { parseVaeParams } from "../../../lib/config/index.js";
import {
  Decoder,
  Encoder,
  posteriorLogvars,
  posteriorMean,
  posteriorStd,
  VideoVae,
} from "../../../lib/models/video-vae/index.js";
import type { Module } from "../../../lib/nn/index.js";
import {
  affine,
  mixRows,
  posteriorKl,
  posteriorSample,
  toChannelsFirst,
  toChannelsLast,
} from "../../../lib/ops/index.js";
import { backward, type Tensor } from "../../../lib/tensor/index.js";
import { backwardFrom, constant, evaluate, expectOption, init, leaf } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";
import { noisePlanes, noiseTensors } from "./resnet.js";

/** Loads the file's parameters; hashed ones stand under the name of the whole model's part, which is returned. */
function load(fixture: Fixture, module: Module, part: string): string {
  const prefix = fixture.parameterShapes().some(([key]) => key.startsWith(part)) ? part : "";
  module.loadStateDict(fixture.state(prefix));
  return prefix;
}

/** Adds `output/grad_norms`, the L2 norm of each gradient in the order that the file gives. */
function withGradNorms(fixture: Fixture, result: Map<string, Float32Array>, prefix: string): Map<string, Float32Array> {
  const order: string[] | undefined = fixture.config.grad_norm_order;
  const norm = (values: Float32Array = new Float32Array()) =>
    Math.sqrt(values.reduce((total, value) => total + value * value, 0));
  if (order) {
    const norms = order.map((key) => norm(result.get(`grad/${prefix}${key}`) ?? result.get(`grad/${key}`)));
    result.set("output/grad_norms", Float32Array.from(norms));
  }
  return result;
}

export const encode: GoldenCase = async (fixture) => {
  expectOption(fixture, "dims", 3);
  const module = new Encoder(fixture.config, init());
  const prefix = load(fixture, module, "encoder.");
  const result = await evaluate(
    module,
    () => {
      const x = leaf(fixture, "input/x");
      const inside = module.forward(toChannelsLast(x));
      const moments = toChannelsFirst(inside);
      const output: Record<string, Tensor> = { moments };
      const pairs: [Tensor, Tensor][] = [[moments, constant(fixture, "input/cotangent_moments")]];
      const cotangent = (name: string, value: Tensor) => {
        if (fixture.has(`input/cotangent_${name}`)) pairs.push([value, constant(fixture, `input/cotangent_${name}`)]);
      };
      if (fixture.has("input/posterior_noise")) {
        const noise = toChannelsLast(constant(fixture, "input/posterior_noise"));
        output.sample = toChannelsFirst(posteriorSample(inside, noise));
        output.kl = posteriorKl(inside);
        output.mode = toChannelsFirst(posteriorMean(inside));
        output.logvar = toChannelsFirst(posteriorLogvars(inside));
        output.std = toChannelsFirst(posteriorStd(inside));
        cotangent("sample", output.sample);
        cotangent("kl", output.kl);
      }
      backwardFrom(pairs);
      return { output, input: { x } };
    },
    prefix,
  );
  return withGradNorms(fixture, result, prefix);
};

export const decode: GoldenCase = async (fixture) => {
  expectOption(fixture, "dims", 3);
  const module = new Decoder(fixture.config, init());
  const prefix = load(fixture, module, "decoder.");
  const result = await evaluate(
    module,
    () => {
      const z = leaf(fixture, "input/z");
      const timestep = fixture.config.timestep_conditioning ? constant(fixture, "input/timestep") : null;
      const y = toChannelsFirst(module.forward(toChannelsLast(z), timestep, noisePlanes(fixture)));
      backward(y, constant(fixture, "input/cotangent"));
      return { output: { y }, input: { z } };
    },
    prefix,
  );
  return withGradNorms(fixture, result, prefix);
};

/** The config's VAE with the file's parameters. */
function wholeVae(fixture: Fixture, params: object): VideoVae {
  const vae = new VideoVae(parseVaeParams(params, fixture.name));
  vae.loadStateDict(fixture.state());
  return vae;
}

/** The reference's training forward: encode, sample, add noise of a random amplitude, decode. */
export const forward: GoldenCase = (fixture) => {
  const { vae_params, base_channels, norm_num_groups } = fixture.config;
  const vae = wholeVae(fixture, { ...vae_params, base_channels, norm_num_groups });
  return evaluate(vae, () => {
    const { timestep_conditioning } = vae.config;
    const x = vae.fitFrames(toChannelsLast(constant(fixture, "input/x")));
    const moments = vae.encodeMoments(x);
    const sample = vae.sample(moments, toChannelsLast(constant(fixture, "input/posterior_noise")));
    const kl = vae.kl(moments);
    // The noise comes to decoders without timestep conditioning too.
    const amplitude = fixture.has("input/u") ? affine(constant(fixture, "input/u"), 0.2) : null;
    const z = amplitude ? mixRows(sample, toChannelsLast(constant(fixture, "input/epsilon")), null, amplitude) : sample;
    const timestep = timestep_conditioning ? amplitude : null;
    const reconstructions = toChannelsFirst(vae.decode(z, timestep, { noise: noiseTensors(fixture) }));
    backwardFrom([
      [reconstructions, constant(fixture, "input/cotangent")],
      [kl, constant(fixture, "input/cotangent_kl")],
    ]);
    const output: Record<string, Tensor> = { moments: toChannelsFirst(moments), kl, reconstructions };
    if (amplitude) output.timestep = amplitude;
    return { output };
  });
};

/** A whole VAE without gradients. */
export const inference: GoldenCase = (fixture) => {
  const vae = wholeVae(fixture, fixture.config).requiresGrad(false);
  return evaluate(vae, () => {
    const moments = vae.encodeMoments(vae.fitFrames(toChannelsLast(constant(fixture, "input/x"))));
    const sample = vae.sample(moments, toChannelsLast(constant(fixture, "input/posterior_noise")));
    const timestep = vae.config.timestep_conditioning ? constant(fixture, "input/timestep") : null;
    const noised = timestep
      ? mixRows(sample, toChannelsLast(constant(fixture, "input/epsilon")), null, timestep)
      : sample;
    const decoded = vae.decodeUnclamped(noised, timestep, { noise: noiseTensors(fixture) });
    const output = {
      moments: toChannelsFirst(moments),
      sample: toChannelsFirst(sample),
      kl: vae.kl(moments),
      noised_latent: toChannelsFirst(noised),
      decoded: toChannelsFirst(decoded),
    };
    return { output };
  });
};
