/** Configurations of official VAEs and upsamplers: from metadata, from diffusers folders, from keys. */
import { describe, expect, it } from "vitest";
import {
  parseOfficialUpsampler,
  parseOfficialVae,
  upsamplerConfigFromKeys,
  vaeConfigFromKeys,
  vaeFactors,
} from "../../lib/config/index.js";
import { CausalVideoAutoencoder, LatentUpsampler } from "../../lib/models/index.js";
import { Initializer, type Module, Parameter } from "../../lib/nn/index.js";
import { device, type Shape } from "../../lib/tensor/index.js";
import { RELEASES } from "../support/official-vae.js";

const tensorsOf = (module: Module): Map<string, { shape: Shape }> => {
  const entries = [...module.namedState()].flatMap(([key, item]) => {
    if (item instanceof Parameter) return [[key, { shape: item.checkpointShape }] as const];
    return "shape" in item ? [[key, { shape: item.shape }] as const] : [];
  });
  module.dispose();
  return new Map(entries);
};
const init = () => new Initializer(device());
const vaeTensors = (config: object) => tensorsOf(new CausalVideoAutoencoder(parseOfficialVae(config, "test"), init()));

describe("an official VAE", () => {
  it("of the first release has one list of blocks for both halves", () => {
    const vae = parseOfficialVae(RELEASES["0.9.0"], "file");
    expect(vae.encoder_blocks.map(([name]) => name).slice(0, 4)).toEqual(["res_x", "compress_all", "res_x_y", "res_x"]);
    expect(vae.encoder_blocks[0][1]).toEqual({ num_layers: 2 });
    expect(vae.decoder_blocks.map(([name]) => name).slice(0, 4)).toEqual(["res_x", "res_x", "compress_all", "res_x"]);
    expect(vae.decoder_blocks[9][1]).toEqual({ num_layers: 2, inject_noise: false });
    // A number beside a block without layers means nothing.
    expect(vae.encoder_blocks[2][1]).toEqual({ multiplier: 2 });
    expect(vae.decoder_blocks[2][1]).toEqual({ multiplier: 1, residual: false });
    expect(vaeFactors(vae)).toMatchObject({ time: 8, space: 16 });
  });

  it("lists its decoder from the pixels on and leaves out what a block doesn't read", () => {
    const vae = parseOfficialVae(
      {
        latent_channels: 4,
        norm_layer: "pixel_norm",
        encoder_blocks: [
          ["compress_all", { multiplier: 4, note: "of no effect" }],
          ["res_x", 3],
        ],
        decoder_blocks: [
          ["compress_time", { multiplier: 2, residual: true }],
          ["compress_space", 1],
          ["res_x", { num_layers: 2, multiplier: 3 }],
        ],
      },
      "file",
    );
    expect(vae.encoder_blocks).toEqual([
      ["compress_all", {}],
      ["res_x", { num_layers: 3 }],
    ]);
    expect(vae.decoder_blocks).toEqual([
      ["res_x", { num_layers: 2, inject_noise: false }],
      ["compress_space", {}],
      ["compress_time", {}],
    ]);
  });

  it("is refused with more layers than a model has, and where its own code throws", () => {
    const blocks = (count: number) => ({
      latent_channels: 4,
      encoder_blocks: [["res_x", count]],
      decoder_blocks: [["res_x", 1]],
    });
    expect(parseOfficialVae(blocks(1000), "file").encoder_blocks[0][1]).toEqual({ num_layers: 1000 });
    expect(() => parseOfficialVae(blocks(1001), "file")).toThrow(
      "encoder_blocks[0][1]: found 1001, expected at most 1000",
    );
    const throws = {
      get latent_channels(): number {
        throw new TypeError("not for you");
      },
    };
    expect(() => parseOfficialVae(throws, "file")).toThrow("[config] file (vae): cannot be read: not for you");
  });

  it("has the official code's defaults", () => {
    const least = {
      latent_channels: 4,
      encoder_blocks: [["res_x", 1]],
      decoder_blocks: [["res_x", 1]],
      _class_name: "CausalVideoAutoencoder",
    };
    expect(parseOfficialVae(least, "file")).toMatchObject({
      in_channels: 3,
      out_channels: 3,
      encoder_base_channels: 128,
      decoder_base_channels: 128,
      norm_layer: "group_norm",
      patch_size: 1,
      latent_log_var: "per_channel",
      use_quant_conv: true,
      normalize_latent_channels: false,
      causal_decoder: false,
      timestep_conditioning: false,
      spatial_padding_mode: "zeros",
      scaling_factor: 1,
    });
    expect(parseOfficialVae({ ...least, double_z: false }, "file").latent_log_var).toBe("none");
  });

  it.each([
    ["no section", null, /file \(vae\): .*null, expected a section of keys/],
    ["no size", {}, /latent_channels: missing.*encoder_blocks: missing, expected a list/],
    ["another dimension", { ...RELEASES["0.9.5"], dims: 2 }, /dims: found 2, only 3 is supported/],
    [
      "a block that is not one",
      { ...RELEASES["0.9.5"], encoder_blocks: [["res_y", 1]] },
      /encoder_blocks\[0\]\[0\]: found "res_y" \(text\), expected one of .* did you mean res_x/,
    ],
    [
      "a fault in the decoder, where the file has it",
      { ...RELEASES["0.9.5"], decoder_blocks: [["attn_res_x", 1], ...RELEASES["0.9.5"].decoder_blocks.slice(1)] },
      /decoder_blocks\[0\]: attn_res_x needs attention_head_dim/,
    ],
    [
      "variances that don't fit",
      { ...RELEASES["0.9.5"], latent_log_var: "constant", use_quant_conv: true },
      /use_quant_conv: found true, latent_log_var "constant" has one variance/,
    ],
  ])("that has %s is an error", (_, value, message) => {
    expect(() => parseOfficialVae(value, "file")).toThrow(message);
  });
});

