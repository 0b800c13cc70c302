/** Configurations as checkpoints carry them: complete and resolved, but from a file that may be damaged or made to harm. */
import { z } from "zod";
import { text as argumentText } from "../arguments.js";
import { LtxError } from "../errors.js";
import { dataSchema } from "./data.js";
import { count, fraction, layers, whole } from "./fields.js";
import { formatPath, problemsOf } from "./problems.js";
import type { FlowRunConfig, RunConfig, VaeRunConfig } from "./schema.js";
import { flowTrainingSchema, vaeTrainingSchema } from "./training.js";
import { resolveTransformer, transformerParams } from "./transformer.js";
import { lossParams, vaeParams } from "./vae.js";

// Loose everywhere: what a later version adds, or a resolved configuration beside its file's keys, is no damage.
const shared = {
  compat: z.enum(["native", "reference"]).default("native"),
  data: dataSchema
    .required({ frames: true, height: true, width: true })
    .extend({ source_frames: count.optional() })
    .loose(),
};

const storedVaeRun = z.looseObject({
  kind: z.literal("vae"),
  ...shared,
  vae: vaeParams.loose(),
  loss: lossParams.loose(),
  training: vaeTrainingSchema.required({ steps: true }).loose(),
});

const storedFlowRun = z.looseObject({
  kind: z.literal("flow"),
  ...shared,
  latent_encoder: vaeParams.loose().nullable(),
  transformer: transformerParams.loose(),
  diffusion: z.looseObject({
    parameterization: z.literal("rectified_flow"),
    time_distribution: z.enum(["logit-normal", "uniform", "uniform-clipped"]),
    num_timesteps: count,
  }),
  text_encoder: z.discriminatedUnion("kind", [
    z.looseObject({ kind: z.literal("t5"), version: z.string(), max_length: count, path: z.string().optional() }),
    z.looseObject({ kind: z.literal("byte"), width: count, layers, heads: count, max_length: count }),
  ]),
  training: flowTrainingSchema.required({ steps: true, prompt_dropout: true }).loose(),
  sampling: z.looseObject({
    frames: count,
    height: count,
    width: count,
    channels: count,
    sampler: z.literal("euler"),
    steps: count,
    initial_timestep: whole,
    guidance: z.number().min(1),
    num_samples: count,
    prompts: z.array(z.string()),
    seed: whole,
    decode_timestep: fraction,
  }),
});

export const storedRun = z.discriminatedUnion("kind", [storedVaeRun, storedFlowRun]);

/** Problems that a message lists. */
const MAX_LISTED = 5;

/**
 * The configuration in a checkpoint's metadata; what versions before this one did not know has its default.
 * @param file what messages call the checkpoint
 * @throws LtxError `checkpoint` when it is no configuration
 */
export function parseStoredConfig(text: string, file: string): VaeRunConfig | FlowRunConfig {
  argumentText("stored configuration", "text", text);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw fault(file, "is no JSON", cause);
  }
  return stageConfig(value, file);
}

/**
 * The configuration in a run's folder: of a stage, or of a quickstart's two.
 * @param file what messages call the folder's file
 * @throws LtxError `checkpoint` when it is no configuration
 */
export function parseRunConfig(value: unknown, file: string): RunConfig {
  const { kind, compat, vae, flow } = (value ?? {}) as Record<string, unknown>;
  if (kind !== "quickstart") return stageConfig(value, file);
  const stages = { vae: stageConfig(vae, file), flow: stageConfig(flow, file) };
  if (stages.vae.kind !== "vae" || stages.flow.kind !== "flow") {
    throw fault(file, `has stages of the kinds ${stages.vae.kind} and ${stages.flow.kind}, expected vae and flow`);
  }
  return { kind, compat: compat === "reference" ? compat : "native", vae: stages.vae, flow: stages.flow };
}

const fault = (file: string, reason: string, cause?: unknown): LtxError =>
  new LtxError(
    "checkpoint",
    `[checkpoint] ${file}: its configuration ${reason}; the file is damaged or of another version`,
    { cause },
  );

function stageConfig(value: unknown, file: string): VaeRunConfig | FlowRunConfig {
  const parsed = storedRun.safeParse(value);
  if (!parsed.success) {
    const problems = problemsOf(parsed.error, value).map(({ path, message }) => `${formatPath(path)}: ${message}`);
    throw fault(file, `cannot be read (${problems.slice(0, MAX_LISTED).join("; ")})`);
  }
  const config = parsed.data;
  if (config.kind === "vae") return config as VaeRunConfig;
  return { ...config, transformer: resolveTransformer(config.transformer) } as FlowRunConfig;
}
