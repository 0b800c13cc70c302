import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { stringify } from "yaml";
import { loadPipelineConfig, type PipelineConfig } from "../../lib/config/index.js";
import { failure } from "../support/failure.js";
import { root, testFolder } from "../support/folder.js";
import { writeYaml } from "../support/tiny.js";

const releases = join(root, "configs", "official");
const folder = testFolder();

let count = 0;
const load = (file: object): Promise<PipelineConfig> =>
  loadPipelineConfig(writeYaml(folder, `${count++}.yaml`, stringify(file)));
const messageOf = async (file: object) => (await failure(() => load(file))).message;

const base = { checkpoint_path: "a.safetensors" };
const multi = {
  ...base,
  pipeline_type: "multi-scale",
  spatial_upscaler_model_path: "u.safetensors",
  downscale_factor: 0.5,
  first_pass: {},
  second_pass: { timesteps: [0.9, 0.5] },
};

describe("values of the official files", () => {
  it.each([
    ["LinearQuadratic", "linear-quadratic"],
    ["linear-quadratic", "linear-quadratic"],
    ["Uniform", "uniform"],
    ["from_checkpoint", "from_checkpoint"],
    [null, "from_checkpoint"],
    [undefined, "from_checkpoint"],
  ])("sampler %j is %s", async (sampler, expected) => {
    expect((await load({ ...base, sampler })).sampler).toBe(expected);
  });

  it.each([
    ["Attention_Values", "attention_values"],
    ["STG_R", "residual"],
    ["stg_as", "attention_skip"],
    ["Transformer_Block", "transformer_block"],
  ])("stg_mode %s is %s", async (stg_mode, expected) => {
    expect((await load({ ...base, stg_mode })).stg_mode).toBe(expected);
  });

  it("are read where the official pipeline takes them as arguments, null for none", async () => {
    const more = { text_encoder_max_tokens: 128, num_images_per_prompt: 1, eta: 0, guidance_timesteps: null };
    const config = await load({ ...multi, ...more, first_pass: { skip_block_list: null, stg_mode: "stg_t" } });
    expect(config).toMatchObject({ text_encoder_max_tokens: 128, first_pass: { stg_mode: "transformer_block" } });
    expect("guidance_timesteps" in config).toBe(false);
    expect(config.first_pass && "skip_block_list" in config.first_pass).toBe(false);
  });

  it("are refused where they make no sense, also by names that every object has", async () => {
    for (const sampler of ["constructor", "toString", "Constant", 3]) {
      expect(await messageOf({ ...base, sampler })).toContain("sampler: ");
    }
    for (const stg_mode of ["__proto__", "constructor", "stg_x"]) {
      expect(await messageOf({ ...base, stg_mode })).toContain("stg_mode: ");
    }
    expect(await messageOf({ ...base, num_images_per_prompt: 2 })).toContain("num_images_per_prompt: found 2, only 1");
  });
});

