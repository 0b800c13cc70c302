import { z } from "zod";
import { count, fraction, layers, nothing, weight, whole } from "./fields.js";
import { notOneOf, section } from "./problems.js";
import { target, targetNames } from "./targets.js";
import { transformerComponent } from "./transformer.js";
import { vaeComponent } from "./vae.js";

const samplingSchema = section({
  output_channels: count.default(1),
  output_spatial_size: count.optional(),
  output_height: count.optional(),
  output_width: count.optional(),
  output_frames: count,
  initial_timestep: whole.default(0),
  target: target("sampler").default("euler"),
  params: nothing,
  steps: count.optional(),
  guidance: z.number().min(1).optional(),
  num_samples: count.default(8),
  prompts: z.array(z.string()).default([]),
  seed: whole.default(0),
  decode_timestep: fraction.default(0.001),
});

/**
 * How clips are drawn from a trained model: `frames` x `height` x `width` pixels of `channels` channels, by
 * `steps - initial_timestep` Euler steps of size 1 / `steps`. `guidance` 1 is none. `decode_timestep` is what the
 * decoder is told of the noise that is left. With no `prompts` the caller chooses them.
 */
export interface SamplingConfig {
  frames: number;
  height: number;
  width: number;
  channels: number;
  sampler: "euler";
  steps: number;
  initial_timestep: number;
  guidance: number;
  num_samples: number;
  prompts: string[];
  seed: number;
  decode_timestep: number;
}

const t5Encoder = section({
  target: z.enum(targetNames("text_encoder", "t5")),
  params: section({
    max_length: count.default(77),
    version: z.string().min(1).default("google/t5-v1_1-base"),
    include_temporal: z.boolean().optional(),
    context_key: z.literal("text_embeddings").optional(),
    path: z.string().min(1).optional(),
  }).prefault({}),
});

const byteEncoder = section({
  target: z.enum(targetNames("text_encoder", "byte")),
  params: section({
    width: count.default(128),
    layers: layers.default(2),
    heads: count.default(4),
    max_length: count.default(32),
  }).prefault({}),
});

/**
 * T5's encoder, frozen: `path` is the folder of its weights and tokenizer, when they are not looked up by `version`.
 * `model_hash` stands in checkpoints only: it tells the weights that the model was trained with.
 */
export type T5Config = { kind: "t5"; version: string; max_length: number; path?: string; model_hash?: string };
/** A small transformer over the bytes of the prompt, trained with the model. `width` is its output's. */
export type ByteEncoderConfig = { kind: "byte"; width: number; layers: number; heads: number; max_length: number };
export type TextEncoderConfig = T5Config | ByteEncoderConfig;

const textEncoder = z
  .discriminatedUnion("target", [t5Encoder, byteEncoder], {
    error: ({ code, input }) =>
      code === "invalid_union"
        ? notOneOf((input as { target: unknown }).target, targetNames("text_encoder"))
        : undefined,
  })
  .transform(({ params }): TextEncoderConfig => {
    if (!("version" in params)) return { kind: "byte", ...params };
    const { version, max_length, path } = params;
    return { kind: "t5", version, max_length, ...(path === undefined ? {} : { path }) };
  });

export const diffusionSchema = section({
  parameterization: z.literal("rectified_flow").default("rectified_flow"),
  sampling: samplingSchema,
  noise_scheduler: section({
    target: target("noise_scheduler").default("rectified-flow"),
    params: section({
      steps: count.default(1000),
      max_time: z.literal(1).default(1),
      distribution: z.enum(["logit-normal", "uniform", "uniform-clipped"]).default("logit-normal"),
    }).prefault({}),
  }).prefault({}),
  sde: section({
    target: target("sde").default("rectified-flow"),
    params: section({ N: count.optional(), T: z.literal(1).default(1) }).prefault({}),
  }).prefault({}),
  context_preprocessing: z.array(textEncoder).length(1),
  input_preprocessing: section({ target: target("input_preprocessing"), params: nothing }).optional(),
  classifier_free_guidance: section({
    classifier_free_guidance: z.number().min(1).default(1),
    unconditional_guidance_probability: fraction.default(0.2),
    signals: z.array(z.literal("text_prompts")).default(["text_prompts"]),
    unconditional_context: section({ target: target("unconditional_context"), params: nothing }).optional(),
  }).prefault({}),
  dynamic_thresholding: section({
    enable: z.literal(false).default(false),
    p: fraction.optional(),
    c: weight.optional(),
  }).optional(),
  latent_encoder: vaeComponent.optional(),
  score_network: transformerComponent,
});

export type DiffusionInput = z.output<typeof diffusionSchema>;

/** The forward process: where training times fall in [0, 1], and into how many steps the reference divides that. */
export interface DiffusionConfig {
  parameterization: "rectified_flow";
  time_distribution: "logit-normal" | "uniform" | "uniform-clipped";
  num_timesteps: number;
}
