/** The YAML file of a release: which models it needs and how they are called, in the official repository's keys. */
import { z } from "zod";
import { count, fraction, weight, whole } from "../fields.js";
import { section } from "../problems.js";

const text = z.string().min(1);
const numbers = z.array(z.number()).min(1);
const list = z.union([z.number(), numbers]);
const time = z.number().gt(0).max(1);

/** The short names that the official pipeline knows too. */
const STG_MODES = new Map([
  ["stg_av", "attention_values"],
  ["stg_as", "attention_skip"],
  ["stg_r", "residual"],
  ["stg_t", "transformer_block"],
]);
/** A name in any case, under its own spelling. */
const named = <Schema extends z.ZodType>(schema: Schema, others: ReadonlyMap<string, string>) =>
  z.preprocess((value) => {
    if (typeof value !== "string") return value;
    const lower = value.toLowerCase();
    return others.get(lower) ?? lower;
  }, schema);
const stgMode = named(z.enum(["attention_values", "attention_skip", "residual", "transformer_block"]), STG_MODES);
/** Also by the names that checkpoints give their schedules. */
const sampler = named(
  z.enum(["from_checkpoint", "uniform", "linear-quadratic"]),
  new Map([["linearquadratic", "linear-quadratic"]]),
);

/** How a video is drawn: of a base pipeline, of both passes, or of one of them. */
const passShape = {
  num_inference_steps: count.optional(),
  timesteps: z.array(time).min(1).optional(),
  skip_initial_inference_steps: whole.optional(),
  skip_final_inference_steps: whole.optional(),
  guidance_scale: list.optional(),
  stg_scale: list.optional(),
  rescaling_scale: list.optional(),
  guidance_timesteps: z.array(time).min(1).optional(),
  skip_block_list: z.union([z.array(z.array(whole)), z.array(whole)]).optional(),
  stg_mode: stgMode.optional(),
  cfg_star_rescale: z.boolean().optional(),
  image_cond_noise_scale: weight.optional(),
  decode_timestep: z.union([fraction, z.array(fraction).min(1)]).optional(),
  decode_noise_scale: z.union([fraction, z.array(fraction).min(1)]).optional(),
  stochastic_sampling: z.boolean().optional(),
  tone_map_compression_ratio: fraction.optional(),
};

type Pass = z.output<z.ZodObject<typeof passShape>>;
type Report = (key: string, message: string) => void;

/** What is wrong between the keys of a pass. */
function checkPass(pass: Pass, report: Report): void {
  const { timesteps, guidance_timesteps: times, num_inference_steps: steps } = pass;
  for (const [key, values] of [["timesteps", timesteps] as const, ["guidance_timesteps", times] as const]) {
    const rising = values?.findIndex((value, i) => i > 0 && value >= values[i - 1]) ?? -1;
    if (values && rising > 0)
      report(key, `entry ${rising + 1} is ${values[rising]}, times must fall, from noise (1) on`);
  }
  for (const key of ["guidance_scale", "stg_scale", "rescaling_scale", "skip_block_list"] as const) {
    const value = pass[key];
    // A flat list of blocks holds for all steps, as one number does; a single entry too.
    const mapped = Array.isArray(value) && value.length > 1 && (key !== "skip_block_list" || Array.isArray(value[0]));
    if (!mapped) continue;
    if (!times) report(key, `found a list of ${value.length}, which needs guidance_timesteps to say when each holds`);
    else if (value.length !== times.length) {
      report(key, `found a list of ${value.length}, but guidance_timesteps has ${times.length} entries`);
    }
  }
  const total = timesteps?.length ?? steps;
  const { skip_initial_inference_steps: first = 0, skip_final_inference_steps: last = 0 } = pass;
  if (total !== undefined && first + last >= total) {
    const key = first > 0 ? "skip_initial_inference_steps" : "skip_final_inference_steps";
    report(key, `of ${total} steps ${first + last} are left out, at least one must stay`);
  }
}

const passSection = section(passShape).superRefine((pass, context) => {
  checkPass(pass, (key, message) => context.addIssue({ code: "custom", path: [key], message }));
});

/** Keys that only a multi-scale pipeline has, and needs. */
const MULTI_SCALE = ["spatial_upscaler_model_path", "downscale_factor", "first_pass", "second_pass"] as const;

/** A file of the official repository's `configs/`. */
export const pipelineFile = section({
  pipeline_type: z.enum(["base", "multi-scale"]).default("base"),
  checkpoint_path: text,
  vae_path: text.optional(),
  spatial_upscaler_model_path: text.optional(),
  text_encoder_model_name_or_path: text.default("PixArt-alpha/PixArt-XL-2-1024-MS"),
  text_encoder_max_tokens: count.optional(),
  num_images_per_prompt: z.literal(1).optional(),
  eta: z.number().optional(),
  precision: z.enum(["bfloat16", "mixed_precision", "float8_e4m3fn", "float32"]).default("bfloat16"),
  sampler: sampler.default("from_checkpoint"),
  prompt_enhancement_words_threshold: whole.default(0),
  prompt_enhancer_image_caption_model_name_or_path: text.optional(),
  prompt_enhancer_llm_model_name_or_path: text.optional(),
  downscale_factor: z.number().gt(0).max(1).optional(),
  first_pass: passSection.optional(),
  second_pass: passSection.optional(),
  ...passShape,
}).superRefine((file, context) => {
  const report: Report = (key, message) => context.addIssue({ code: "custom", path: [key], message });
  for (const key of MULTI_SCALE) {
    const given = file[key] !== undefined;
    if (file.pipeline_type === "multi-scale" && !given) report(key, 'missing, pipeline_type "multi-scale" needs it');
    if (file.pipeline_type === "base" && given) report(key, 'only for pipeline_type "multi-scale"');
  }
  checkPass(file, report);
  const { second_pass: second } = file;
  const begins = second?.timesteps?.[second.skip_initial_inference_steps ?? 0];
  if (begins !== undefined && begins >= 1) {
    const message = `begins at ${begins}, the second pass starts from the first one's video and needs times below 1`;
    context.addIssue({ code: "custom", path: ["second_pass", "timesteps"], message });
  }
});

/**
 * How a release is run, in the official names.
 *
 * `vae_path` is this project's addition: the VAE's file, where the checkpoint has the transformer alone.
 * `sampler` takes the checkpoint's schedule, or another one. Of the lists each entry holds from the time of
 * `guidance_timesteps` at the same place on. `prompt_enhancement_words_threshold` and the enhancer's models are read and
 * not used: prompts stay as they are written. `eta` changes nothing, as in the official pipeline's steps.
 */
export type PipelineConfig = z.output<typeof pipelineFile>;
/** The part of a {@link PipelineConfig} that says how one pass is drawn. */
export type PassConfig = Pass;