describe("the official releases", () => {
  it.each(readdirSync(releases))("%s has the keys that the official command reads without asking", async (name) => {
    const config = await loadPipelineConfig(join(releases, name));
    const text = readFileSync(join(releases, name), "utf8");
    expect(text).toMatch(/^prompt_enhancement_words_threshold: \d+$/m);
    expect(config.stg_mode).toBe("attention_values");
  });

  it.each(readdirSync(releases))("%s is a file of its model's kind", async (name) => {
    const config = await loadPipelineConfig(join(releases, name));
    const [, size, version] = /^ltxv-(2b|13b)-(0\.9(?:\.\d)?)/.exec(name) as RegExpExecArray;
    expect(config.checkpoint_path).toMatch(new RegExp(`${size}-v?${version.replaceAll(".", "\\.")}.*\\.safetensors$`));
    expect(config.precision).toBe(name.includes("fp8") ? "float8_e4m3fn" : "bfloat16");
    expect(config.pipeline_type).toBe(Number(version.slice(4) || 0) >= 7 ? "multi-scale" : "base");
    expect(config.decode_timestep).toBe(0.05);
    if (config.pipeline_type === "base") expect(config.first_pass).toBeUndefined();
    else expect(config.spatial_upscaler_model_path).toContain(version === "0.9.7" ? "0.9.7" : "0.9.8");
    const distilled = name.includes("distilled");
    const pass = config.first_pass ?? config;
    expect(pass.guidance_scale === 1).toBe(distilled);
    expect(config.stochastic_sampling).toBe(version === "0.9.6" && distilled);
  });

  it("draw the steps that the releases are known for", async () => {
    const distilled = await loadPipelineConfig(join(releases, "ltxv-13b-0.9.8-distilled.yaml"));
    expect([distilled.first_pass?.timesteps?.length, distilled.second_pass?.timesteps?.length]).toEqual([7, 3]);
    expect(distilled.second_pass?.tone_map_compression_ratio).toBe(0.6);
    const dev = await loadPipelineConfig(join(releases, "ltxv-13b-0.9.8-dev.yaml"));
    expect(dev.first_pass?.num_inference_steps).toBe(30);
    expect(dev.second_pass?.skip_initial_inference_steps).toBe(17);
    const first = await loadPipelineConfig(join(releases, "ltxv-2b-0.9.yaml"));
    expect(first).toMatchObject({
      num_inference_steps: 40,
      guidance_scale: 3,
      rescaling_scale: 0.7,
      skip_block_list: [19],
    });
  });
});

describe("a release's file", () => {
  it("has defaults, and the short names of the modes", async () => {
    expect(await load({ ...base, stg_mode: "STG_AS" })).toMatchObject({
      pipeline_type: "base",
      precision: "bfloat16",
      sampler: "from_checkpoint",
      text_encoder_model_name_or_path: "PixArt-alpha/PixArt-XL-2-1024-MS",
      stg_mode: "attention_skip",
    });
    expect(await load(multi)).toMatchObject({ second_pass: { timesteps: [0.9, 0.5] } });
  });

  it.each([
    [{}, "checkpoint_path", "missing"],
    [{ ...base, guidence_scale: 3 }, "guidence_scale", 'did you mean "guidance_scale"?'],
    [{ ...multi, first_pass: { timestep: [1] } }, "first_pass.timestep", 'did you mean "timesteps"?'],
    [{ ...base, precision: "bf16" }, "precision", "expected one of bfloat16, mixed_precision, float8_e4m3fn, float32"],
    [{ ...base, sampler: "uniforn" }, "sampler", "did you mean uniform?"],
    [{ ...base, stg_mode: "stg_x" }, "stg_mode", "attention_values"],
    [{ ...base, num_inference_steps: 0 }, "num_inference_steps", "at least 1"],
    [{ ...base, decode_timestep: 2 }, "decode_timestep", "found 2"],
    [{ ...base, tone_map_compression_ratio: 1.5 }, "tone_map_compression_ratio", "at most 1"],
    [{ ...base, timesteps: [0.5, 0.7] }, "timesteps", "entry 2 is 0.7, times must fall"],
    [{ ...base, timesteps: [1.5] }, "timesteps[0]", "at most 1"],
    [{ ...base, guidance_scale: [1, 2] }, "guidance_scale", "needs guidance_timesteps"],
    [{ ...base, guidance_scale: [1, 2], guidance_timesteps: [1] }, "guidance_scale", "guidance_timesteps has 1"],
    [{ ...base, skip_block_list: [[1], [2]], guidance_timesteps: [1] }, "skip_block_list", "found a list of 2"],
    [
      { ...base, num_inference_steps: 4, skip_initial_inference_steps: 4 },
      "skip_initial_inference_steps",
      "of 4 steps 4",
    ],
    [{ ...base, first_pass: {} }, "first_pass", 'only for pipeline_type "multi-scale"'],
    [{ ...multi, second_pass: undefined }, "second_pass", "missing"],
    [{ ...multi, second_pass: { timesteps: [1, 0.5] } }, "second_pass.timesteps", "begins at 1"],
    [{ ...multi, downscale_factor: 0 }, "downscale_factor", "more than 0"],
  ])("%# names what is wrong: %s", async (file, path, reason) => {
    const message = await messageOf(file);
    expect(message).toContain(`${path}: `);
    expect(message).toContain(reason);
  });
});
