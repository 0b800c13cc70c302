import { z } from "zod";
import { beta, count, fraction, positive, weight, whole } from "./fields.js";
import { type Problem, section } from "./problems.js";

/** What a model kind trains with when its file says nothing: the values in the reference's training loops. */
interface TrainingDefaults {
  learning_rate: number;
  betas: [number, number];
}

function baseShape({ learning_rate, betas }: TrainingDefaults) {
  return {
    dataset: z.literal("video/moving_mnist").default("video/moving_mnist"),
    batch_size: count.max(2 ** 16).default(8),
    gradient_accumulation_steps: count.default(1),
    // Without quotes YAML 1.1 takes no for false.
    mixed_precision: z.preprocess((value) => (value === false ? "no" : value), z.enum(["no", "bf16"]).default("no")),
    gradient_checkpointing: z.boolean().default(false),
    // torch.compile has no counterpart; the reference's files may still ask for it.
    compile: z.boolean().optional(),
    num_training_steps: count.optional(),
    steps: count.optional(),
    learning_rate: positive.default(learning_rate),
    optimizer: section({
      name: z.enum(["adam", "adamw"]).default("adam"),
      betas: z.tuple([beta, beta]).default(betas),
      eps: positive.default(1e-8),
      weight_decay: weight.default(0),
    }).prefault({}),
    lr_schedule: section({
      name: z.enum(["constant", "cosine"]).default("constant"),
      warmup_steps: whole.default(0),
      final_fraction: fraction.default(0),
    }).prefault({}),
    max_grad_norm: positive.default(1),
    ema_decay: z.number().min(0).lt(1).default(0),
    seed: whole.default(0),
    log_every: count.default(10),
    save_every: count.default(1000),
    validate_every: count.default(1000),
    sample_every: count.default(1000),
  };
}

export const vaeTrainingSchema = section({
  ...baseShape({ learning_rate: 4.5e-6, betas: [0.5, 0.9] }),
  discriminator_learning_rate: positive.optional(),
  decoder_noise: section({
    max: weight.default(0.2),
    start: whole.default(0),
    warmup_steps: whole.default(0),
  }).prefault({}),
});

export const flowTrainingSchema = section({
  ...baseShape({ learning_rate: 2e-4, betas: [0.9, 0.99] }),
  prompt_dropout: fraction.optional(),
  joint_image_video_training_step: z.number().int().min(-1).default(-1),
});

type VaeTrainingInput = z.output<typeof vaeTrainingSchema>;
type FlowTrainingInput = z.output<typeof flowTrainingSchema>;

/**
 * How a model is trained. Steps count optimizer updates. `lr_schedule`: the rate climbs linearly from 0 over
 * `warmup_steps`, then stays (`constant`) or falls along half a cosine to `final_fraction` of itself at the last step.
 * `gradient_checkpointing` computes the blocks' inside a second time in backward instead of keeping it in memory.
 * `max_grad_norm` clips the global norm. `ema_decay` 0 keeps no average. `*_every` are steps.
 */
export type TrainingConfig = Omit<
  VaeTrainingInput,
  "num_training_steps" | "steps" | "compile" | "decoder_noise" | "discriminator_learning_rate"
> & { steps: number };

/**
 * `decoder_noise`: the timestep-conditioned decoder sees its latents with Gaussian noise of an amplitude drawn from
 * [0, a]; a is 0 before step `start`, climbs linearly to `max` over `warmup_steps`, and stays there.
 * `discriminator_learning_rate` is the discriminator's own, which follows the same schedule; `learning_rate` unless given,
 * as in the reference.
 */
export type VaeTrainingConfig = TrainingConfig &
  Pick<VaeTrainingInput, "decoder_noise" | "discriminator_learning_rate">;

/**
 * `prompt_dropout`: the probability with which a sample's prompt becomes the empty text.
 * `joint_image_video_training_step` k: at every k-th step the batch is one of images, single frames of the clips, as many
 * for each clip as the model's state has frames; -1 or 0 for never.
 */
export type FlowTrainingConfig = TrainingConfig & {
  prompt_dropout: number;
  joint_image_video_training_step: number;
};

const DEFAULT_STEPS = 10000;

function resolveSteps(
  input: Pick<VaeTrainingInput, "steps" | "num_training_steps" | "lr_schedule">,
  path: readonly PropertyKey[],
  problems: Problem[],
): number {
  const { steps, num_training_steps } = input;
  if (steps !== undefined && num_training_steps !== undefined && steps !== num_training_steps) {
    const message = `found ${steps}, but num_training_steps is ${num_training_steps}: give one of them`;
    problems.push({ path: [...path, "steps"], message });
  }
  const total = steps ?? num_training_steps ?? DEFAULT_STEPS;
  const { name, warmup_steps } = input.lr_schedule;
  if (name === "cosine" && warmup_steps >= total) {
    const message = `found ${warmup_steps}, a cosine over ${total} steps needs fewer, nearest ${total - 1}`;
    problems.push({ path: [...path, "lr_schedule", "warmup_steps"], message });
  }
  return total;
}

export function resolveVaeTraining(
  input: VaeTrainingInput,
  path: readonly PropertyKey[],
  problems: Problem[],
): VaeTrainingConfig {
  const { num_training_steps: _, compile: __, ...rest } = input;
  return { ...rest, steps: resolveSteps(input, path, problems) };
}

/** `guidanceDropout` is the reference's `unconditional_guidance_probability`, which this project's key overrides. */
export function resolveFlowTraining(
  input: FlowTrainingInput,
  guidanceDropout: number,
  path: readonly PropertyKey[],
  problems: Problem[],
): FlowTrainingConfig {
  const { num_training_steps: _, compile: __, ...rest } = input;
  const prompt_dropout = input.prompt_dropout ?? guidanceDropout;
  return { ...rest, steps: resolveSteps(input, path, problems), prompt_dropout };
}
