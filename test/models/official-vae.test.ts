/** Encoders and decoders of the official model files, block kinds that were never released among them. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { Decoder, Encoder, NoisePlanes } from "../../lib/models/video-vae/index.js";
import { Conv3d, Initializer, type Module, toCheckpoint } from "../../lib/nn/index.js";
import { posteriorSample, toChannelsFirst, toChannelsLast } from "../../lib/ops/index.js";
import { backward, device, noGrad, scope, Tensor } from "../../lib/tensor/index.js";
import { relativeError } from "../golden/support/check.js";
import { Fixture } from "../golden/support/fixture.js";

const golden = join(__dirname, "..", "..", "..", "shared", "golden");
const initial = () => new Initializer(device());
const modules: Module[] = [];
afterEach(() => {
  for (const module of modules.splice(0)) module.dispose();
});

function loaded<M extends Module>(module: M, fixture: Fixture, prefix: string): M {
  module.loadStateDict(fixture.state(prefix));
  modules.push(module);
  return module;
}

function pointConvolution(fixture: Fixture, name: string): Conv3d | null {
  const shape = fixture.parameterShapes().find(([key]) => key === `vae.${name}.weight`)?.[1];
  if (!shape) return null;
  return loaded(new Conv3d(shape[1], shape[0], [1, 1, 1], initial()), fixture, `vae.${name}.`);
}

const shared = (vae: Fixture["config"]) => ({
  norm_num_groups: 1,
  norm_layer: vae.norm_layer,
  patch_size: vae.patch_size,
  spatial_padding_mode: vae.spatial_padding_mode,
});

function officialEncoder(fixture: Fixture, options: { gradientCheckpointing?: boolean } = {}): Encoder {
  const { vae } = fixture.config;
  const settings = {
    ...shared(vae),
    in_channels: vae.in_channels,
    out_channels: vae.latent_channels,
    blocks: vae.encoder_blocks,
    base_channels: vae.encoder_base_channels,
    latent_log_var: vae.latent_log_var,
  };
  return loaded(new Encoder(settings, initial(), options), fixture, "vae.encoder.");
}

const media = (fixture: Fixture): Tensor =>
  toChannelsLast(Tensor.from(fixture.data("input/media"), fixture.shape("input/media")));

async function encode(fixture: Fixture): Promise<Float32Array> {
  const encoder = officialEncoder(fixture);
  const quant = pointConvolution(fixture, "quant_conv");
  const moments = noGrad(() =>
    scope(() => {
      const y = encoder.forward(media(fixture));
      return toChannelsFirst(quant ? quant.forward(y) : y);
    }),
  );
  return normalized(fixture, await moments.read());
}

/** The means (the first half of the channels) by the model's own statistics, where it has them. */
function normalized(fixture: Fixture, moments: ArrayLike<number>): Float32Array {
  const [, channels, ...rest] = fixture.shape("output/moments");
  const plane = rest.reduce((n, d) => n * d, 1);
  const own = ownStatistics(fixture);
  return Float32Array.from(moments, (v, i) => {
    const c = Math.floor(i / plane) % channels;
    return own && c < channels / 2 ? (v - own.mean[c]) / own.std[c] : v;
  });
}

function ownStatistics(fixture: Fixture): { mean: Float32Array; std: Float32Array } | null {
  if (!fixture.config.vae.normalize_latent_channels) return null;
  const of = (name: string) => fixture.state("vae.latent_norm_out.").get(name)?.data ?? new Float32Array();
  return { mean: of("running_mean"), std: of("running_var").map((v) => Math.sqrt(v + 1e-5)) };
}

