/** Opening a trained model, whoever wrote its file. */
import { loadConfig } from "../config/deferred.js";
import type { FlowRunConfig, RunConfig, VaeRunConfig } from "../config/index.js";
import { check } from "../errors.js";
import { readTensors, withPrefix } from "../formats/checkpoint.js";
import type { LoadProgressOptions } from "../formats/load-weights.js";
import { FLOW_PREFIX, LATENT_SCALE_KEY } from "../models/flow-model.js";
import { findModelFile } from "./checkpoint-path.js";

type Tensors = Awaited<ReturnType<typeof readTensors>>["tensors"];
type StageConfig = VaeRunConfig | FlowRunConfig;

/** A checkpoint of one stage: `config` builds the model that `tensors` fill. */
export interface OpenedCheckpoint<Config extends StageConfig = StageConfig> {
  /** The model file that was read. */
  file: string;
  /** What the tensors are, by their names: a VAE's, or a diffusion model's with {@link FLOW_PREFIX}. */
  kind: "vae" | "flow";
  config: Config;
  /** Values by the reference's keys, without those of the VAE's loss. */
  tensors: Tensors;
}

/**
 * Reads the model at `path`: a run's or checkpoint's folder, a safetensors file, or a `.pt` file. Checkpoints of this
 * package carry their configuration; the reference's have none and need `config` (a configuration or the path of its
 * YAML file), which otherwise stands in place of the checkpoint's own.
 * @param stage which stage of a run with several is meant, and of a quickstart's configuration
 * @throws LtxError `checkpoint` when there is no model, or no configuration, or it does not belong to the tensors;
 *   `config`, `file_format`, `io`
 */
export async function openCheckpoint<Stage extends "vae" | "flow">(
  path: string,
  stage: Stage,
  config?: RunConfig | string,
  progress?: LoadProgressOptions,
): Promise<OpenedCheckpoint<Stage extends "flow" ? FlowRunConfig : StageConfig>> {
  // Gigabytes are read last: a wrong configuration shows at once.
  const given = typeof config === "string" ? await loadConfig(config) : config;
  const file = await findModelFile(path, stage);
  const { metadata, tensors } = await readTensors(file, modelKeysOf(file), progress);
  const kind = expectKind(tensors, file);
  const chosen = given ? stageOf(given, stage) : await storedConfig(metadata, file);
  if (stage === "flow") {
    check(kind === "flow", "checkpoint", () => {
      return `[checkpoint] ${file} is a vae checkpoint, expected one of a flow run`;
    });
    check(chosen.kind === "flow", "config", () => {
      return `[checkpoint] ${file} is a text-to-video model, the configuration is a VAE's: give that of the flow run`;
    });
  }
  return { file, kind, config: chosen as FlowRunConfig, tensors };
}

/**
 * The values of the VAE in a model file, under the VAE's own keys.
 * @throws LtxError `checkpoint`, `file_format`, `io`
 */
export async function readVaeTensors(file: string): Promise<Tensors> {
  const { tensors } = await readTensors(file, modelKeysOf(file));
  return vaeTensors({ kind: expectKind(tensors, file), tensors });
}

/** The VAE's values in a checkpoint, under the VAE's own keys. */
export function vaeTensors({ kind, tensors }: Pick<OpenedCheckpoint, "kind" | "tensors">): Tensors {
  return kind === "vae" ? tensors : withPrefix(tensors, FLOW_PREFIX.vae);
}

function expectKind(tensors: Tensors, file: string): "vae" | "flow" {
  const kind = kindOf(tensors.keys());
  check(kind, "checkpoint", () => {
    const names = [...tensors.keys()].slice(0, 3).map((name) => JSON.stringify(name.slice(0, 80)));
    return `[checkpoint] ${file} holds neither a VAE nor a text-to-video model: its tensors are ${names.join(", ") || "none"}`;
  });
  return kind;
}

/** What kind of model has tensors of these names; undefined for neither. */
export function kindOf(keys: Iterable<string>): "vae" | "flow" | undefined {
  const names = [...keys];
  if (names.some((name) => name.startsWith(FLOW_PREFIX.transformer))) return "flow";
  return names.some((name) => /^(encoder|decoder)\./.test(name)) ? "vae" : undefined;
}

/** Which names to read of a file; the first one tells an official release, before its gigabytes are read. */
const modelKeysOf = (file: string) => (name: string) => {
  check(!/^(model\.diffusion_model|vae)\./.test(name), "checkpoint", () => {
    return `[checkpoint] ${file} is an official model: LtxVideoPipeline and "ltx-native generate" work with those`;
  });
  return isModelKey(name);
};

/** The reference keeps the VAE's loss (discriminator, perceptual network) among its tensors; using a VAE needs none of it. */
const isModelKey = (name: string): boolean =>
  !name.startsWith("loss.") &&
  !name.startsWith(`${FLOW_PREFIX.vae}loss.`) &&
  (!name.startsWith("_") || isFlowKey(name));

const isFlowKey = (name: string): boolean =>
  name === LATENT_SCALE_KEY || Object.values(FLOW_PREFIX).some((prefix) => name.startsWith(prefix));

const stageOf = (config: RunConfig, stage: "vae" | "flow"): StageConfig =>
  config.kind === "quickstart" ? config[stage] : config;

async function storedConfig(metadata: Readonly<Record<string, string>>, file: string): Promise<StageConfig> {
  check(metadata.config !== undefined, "checkpoint", () => {
    return `[checkpoint] ${file} does not say what model it holds: give its configuration (--config FILE)`;
  });
  const { parseStoredConfig } = await import("../config/stored.js");
  return parseStoredConfig(metadata.config, file);
}
