import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parseVaeParams, vaeFactors } from "../../lib/config/index.js";
import { fitFrames, VideoVae } from "../../lib/models/video-vae/index.js";
import { normal, sum, toChannelsLast, uniform } from "../../lib/ops/index.js";
import { reconstruct } from "../../lib/pipelines/reconstruct.js";
import { backward, device, noGrad, scope, Tensor } from "../../lib/tensor/index.js";
import { relativeError } from "../golden/support/check.js";
import { Fixture } from "../golden/support/fixture.js";

const small = {
  in_channels: 1,
  out_channels: 1,
  latent_channels: 6,
  base_channels: 8,
  norm_num_groups: 4,
  patch_size: 2,
  norm_layer: "pixel_norm",
  latent_log_var: "uniform",
  use_quant_conv: false,
  encoder_blocks: [
    ["res_x", 1],
    ["compress_all", 1],
    ["res_x_y", 1],
  ],
  decoder_blocks: [
    ["res_x", 1],
    ["res_x_y", 1],
    ["compress_all", 1],
  ],
};

const config = (changes: Record<string, unknown> = {}) => parseVaeParams({ ...small, ...changes }, "test");
const key = (purpose: number) => ({ seed: 1, step: 0, purpose });
const times = (values: number[]) => Tensor.from(values, [values.length]);

describe("shapes", () => {
  it.each([
    ["patches, uniform", {}, [2, 5, 12, 8, 1]],
    ["one frame", {}, [1, 1, 8, 8, 1]],
    [
      "no patches, group norm, causal",
      { patch_size: 1, norm_layer: "group_norm", causal_decoder: true },
      [1, 3, 6, 4, 1],
    ],
    [
      "layer norm, per channel, quant convs",
      { norm_layer: "layer_norm", latent_log_var: "per_channel", use_quant_conv: true },
      [1, 3, 8, 4, 1],
    ],
    ["no variances, even with quant convs", { latent_log_var: "none", use_quant_conv: true }, [1, 3, 4, 8, 1]],
    [
      "colour, widths of their own",
      { in_channels: 3, out_channels: 3, encoder_base_channels: 4, decoder_base_channels: 6 },
      [1, 3, 4, 4, 3],
    ],
    [
      "time and space apart, a wide stride",
      {
        encoder_blocks: [
          ["compress_time", 1],
          ["compress_space", 1],
          ["compress_all_x_y", { multiplier: 3 }],
        ],
        decoder_blocks: [
          ["compress_all", { multiplier: 2, residual: true }],
          ["compress_space", 1],
          ["compress_time", 1],
        ],
      },
      [1, 9, 8, 16, 1],
    ],
    [
      "folding, widening and residual resampling, replicated edges",
      {
        spatial_padding_mode: "replicate",
        encoder_blocks: [
          ["compress_time_res", { multiplier: 1 }],
          ["compress_space_res", { multiplier: 2 }],
          ["compress_all", { multiplier: 2 }],
        ],
        decoder_blocks: [
          ["compress_all", { multiplier: 2, residual: true }],
          ["compress_space", { multiplier: 2, residual: true }],
          ["compress_time", { residual: true }],
        ],
      },
      [1, 9, 8, 16, 1],
    ],
    [
      "attention in the decoder, an odd number of deterministic latents",
      {
        latent_channels: 5,
        latent_log_var: "none",
        decoder_blocks: [
          ["res_x_y", 1],
          ["attn_res_x", { num_layers: 2, attention_head_dim: 4 }],
          ["compress_all", 1],
        ],
      },
      [2, 3, 8, 4, 1],
    ],
  ] as [string, Record<string, unknown>, number[]][])("%s", async (_, changes, shape) => {
    const settings = config(changes);
    const vae = new VideoVae(settings);
    const [frames, height, width] = vaeFactors(settings).latentShape(shape[1], shape[2], shape[3]);
    const video = uniform(shape, key(0));
    const moments = vae.encodeMoments(video);
    const variances = settings.latent_log_var !== "none";
    const { latent_channels: latents } = settings;
    expect(moments.shape).toEqual([shape[0], frames, height, width, variances ? 2 * latents : latents]);
    const z = vae.sample(moments, variances ? normal([shape[0], frames, height, width, 6], key(1)) : null);
    const decoded = vae.decode(z, null);
    expect(decoded.shape).toEqual(shape);
    const values = await decoded.read();
    expect(values.every((v) => v >= 0 && v <= 1)).toBe(true);
    backward(sum(decoded));
    expect(vae.decoder.conv_out.conv.weight.grad?.shape).toEqual(vae.decoder.conv_out.conv.weight.shape);
    vae.dispose();
  });

  it("takes and gives the references' order of axes at the border", async () => {
    const vae = new VideoVae(config());
    const video = uniform([1, 1, 3, 8, 4], key(0));
    const moments = noGrad(() => vae.encodeChannelsFirst(video));
    expect(moments.shape).toEqual([1, 12, 2, 2, 1]);
    const inside = noGrad(() => vae.encodeMoments(toChannelsLast(video)));
    expect(await toChannelsLast(moments).read()).toEqual(await inside.read());
    const z = normal([1, 6, 2, 2, 1], key(1));
    expect(noGrad(() => vae.decodeChannelsFirst(z, null)).shape).toEqual([1, 1, 3, 8, 4]);
    vae.dispose();
  });
});