describe("a diffusers VAE", () => {
  // Key by key as in the folders of the two layouts.
  const first = {
    _class_name: "AutoencoderKLLTXVideo",
    block_out_channels: [4, 8, 16, 16],
    decoder_block_out_channels: [4, 8, 16, 16],
    layers_per_block: [2, 1, 1, 1, 1],
    decoder_layers_per_block: [2, 1, 1, 1, 1],
    latent_channels: 8,
    patch_size: 2,
  };
  const later = {
    _class_name: "AutoencoderKLLTXVideo",
    block_out_channels: [4, 8, 16, 32, 64],
    decoder_block_out_channels: [8, 16, 32],
    layers_per_block: [1, 2, 1, 1, 1],
    decoder_layers_per_block: [1, 2, 1, 1],
    spatio_temporal_scaling: [true, true, true, true],
    decoder_spatio_temporal_scaling: [true, true, true],
    decoder_inject_noise: [false, false, false, false],
    downsample_type: ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    upsample_residual: [true, true, true],
    upsample_factor: [2, 2, 2],
    timestep_conditioning: true,
    latent_channels: 8,
    patch_size: 2,
  };

  it.each([
    ["0.9.0", first],
    ["0.9.5", later],
  ] as const)("of %s is the official one", (release, folder) => {
    expect(parseOfficialVae(folder, "folder")).toEqual(parseOfficialVae(RELEASES[release], "file"));
  });

  it.each([
    [{ ...later, upsample_factor: [2, 2] }, /upsample_factor: found 2 entries, expected 3/],
    [{ ...first, layers_per_block: [1] }, /layers_per_block: found 1 entries, expected 5/],
    [{ ...first, resnet_norm_eps: 1e-5 }, /resnet_norm_eps: found 0.00001, only 0.000001 is supported/],
    [{ ...first, block_out_channels: [4, 7, 16, 16] }, /multiplier: found 1.75/],
  ])("with a fault is an error", (value, message) => {
    expect(() => parseOfficialVae(value, "folder")).toThrow(message);
  });
});

describe("a VAE without metadata", () => {
  it.each(Object.entries(RELEASES))("of %s is told from its keys", (_, config) => {
    const told = vaeConfigFromKeys(vaeTensors(config), "file");
    expect(parseOfficialVae(told, "file")).toEqual(parseOfficialVae(config, "file"));
  });

  it("is an error where there is none", () => {
    expect(() => vaeConfigFromKeys(new Map(), "file")).toThrow(/file has no VAE .* decoder.conv_in.conv.weight/);
    const tensors = vaeTensors(RELEASES["0.9.5"]).set("encoder.conv_in.conv.weight", { shape: [4, 10, 3, 3, 3] });
    expect(() => vaeConfigFromKeys(tensors, "file")).toThrow(/10 channels into the encoder and 12 out of the decoder/);
  });
});

describe("an upsampler", () => {
  const least = { in_channels: 4, mid_channels: 32, num_blocks_per_stage: 1, dims: 3 };
  it.each([
    ["space, frame by frame", { dims: 2 }],
    ["space", {}],
    ["time", { spatial_upsample: false, temporal_upsample: true, num_blocks_per_stage: 2 }],
    ["both", { temporal_upsample: true }],
  ])("of %s is told from its keys", (_, changes) => {
    const config = parseOfficialUpsampler({ ...least, ...changes }, "file");
    expect(upsamplerConfigFromKeys(tensorsOf(new LatentUpsampler(config, init())), "file")).toEqual(config);
  });

  it.each([
    [{ ...least, mid_channels: 48 }, /mid_channels: needs a multiple of 32/],
    [{ ...least, spatial_upsample: false }, /spatial_upsample: found false, and temporal_upsample too/],
    [{ ...least, dims: 2, temporal_upsample: true }, /temporal_upsample: found true, which needs dims 3/],
    [{ ...least, dims: 1 }, /dims: found 1, expected one of 2, 3/],
  ])("with a fault is an error", (value, message) => {
    expect(() => parseOfficialUpsampler(value, "file")).toThrow(message);
    expect(() => upsamplerConfigFromKeys(new Map(), "file")).toThrow(/file has no latent upsampler/);
  });
});