/** Latents as a decoder reads them: times the deviation, plus the mean; the model's own statistics last. */
function denormalized(fixture: Fixture): Tensor {
  const [batch, channels, ...rest] = fixture.shape("input/latents");
  const plane = rest.reduce((n, d) => n * d, 1);
  const [mean, std] = [fixture.data("input/mean-of-means"), fixture.data("input/std-of-means")];
  const own = ownStatistics(fixture);
  const z = Float32Array.from(fixture.data("input/latents"), (v, i) => {
    const c = Math.floor(i / plane) % channels;
    const value = v * std[c] + mean[c];
    return own ? value * own.std[c] + own.mean[c] : value;
  });
  return Tensor.from(z, [batch, channels, ...rest]);
}

async function decode(fixture: Fixture): Promise<Float32Array> {
  const { vae } = fixture.config;
  const settings = {
    ...shared(vae),
    in_channels: vae.latent_channels,
    out_channels: vae.out_channels,
    blocks: [...vae.decoder_blocks].reverse(), // the official files list them from the pixels on
    base_channels: vae.decoder_base_channels,
    causal: vae.causal_decoder,
    timestep_conditioning: vae.timestep_conditioning ?? false,
  };
  const decoder = loaded(new Decoder(settings, initial()), fixture, "vae.decoder.");
  const quant = pointConvolution(fixture, "post_quant_conv");
  const video = noGrad(() =>
    scope(() => {
      const planes = fixture.names("input/noise_").map((name) => Tensor.from(fixture.data(name), fixture.shape(name)));
      const z = toChannelsLast(denormalized(fixture));
      const timestep = fixture.has("input/timestep") ? Tensor.from(fixture.data("input/timestep"), [1]) : null;
      return toChannelsFirst(decoder.forward(quant ? quant.forward(z) : z, timestep, new NoisePlanes(planes)));
    }),
  );
  return (await video.read()) as Float32Array;
}

describe.skipIf(!process.env.CI && !existsSync(golden))("official VAE", () => {
  it.each([
    "o-vae-encode-0.9.5-image",
    "o-vae-encode-0.9.5-video17",
    "o-vae-encode-0.9.5-padreplicate",
    "o-vae-encode-options",
  ])("%s", async (name) => {
    const fixture = await Fixture.open(join(golden, `${name}.safetensors`));
    expect(relativeError(await encode(fixture), fixture.data("output/moments"))).toBeLessThan(1e-4);
  });

  it.each([false, true])("o-vae-encode-0.9.5-grad, checkpointed: %s", async (gradientCheckpointing) => {
    const fixture = await Fixture.open(join(golden, "o-vae-encode-0.9.5-grad.safetensors"));
    const encoder = officialEncoder(fixture, { gradientCheckpointing });
    const std = fixture.data("input/std-of-means");
    const shape = fixture.shape("input/cotangent_latents");
    const plane = shape[2] * shape[3] * shape[4];
    scope(() => {
      const noise = Tensor.from(fixture.data("input/noise_000_posterior"), shape);
      // Of the latents before they are divided by the deviation.
      const cotangent = Float32Array.from(
        fixture.data("input/cotangent_latents"),
        (v, i) => v / std[Math.floor(i / plane) % shape[1]],
      );
      const sample = posteriorSample(encoder.forward(media(fixture)), toChannelsLast(noise));
      backward(toChannelsFirst(sample), Tensor.from(cotangent, shape));
    });
    const names = fixture.names("grad/");
    expect(names.length).toBeGreaterThan(30);
    const parameters = new Map(encoder.namedParameters("grad/vae.encoder."));
    for (const name of names) {
      const parameter = parameters.get(name);
      const grad = parameter?.grad && toCheckpoint(parameter, (await parameter.grad.read()) as Float32Array);
      expect(relativeError(grad ?? [], fixture.data(name)), name).toBeLessThan(1e-4);
    }
  });

  it.each([
    "o-vae-decode-0.9.1-video9",
    "o-vae-decode-0.9.5-video17",
    "o-vae-decode-0.9.5-padreplicate",
    "o-vae-decode-options",
  ])("%s", async (name) => {
    const fixture = await Fixture.open(join(golden, `${name}.safetensors`));
    expect(relativeError(await decode(fixture), fixture.data("output/video"))).toBeLessThan(1e-4);
  });
});