describe("any number of frames", () => {
  const clip = (frames: number) =>
    Tensor.from(
      Float32Array.from({ length: 2 * frames * 4 }, (_, i) => i),
      [2, frames, 2, 2, 1],
    );
  const ofFrames = async (x: Tensor) => [...(await x.read())].filter((_, i) => i % 4 === 0).map((v) => v / 4);

  it("is cut or repeated to what the configuration expects", async () => {
    const vae = new VideoVae(config({ input_number_of_frames: 5 }));
    expect(await ofFrames(vae.fitFrames(clip(7)))).toEqual([0, 1, 2, 3, 4, 7, 8, 9, 10, 11]);
    expect(await ofFrames(vae.fitFrames(clip(2)))).toEqual([0, 1, 0, 1, 0, 2, 3, 2, 3, 2]);
    const same = clip(5);
    expect(vae.fitFrames(same)).toBe(same);
    const free = new VideoVae(config());
    expect(free.fitFrames(same)).toBe(same);
    expect(() => fitFrames(same, 0)).toThrow(/a number of frames must be a positive whole number, got 0/);
    expect(() => fitFrames(Tensor.from([], [1, 0, 2, 2, 1]), 3)).toThrow(/one frame or more/);
    const tracked = clip(2);
    tracked.requiresGrad = true;
    backward(sum(fitFrames(tracked, 5)));
    expect(await ofFrames(tracked.grad as Tensor)).toEqual([3, 2, 3, 2].map((v) => v / 4));
    vae.dispose();
    free.dispose();
  });

  it("comes back from a reconstruction", async () => {
    const vae = new VideoVae(config()).requiresGrad(false);
    const video = uniform([1, 4, 8, 8, 1], key(0));
    const y = reconstruct(vae, video);
    expect(y.shape).toEqual(video.shape);
    const five = reconstruct(vae, fitFrames(video, 5));
    expect(await y.read()).toEqual((await five.read()).slice(0, y.size));
    vae.dispose();
  });
});

