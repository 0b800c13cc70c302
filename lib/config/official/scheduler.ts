/** The scheduler's section of an official checkpoint: how the times of the denoising steps are spread. */
import { z } from "zod";
import { count, positive } from "../fields.js";
import { parseOfficial } from "./parse.js";

// Loose: files carry keys of their own (`_class_name`, versions) that say nothing about the times.
const officialScheduler = z
  .looseObject({
    num_train_timesteps: count.default(1000),
    sampler: z.enum(["Uniform", "LinearQuadratic", "Constant"]).default("Uniform"),
    shifting: z.enum(["SD3", "SimpleDiffusion"]).nullable().default(null),
    base_resolution: count.nullable().default(null),
    target_shift_terminal: positive.lt(1).nullable().default(null),
    shift: z.number().nullable().default(null),
  })
  .refine(({ sampler, shift }) => sampler !== "Constant" || shift !== null, {
    path: ["shift"],
    message: "the sampler Constant needs a number here",
  });

/** What the scheduler of a diffusers folder says of the same thing. */
const diffusersScheduler = z.looseObject({
  _class_name: z.literal("FlowMatchEulerDiscreteScheduler"),
  num_train_timesteps: count.default(1000),
  use_dynamic_shifting: z.boolean().default(false),
  shift: z.literal(1).default(1),
  shift_terminal: positive.lt(1).nullable().default(null),
  base_shift: z.literal(0.95).default(0.95),
  max_shift: z.literal(2.05).default(2.05),
  base_image_seq_len: z.literal(1024).default(1024),
  max_image_seq_len: z.literal(4096).default(4096),
});

/** How the times of the steps are spread between 1 (noise) and 0 (clean latents), in the official names. */
export interface SchedulerConfig {
  /** No schedule has more steps. */
  num_train_timesteps: number;
  sampler: "Uniform" | "LinearQuadratic" | "Constant";
  /** Moves the times towards the noise, the more the larger the latents are. */
  shifting: "SD3" | "SimpleDiffusion" | null;
  /** Tokens at which SimpleDiffusion leaves the times as they are; 1024 unless given. */
  base_resolution: number | null;
  /** What the last time becomes, by stretching the others with it. */
  target_shift_terminal: number | null;
  /** Of the sampler Constant. */
  shift: number | null;
}

/** Whether a scheduler's JSON is that of a diffusers folder. */
const isDiffusers = (value: unknown): boolean =>
  (value as { _class_name?: unknown } | null)?._class_name === "FlowMatchEulerDiscreteScheduler";

/**
 * The scheduler's section of a checkpoint, or a diffusers folder's `scheduler_config.json`. A diffusers scheduler without
 * dynamic shifting belongs to the releases whose pipeline brings linear-quadratic times itself.
 * @param source stands in the messages
 * @throws LtxError `config`
 */
export function parseOfficialScheduler(value: unknown, source: string): SchedulerConfig {
  const name = `${source} (scheduler)`;
  if (isDiffusers(value)) return fromDiffusers(parseOfficial(diffusersScheduler, value, name));
  const own = parseOfficial(officialScheduler, value, name);
  const { num_train_timesteps, sampler, shifting, base_resolution, target_shift_terminal, shift } = own;
  return { num_train_timesteps, sampler, shifting, base_resolution, target_shift_terminal, shift };
}

function fromDiffusers(scheduler: z.output<typeof diffusersScheduler>): SchedulerConfig {
  const { num_train_timesteps, use_dynamic_shifting: dynamic, shift_terminal } = scheduler;
  return {
    num_train_timesteps,
    sampler: dynamic ? "Uniform" : "LinearQuadratic",
    shifting: dynamic ? "SD3" : null,
    base_resolution: null,
    target_shift_terminal: dynamic ? shift_terminal : null,
    shift: null,
  };
}
