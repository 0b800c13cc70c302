/** The VAE of the official releases. Its numbers are held against the official code's by the golden fixtures. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { parseOfficialVae } from "../../lib/config/index.js";
import {
  CausalVideoAutoencoder,
  type CausalVideoAutoencoderOptions,
  posteriorLogvars,
} from "../../lib/models/index.js";
import { Initializer, toCheckpoint } from "../../lib/nn/index.js";
import { normal, toChannelsFirst, toChannelsLast, uniform } from "../../lib/ops/index.js";
import { backward, device, scope, type Tensor } from "../../lib/tensor/index.js";
import { relativeError } from "../golden/support/check.js";
import { constant } from "../golden/support/evaluate.js";
import { Fixture } from "../golden/support/fixture.js";
import { RELEASES } from "../support/official-vae.js";

const made: { dispose(): void }[] = [];
afterEach(() => {
  for (const thing of made.splice(0)) thing.dispose();
});
const keep = <T extends { dispose(): void }>(thing: T): T => {
  made.push(thing);
  return thing;
};

type Release = keyof typeof RELEASES;
function vaeOf(release: Release, changes: object = {}, options: CausalVideoAutoencoderOptions = {}) {
  const config = parseOfficialVae({ ...RELEASES[release], ...changes }, "test");
  const vae = new CausalVideoAutoencoder(config, new Initializer(device(), 5), options);
  return keep(vae.requiresGrad(false));
}
const key = (purpose: number) => ({ seed: 1, step: 0, purpose });
const video = (frames: number, height = 16, width = 32, batch = 1) =>
  keep(scope(() => uniform([batch, frames, height, width, 3], key(0))));
const values = async (t: Tensor) => Float32Array.from(await keep(t).read());

describe("sizes", () => {
  it.each(["0.9.0", "0.9.1", "0.9.5"] as const)("%s goes to latents and back", async (release) => {
    const vae = vaeOf(release);
    expect([vae.spatialFactor, vae.temporalFactor, vae.timestepConditioning]).toEqual([16, 8, release !== "0.9.0"]);
    const latents = keep(vae.encode(video(9), key(1)));
    expect(latents.shape).toEqual([1, 2, 1, 2, 8]);
    const time = vae.timestepConditioning ? keep(uniform([1], key(2))) : null;
    const decoded = keep(vae.decode(latents, time, { noise: key(3) }));
    expect(decoded.shape).toEqual([1, 9, 16, 32, 3]);
    expect((await decoded.read()).every(Number.isFinite)).toBe(true);
  });

  it("are those that come back, and others are errors", () => {
    const vae = vaeOf("0.9.5");
    const refused = (run: () => unknown, message: RegExp) => expect(() => scope(run)).toThrow(message);
    refused(() => vae.encode(video(10), null), /frames 10: needs 8k\+1, nearest 9 or 17/);
    refused(() => vae.encode(video(9, 24), null), /height 24: needs a multiple of 16, nearest 16 or 32/);
    refused(() => vae.encode(normal([1, 9, 16, 16, 1], key(0)), null), /a video \(B,F,H,W,3\), got \[1,9,16,16,1\]/);
    refused(() => vae.encode(video(9), normal([1, 2, 1, 1, 8], key(1))), /noise expects \[1,2,1,2,8\]/);
    refused(() => vae.decode(normal([1, 2, 1, 1, 7], key(0)), null), /latents \(B,f,h,w,8\), got \[1,2,1,1,7\]/);
    refused(() => vae.decode(normal([1, 2, 1, 1, 8], key(0)), null), /give a timestep for each sample/);
  });
});

describe("encoding", () => {
  it("gives the first latents of a longer video for its beginning", async () => {
    const vae = vaeOf("0.9.5");
    const long = await values(vae.encode(video(17), null));
    const short = await values(vae.encode(video(9), null));
    expect(relativeError(long.subarray(0, short.length), short)).toBeLessThan(1e-6);
  });

  it("draws from the posterior by its key, or takes the mean", async () => {
    const vae = vaeOf("0.9.5");
    const moments = keep(vae.encodeMoments(video(9)));
    const noise = keep(normal([1, 2, 1, 2, 8], key(7)));
    expect(await values(vae.sample(moments, key(7)))).toEqual(await values(vae.sample(moments, noise)));
    expect(await values(vae.sample(moments, null))).toEqual(await values(vae.mode(moments)));
    expect(await values(vae.encode(video(9), key(7)))).toEqual(
      await values(scope(() => vae.normalize(vae.sample(moments, noise)))),
    );
  });

  it("has next to no variance with latent_log_var constant, and none with none", async () => {
    const constant = vaeOf("0.9.5", { latent_log_var: "constant" });
    const moments = keep(constant.encodeMoments(video(1)));
    expect(moments.shape).toEqual([1, 1, 1, 2, 16]);
    expect((await values(posteriorLogvars(moments))).every((v) => v === -30)).toBe(true);
    // The last of the channels that it computes is not used.
    const uniformly = vaeOf("0.9.5");
    expect(await values(constant.mode(moments))).toEqual(
      await values(scope(() => uniformly.mode(uniformly.encodeMoments(video(1))))),
    );
    const none = vaeOf("0.9.5", { latent_log_var: "none" });
    const means = keep(none.encodeMoments(video(1)));
    expect(means.shape).toEqual([1, 1, 1, 2, 8]);
    expect(none.sample(means, key(1))).toBe(means);
  });
});

describe("latents", () => {
  it("are normalised by the file's statistics, or by the scaling factor", async () => {
    const latents = keep(normal([1, 1, 2, 2, 8], key(4)));
    const x = await values(latents);
    const vae = vaeOf("0.9.5");
    const std = Float32Array.from({ length: 8 }, (_, i) => 0.5 + i / 8);
    const mean = Float32Array.from({ length: 8 }, (_, i) => i - 3);
    vae.per_channel_statistics["std-of-means"].write(std);
    vae.per_channel_statistics["mean-of-means"].write(mean);
    const expected = x.map((v, i) => (v - mean[i % 8]) / std[i % 8]);
    expect(relativeError(await values(vae.normalize(latents)), expected)).toBeLessThan(1e-6);
    expect(relativeError(await values(scope(() => vae.denormalize(vae.normalize(latents)))), x)).toBeLessThan(1e-6);

    const scaled = vaeOf("0.9.5", { scaling_factor: 4 }, { perChannelNormalize: false });
    expect(await values(scaled.normalize(latents))).toEqual(x.map((v) => v * 4));
    expect(await values(scaled.denormalize(latents))).toEqual(x.map((v) => v / 4));
  });
});

describe("edges", () => {
  it("are reflected where the configuration says so, which takes two positions", async () => {
    const reflect = vaeOf("0.9.5", { spatial_padding_mode: "reflect" });
    const zeros = vaeOf("0.9.5");
    const of = (vae: CausalVideoAutoencoder) => values(scope(() => vae.mode(vae.encodeMoments(video(1, 32, 32)))));
    expect(relativeError(await of(reflect), await of(zeros))).toBeGreaterThan(1e-3);
    expect(() => scope(() => reflect.encode(video(1, 16, 32), null))).toThrow(/reflecting 1 of dimension 2 .* needs 2/);
  });
});

it("computes about the same in bf16", async () => {
  const [single, half] = [vaeOf("0.9.5"), vaeOf("0.9.5", {}, { computeDtype: "bf16" })];
  const time = keep(uniform([1], key(2)));
  const through = (vae: CausalVideoAutoencoder) => values(scope(() => vae.decode(vae.encode(video(9), key(1)), time)));
  const error = relativeError(await through(half), await through(single));
  expect(error).toBeLessThan(0.03);
  expect(error).toBeGreaterThan(0);
});

it("knows which keys files may lack, and which ones mean nothing to it", () => {
  const vae = vaeOf("0.9.5");
  const keys = [...vae.namedState()].map(([name]) => name);
  expect(keys.filter((name) => name.startsWith("per_channel_statistics."))).toEqual([
    "per_channel_statistics.std-of-means",
    "per_channel_statistics.mean-of-means",
  ]);
  expect(keys.filter(CausalVideoAutoencoder.optionalKey)).toEqual(["per_channel_statistics.mean-of-means"]);
  for (const name of [
    "per_channel_statistics.channel",
    "encoder.down_blocks.0.res_blocks.0.norm1.weight",
    "decoder.up_blocks.0.res_blocks.0.norm3.norm.bias",
    "decoder.conv_norm_out.weight",
  ]) {
    expect([name, keys.includes(name), vae.unusedKey(name)]).toEqual([name, false, true]);
  }
  // Of layers and blocks that this model lacks: its list of blocks is another one than the file's.
  for (const name of [
    "encoder.conv_in.weight",
    "encoder.down_blocks.0.res_blocks.7.norm1.weight",
    "decoder.up_blocks.40.norm1.norm.weight",
    "decoder.up_blocks.0.norm_conv.weight",
    "decoder.normaliser.weight",
    "per_channel_statistics.scale",
  ]) {
    expect([name, vae.unusedKey(name)]).toEqual([name, false]);
  }
});

const golden = join(__dirname, "..", "..", "..", "shared", "golden", "o-vae-encode-0.9.5-grad.safetensors");
it.skipIf(!process.env.CI && !existsSync(golden))("computes the official gradients with checkpoints too", async () => {
  const fixture = await Fixture.open(golden);
  const config = parseOfficialVae(fixture.config.vae, "test");
  const vae = keep(new CausalVideoAutoencoder(config, new Initializer(device()), { gradientCheckpointing: true }));
  vae.encoder.loadStateDict(fixture.state("vae.encoder."));
  for (const name of ["std-of-means", "mean-of-means"] as const) {
    vae.per_channel_statistics[name].write(fixture.data(`input/${name}`));
  }
  scope(() => {
    const noise = toChannelsLast(constant(fixture, "input/noise_000_posterior"));
    const latents = vae.encode(toChannelsLast(constant(fixture, "input/media")), noise);
    backward(toChannelsFirst(latents), constant(fixture, "input/cotangent_latents"));
  });
  const names = fixture.names("grad/");
  expect(names.length).toBeGreaterThan(30);
  const parameters = new Map(vae.namedParameters("grad/vae."));
  for (const name of names) {
    const parameter = parameters.get(name);
    const grad = parameter?.grad && toCheckpoint(parameter, (await parameter.grad.read()) as Float32Array);
    expect(relativeError(grad ?? [], fixture.data(name)), name).toBeLessThan(1e-4);
  }
});