describe("values", () => {
  it("repeats the posterior's parts", async () => {
    const vae = new VideoVae(config());
    const moments = Tensor.from([1, -2, 0.5, 0, 2, 3, -40, 0, 1, 0.5, 0, 0], [1, 1, 1, 1, 12]);
    expect([...(await vae.mode(moments).read())]).toEqual([1, -2, 0.5, 0, 2, 3]);
    const noise = Tensor.from([1, 1, 1, 0, 0, 2], [1, 1, 1, 1, 6]);
    const expected = [1 + Math.exp(-15), -1, 0.5 + Math.exp(0.5), 0, 2, 5];
    expect(relativeError(await vae.sample(moments, noise).read(), expected)).toBeLessThan(1e-6);
    const logvars = [-30, 0, 1, 0.5, 0, 0];
    const kl = [1, -2, 0.5, 0, 2, 3].reduce((s, m, i) => s + 0.5 * (m * m + Math.exp(logvars[i]) - 1 - logvars[i]), 0);
    expect(await vae.kl(moments).item()).toBeCloseTo(kl, 4);
    vae.dispose();
  });

  it("has no divergence and no noise without variances", async () => {
    const vae = new VideoVae(config({ latent_log_var: "none" }));
    const moments = normal([2, 1, 1, 1, 6], key(0));
    expect([...(await vae.kl(moments).read())]).toEqual([0, 0]);
    expect(vae.sample(moments, null)).toBe(moments);
    expect(vae.mode(moments)).toBe(moments);
    vae.dispose();
  });

  it("starts with the documented initial values", async () => {
    const decoder_blocks = [
      ["res_x", { num_layers: 1, inject_noise: true }],
      ["res_x_y", 1],
      ["compress_all", 1],
    ];
    const vae = new VideoVae(config({ decoder_blocks, timestep_conditioning: true, base_channels: 64 }));
    const parameters = new Map(vae.namedParameters());
    const values = async (name: string) => [...(await parameters.get(name)!.read())];
    expect(await values("decoder.timestep_scale_multiplier")).toEqual([1000]);
    expect(new Set(await values("decoder.up_blocks.0.res_blocks.0.per_channel_scale2"))).toEqual(new Set([0]));
    const table = await values("decoder.up_blocks.0.res_blocks.0.scale_shift_table"); // 4 x 128, variance 1/128
    const variance = table.reduce((s, v) => s + v * v, 0) / table.length;
    expect(variance * 128).toBeGreaterThan(0.75);
    expect(variance * 128).toBeLessThan(1.25);
    const bound = 1 / Math.sqrt(27 * 4); // of a convolution from 4 channels
    const weights = await values("encoder.conv_in.conv.weight");
    expect(Math.max(...weights)).toBeLessThanOrEqual(bound);
    expect(Math.max(...weights)).toBeGreaterThan(0.95 * bound);
    vae.dispose();
  });

  it("tells the decoder how noisy its latents are, and trains the factor", async () => {
    const vae = new VideoVae(config({ timestep_conditioning: true, causal_decoder: false }));
    const z = normal([2, 2, 2, 2, 6], key(0));
    const clean = await noGrad(() => vae.decode(z, times([0, 0]))).read();
    const mixed = vae.decode(z, times([0, 0.1]));
    const noisy = await mixed.read();
    const half = clean.length / 2;
    expect(noisy.slice(0, half)).toEqual(clean.slice(0, half));
    expect(noisy.slice(half)).not.toEqual(clean.slice(half));
    backward(sum(mixed));
    expect(await vae.decoder.timestep_scale_multiplier?.grad?.item()).not.toBe(0);
    vae.dispose();
  });

  it("draws injected noise from a key, or takes planes", async () => {
    const decoder_blocks = [
      ["res_x", { num_layers: 1, inject_noise: true }],
      ["res_x_y", 1],
      ["compress_all", 1],
    ];
    const vae = new VideoVae(config({ decoder_blocks }));
    for (const [name, parameter] of vae.namedParameters()) {
      if (name.includes("per_channel_scale")) parameter.write(new Float32Array(parameter.size).fill(0.5));
    }
    const z = normal([1, 2, 2, 3, 6], key(0));
    const decode = (noise?: Parameters<VideoVae["decode"]>[2]) => noGrad(() => vae.decode(z, null, noise)).read();
    const drawn = await decode({ noise: key(7) });
    expect(await decode({ noise: key(7) })).toEqual(drawn);
    expect(await decode({ noise: key(8) })).not.toEqual(drawn);
    const planes = [0, 1].map((i) => normal([2, 3], key(7 + 65536 * i)));
    expect(await decode({ noise: planes })).toEqual(drawn);
    await expect(async () => decode()).rejects.toThrow(/injects noise/);
    await expect(async () => decode({ noise: planes.slice(1) })).rejects.toThrow(/more than the 1 places/);
    await expect(async () => decode({ noise: [normal([3, 3], key(0))] })).rejects.toThrow(
      /expects \[2,3\], got \[3,3\]/,
    );
    vae.dispose();
  });

  it("computes in bf16 close to f32, forward and backward", async () => {
    const settings = config({ timestep_conditioning: true, norm_layer: "layer_norm" });
    const video = uniform([1, 5, 16, 16, 1], key(0));
    const noise = normal([1, 3, 4, 4, 6], key(1));
    const results = [];
    for (const computeDtype of ["f32", "bf16"] as const) {
      const vae = new VideoVae(settings, { computeDtype, seed: 3 });
      const moments = vae.encodeMoments(video);
      const decoded = vae.decodeUnclamped(vae.sample(moments, noise), times([0.1]));
      expect([moments.dtype, decoded.dtype]).toEqual(["f32", "f32"]);
      const values = [await moments.read(), await decoded.read()];
      backward(sum(decoded));
      for (const p of [vae.encoder.conv_in.conv.weight, vae.decoder.conv_out.conv.weight])
        values.push(await p.grad!.read());
      results.push(values);
      vae.dispose();
    }
    const [exact, rough] = results;
    for (const [i, values] of exact.entries()) {
      const error = relativeError(rough[i], values);
      expect(error).toBeGreaterThan(0);
      expect(error).toBeLessThan(0.05);
    }
  });

  it.each(["f32", "bf16"] as const)(
    "computes the same %s gradients with checkpoints, noise included",
    async (computeDtype) => {
      const settings = config({
        timestep_conditioning: true,
        decoder_blocks: [
          ["attn_res_x", { num_layers: 2, inject_noise: true, attention_head_dim: 8 }],
          ["res_x_y", { inject_noise: true }],
          ["compress_all", 1],
          ["res_x", { num_layers: 2, inject_noise: true }],
        ],
      });
      const video = uniform([1, 5, 16, 16, 1], key(0));
      const noise = normal([1, 3, 4, 4, 6], key(1));
      const [results, kept]: [Map<string, unknown>[], number[]] = [[], []];
      for (const gradientCheckpointing of [false, true]) {
        const vae = new VideoVae(settings, { seed: 3, gradientCheckpointing, computeDtype });
        for (const [name, p] of vae.namedParameters()) {
          if (name.includes("per_channel_scale")) p.write(new Float32Array(p.size).fill(0.5));
        }
        const values = new Map<string, unknown>();
        for (let pass = 0; pass < 2; pass++) {
          const before = device().memory().live;
          const loss = scope(() => {
            const z = vae.sample(vae.encodeMoments(video), noise);
            return sum(vae.decodeUnclamped(z, times([0.1]), { noise: key(7 + pass) }));
          });
          kept.push(device().memory().live - before);
          values.set(`loss ${pass}`, await loss.item());
          backward(loss);
          loss.dispose();
        }
        for (const [name, p] of vae.namedParameters()) {
          const bytes = (await p.grad?.read()) ?? expect.fail(`${name} has no gradient`);
          values.set(name, createHash("sha256").update(bytes).digest("hex"));
        }
        results.push(values);
        vae.dispose();
      }
      expect(results[1]).toEqual(results[0]);
      expect(kept[2]).toBeLessThan(kept[0] * 0.6);
    },
  );

  it("leaves nothing behind after an encoding and a decoding without gradients", async () => {
    const vae = new VideoVae(config());
    const before = device().memory().live;
    scope(() => noGrad(() => void vae.decode(vae.mode(vae.encodeMoments(uniform([1, 3, 8, 8, 1], key(0)))), null)));
    await device().synchronize();
    expect(device().memory().live).toBe(before);
    vae.dispose();
  });
});

