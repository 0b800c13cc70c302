import { describe, expect, it } from "vitest";
import {
  diffusersSchedulerConfig,
  diffusersTransformerConfig,
  diffusersVaeConfig,
  officialSchedulerConfig,
  officialTransformerConfig,
} from "../../lib/formats/official/diffusers.js";
import { renameTransformerKey, vaeKeys } from "../../lib/formats/official/keys.js";
import { failure } from "../support/failure.js";
import { transformerConfig, transformerShapes, vaeConfig, vaeShapes } from "../support/official.js";

describe("names", () => {
  it.each(["0.9.0", "0.9.1", "0.9.5"] as const)("of a VAE of %s come back from diffusers", (generation) => {
    const keys = [...vaeShapes(generation).keys()];
    const names = vaeKeys(keys, "diffusers");
    expect(keys.filter((key) => !names.has(key)).every((key) => /statistics\.(channel|mean-of-stds)/.test(key))).toBe(
      true,
    );
    expect(new Set(names.values()).size).toBe(names.size);
    const back = vaeKeys(names.values(), "official");
    for (const [key, name] of names) expect(back.get(name)).toBe(key);
  });

  it("of the first release's VAE are diffusers'", () => {
    const names = vaeKeys(vaeShapes("0.9.0").keys(), "diffusers");
    for (const [official, diffusers] of [
      ["encoder.down_blocks.1.conv.weight", "encoder.down_blocks.0.downsamplers.0.conv.weight"],
      ["encoder.down_blocks.2.conv_shortcut.bias", "encoder.down_blocks.0.conv_out.conv_shortcut.conv.bias"],
      ["encoder.down_blocks.5.norm3.norm.weight", "encoder.down_blocks.1.conv_out.norm3.weight"],
      ["encoder.down_blocks.8.res_blocks.0.conv1.conv.bias", "encoder.down_blocks.3.resnets.0.conv1.conv.bias"],
      ["encoder.down_blocks.9.res_blocks.0.conv2.conv.bias", "encoder.mid_block.resnets.0.conv2.conv.bias"],
      ["decoder.up_blocks.0.res_blocks.0.conv1.conv.bias", "decoder.mid_block.resnets.0.conv1.conv.bias"],
      ["decoder.up_blocks.1.res_blocks.0.conv1.conv.bias", "decoder.up_blocks.0.resnets.0.conv1.conv.bias"],
      ["decoder.up_blocks.2.conv.conv.weight", "decoder.up_blocks.1.upsamplers.0.conv.conv.weight"],
      ["decoder.up_blocks.7.conv_shortcut.weight", "decoder.up_blocks.3.conv_in.conv_shortcut.conv.weight"],
      ["decoder.up_blocks.9.res_blocks.1.conv2.conv.weight", "decoder.up_blocks.3.resnets.1.conv2.conv.weight"],
    ]) {
      expect(names.get(official)).toBe(diffusers);
    }
  });

  it("of a transformer come back from diffusers", () => {
    for (const key of transformerShapes().keys()) {
      expect(renameTransformerKey(renameTransformerKey(key, "diffusers"), "official")).toBe(key);
    }
  });

  it("are refused for blocks that diffusers does not have", async () => {
    const attention = "decoder.up_blocks.1.attention_blocks.0.to_q.weight";
    const keys = [...vaeShapes("0.9.1").keys(), attention];
    expect(await failure(() => vaeKeys(keys, "diffusers"))).toMatchObject({
      code: "checkpoint",
      message: `[convert] diffusers has no form for the VAE block of "${attention}"`,
    });
    const twice = ["res_blocks.0.conv1", "conv", "conv", "res_blocks.0.conv1"].map(
      (rest, i) => `encoder.down_blocks.${i}.${rest}.weight`,
    );
    expect((await failure(() => vaeKeys(twice, "diffusers"))).message).toContain("two resampling blocks in one stage");
    const last = await failure(() => vaeKeys(twice.slice(0, 2), "diffusers"));
    expect(last.message).toContain("needs a res_x in the middle, found another in encoder.down_blocks.1");
  });
});

describe("configurations", () => {
  it("of a transformer come back from diffusers", () => {
    const config = { ...transformerConfig, adaptive_norm: "single_scale_shift", causal_temporal_positioning: true };
    expect(officialTransformerConfig(diffusersTransformerConfig(config, "x"), true, "x")).toEqual(config);
  });

  it("of schedulers become what the pipelines of each side do", () => {
    const official = { shifting: "SD3", target_shift_terminal: 0.1, num_train_timesteps: 1000 };
    const dynamic = diffusersSchedulerConfig(official);
    expect(dynamic).toMatchObject({ use_dynamic_shifting: true, shift_terminal: 0.1, base_shift: 0.95 });
    expect(officialSchedulerConfig(dynamic)).toMatchObject({ ...official, sampler: "Uniform" });
    const plain = diffusersSchedulerConfig({ sampler: "LinearQuadratic" });
    expect(plain).toMatchObject({ use_dynamic_shifting: false, shift_terminal: null });
    expect(officialSchedulerConfig(plain)).toMatchObject({ shifting: null, sampler: "LinearQuadratic" });
  });

  it.each<[string, () => unknown, string]>([
    [
      "another norm of q and k",
      () => diffusersTransformerConfig({ qk_norm: "layer_norm" }, "a.safetensors"),
      '[convert] a.safetensors: qk_norm "layer_norm" is not supported, only "rms_norm"',
    ],
    [
      "patches",
      () => officialTransformerConfig({ patch_size: 2 }, true, "config.json"),
      "[convert] config.json: patch_size 2 is not supported, only 1",
    ],
    [
      "padding by replication",
      () => diffusersVaeConfig({ ...vaeConfig("0.9.5"), spatial_padding_mode: "replicate" }, "a"),
      'spatial_padding_mode "replicate" is not supported, only "zeros"',
    ],
    [
      "attention in the decoder",
      () => diffusersVaeConfig({ ...vaeConfig("0.9.5"), decoder_blocks: [["attn_res_x", { num_layers: 1 }]] }, "a"),
      "diffusers has no VAE with attn_res_x at this place",
    ],
    [
      "a decoder that doubles time alone",
      () => {
        const decoder_blocks = [
          ["res_x", 1],
          ["compress_time", 1],
          ["res_x", 1],
        ];
        return diffusersVaeConfig({ ...vaeConfig("0.9.5"), decoder_blocks }, "a");
      },
      "diffusers has no VAE with compress_time at this place",
    ],
    ["no blocks", () => diffusersVaeConfig({}, "a"), "encoder_blocks is missing or no list of blocks"],
  ])("are refused where diffusers has nothing like it: %s", async (_, run, message) => {
    const error = await failure(run);
    expect(error.code).toBe("config");
    expect(error.message).toContain(message);
  });
});