describe("errors", () => {
  const vae = new VideoVae(config());
  const timed = new VideoVae(config({ timestep_conditioning: true }));
  const latent = () => normal([2, 1, 2, 2, 6], key(0));
  it.each([
    [
      "channels",
      () => vae.encodeMoments(uniform([1, 3, 8, 8, 3], key(0))),
      /expects a video \(B,F,H,W,1\), got \[1,3,8,8,3\]/,
    ],
    ["patches", () => vae.encodeMoments(uniform([1, 3, 7, 8, 1], key(0))), /height 7 .* multiples of the patch size 2/],
    ["latent width", () => vae.decode(uniform([1, 1, 2, 2, 5], key(0)), null), /expects latents \(B,f,h,w,6\)/],
    ["missing noise", () => vae.sample(normal([1, 1, 1, 1, 12], key(0)), null), /needs noise of the latent's shape/],
    ["unwanted timestep", () => vae.decode(latent(), times([0, 0])), /no timestep_conditioning: pass null/],
    ["missing timestep", () => timed.decode(latent(), null), /give a timestep for each sample/],
    ["wrong timesteps", () => timed.decode(latent(), times([0])), /timestep expects f32 \[2\]/],
    [
      "attention without heads",
      () => new VideoVae({ ...config(), decoder_blocks: [["attn_res_x", 1]] }),
      /attn_res_x needs attention_head_dim/,
    ],
    [
      "heads",
      () => new VideoVae({ ...config(), decoder_blocks: [["attn_res_x", { attention_head_dim: 3 }]] }),
      /attention_head_dim 3 does not divide the 8 channels/,
    ],
    [
      "residual strides",
      () => new VideoVae({ ...config(), encoder_blocks: [["compress_all_res", { multiplier: 3 }]] }),
      /cannot make 24 channels of 8 with 8 positions each/,
    ],
    [
      "quant with uniform",
      () => new VideoVae(config({ use_quant_conv: true })),
      /use_quant_conv needs a variance per channel/,
    ],
    [
      "groups",
      () => new VideoVae(config({ norm_layer: "group_norm", norm_num_groups: 5 })),
      /split 8 channels into norm_num_groups 5/,
    ],
    [
      "multiplier",
      () => new VideoVae(config({ decoder_blocks: [["compress_all", { multiplier: 3, residual: true }]] })),
      /a multiplier that divides 8/,
    ],
  ] as [string, () => unknown, RegExp][])("%s", (_, run, message) => {
    expect(run).toThrow(message);
  });
});

describe("state dict", () => {
  it("has the reference's keys and shapes, and survives a round trip", async () => {
    const vae = new VideoVae(
      config({ timestep_conditioning: true, latent_log_var: "per_channel", use_quant_conv: true }),
    );
    const state = await vae.stateDict();
    const shapes = Object.fromEntries([...state].map(([name, { shape }]) => [name, shape]));
    expect(shapes).toMatchObject({
      "encoder.conv_in.conv.weight": [8, 4, 3, 3, 3],
      "encoder.down_blocks.0.res_blocks.0.conv2.conv.bias": [8],
      "encoder.down_blocks.1.conv.weight": [8, 8, 3, 3, 3],
      "encoder.down_blocks.2.conv_shortcut.weight": [16, 8, 1, 1, 1],
      "encoder.down_blocks.2.norm3.norm.bias": [8],
      "encoder.conv_out.conv.weight": [12, 16, 3, 3, 3],
      "decoder.timestep_scale_multiplier": [],
      "decoder.last_scale_shift_table": [2, 8],
      "decoder.last_time_embedder.timestep_embedder.linear_1.weight": [16, 256],
      "decoder.up_blocks.0.time_embedder.timestep_embedder.linear_2.weight": [64, 64],
      "decoder.up_blocks.0.res_blocks.0.scale_shift_table": [4, 16],
      "decoder.up_blocks.2.conv.conv.weight": [64, 8, 3, 3, 3],
      "quant_conv.weight": [12, 12, 1, 1, 1],
      "post_quant_conv.bias": [6],
    });
    const other = new VideoVae(vae.config, { seed: 9 });
    other.loadStateDict(state);
    expect(await other.stateDict()).toEqual(state);
    vae.dispose();
    other.dispose();
  });

  const full = join(__dirname, "..", "..", "..", "shared", "golden", "x-vae-full-hash.safetensors");
  it.skipIf(!existsSync(full))("has the keys of the full-size model", async () => {
    const fixture = await Fixture.open(full);
    // Narrow, since only names are compared.
    const settings = parseVaeParams({ ...fixture.config, base_channels: 4 }, "test");
    const vae = new VideoVae(settings);
    const names = [...vae.namedParameters()].map(([name]) => name);
    expect(new Set(names)).toEqual(new Set(fixture.parameterShapes().map(([name]) => name)));
    vae.dispose();
  });
});
