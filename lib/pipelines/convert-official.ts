/** The official models, and LoRAs for them, as each form has them. */
import { basename, join } from "node:path";
import { check } from "../errors.js";
import {
  DIFFUSERS_CLASSES,
  diffusersModelIndex,
  diffusersSchedulerConfig,
  diffusersTransformerConfig,
  diffusersVaeConfig,
  officialSchedulerConfig,
} from "../formats/official/diffusers.js";
import {
  isModelKey,
  isUnusedStatistic,
  type ModuleKind,
  renameTransformerKey,
  vaeKeys,
} from "../formats/official/keys.js";
import type { WeightedLora } from "../formats/official/lora.js";
import { withLoras } from "../formats/official/lora-merge.js";
import {
  DIFFUSERS_FOLDERS,
  type OfficialLayout,
  type OfficialModels,
  PREFIXES,
  STATISTICS_FILE,
} from "../formats/official/open.js";
import type { SafetensorsTensor } from "../formats/safetensors.js";
import type { TensorFile } from "../formats/tensor-file.js";
import { renamed } from "../formats/tensor-view.js";
import { type Findings, type FloatDtype, tensorsFrom } from "./convert-tensors.js";
import { type Part, type Parts, shard } from "./write-model.js";

type Json = Record<string, unknown>;

interface Options {
  dtype?: FloatDtype;
  maxShardSize?: number;
  loras?: readonly WeightedLora[];
  findings?: Findings;
  /** Of the files' names, where the form doesn't give them. */
  stem: string;
}

/** A result's name without its ending, for the files that it becomes. */
export const singleFile = (to: string): string => basename(to, ".safetensors");

/**
 * What a form's files hold: all tensors but those that {@link OfficialModels.leftOut} names.
 * @throws LtxError `config` or `checkpoint` for what the form has no place for
 */
export async function officialParts(models: OfficialModels, form: OfficialLayout, options: Options): Promise<Parts> {
  const { loras = [], dtype, findings, maxShardSize, stem } = options;
  check(loras.length === 0 || models.kinds.includes("transformer"), "invalid_argument", () => {
    return `[convert] ${models.path} holds no transformer to merge LoRAs into`;
  });
  const files = new Map<ModuleKind, TensorFile>();
  for (const kind of models.kinds) {
    const file = models.module(kind);
    const names = [...file.tensors.keys()];
    const known = renamed(file, new Map(names.filter((name) => isModelKey(kind, name)).map((name) => [name, name])));
    files.set(kind, kind === "transformer" && loras.length > 0 ? withLoras(known, loras) : known);
  }
  const fileOf = (kind: ModuleKind) => files.get(kind) as TensorFile;
  if (form === "diffusers") return diffusersParts(models, fileOf, options);
  const prefixes = PREFIXES[form];
  // An upscaler's official file has it alone, without a prefix.
  const alone = form === "official" && models.kinds.join() === "upsampler";
  const tensors = models.kinds.flatMap((kind) =>
    tensorsFrom(fileOf(kind), { dtype, findings, rename: (name) => (alone ? name : prefixes[kind] + name) }),
  );
  return shard("", stem, tensors, await metadataFor(models, form), maxShardSize);
}

/** Files of this package and of diffusers say so in `format`; what stood there before waits under another name. */
async function metadataFor(models: OfficialModels, form: OfficialLayout): Promise<Part["metadata"]> {
  const { source_format, kind: _, format, ...own } = models.metadata;
  const before = models.layout === "official" ? format : source_format;
  const config = own.config ?? JSON.stringify(await officialConfig(models));
  const rest = { ...own, config };
  if (form === "official") return before ? { ...rest, format: before } : rest;
  const stored = { ...rest, source_format: before ?? "" };
  return form === "diffusers" ? { ...stored, format: "pt" } : { ...stored, format: "ltx-native", kind: "official" };
}

/** The configuration that the official code reads, of models that carry none in that form. */
async function officialConfig(models: OfficialModels): Promise<Json> {
  const { transformer, scheduler, upsampler, allowed_inference_steps } = models.configs;
  if (models.kinds.join() === "upsampler") return { ...upsampler, _class_name: "LatentUpsampler" };
  const vae = await officialVae(models);
  const times =
    scheduler?._class_name === "FlowMatchEulerDiscreteScheduler" ? officialSchedulerConfig(scheduler) : scheduler;
  return Object.fromEntries(
    Object.entries({ transformer, vae, scheduler: times, latent_upsampler: upsampler, allowed_inference_steps }).filter(
      ([, value]) => value !== undefined,
    ),
  );
}

/** The VAE's configuration in the official names; by its tensors where nothing else tells. */
async function officialVae({ path, configs, kinds, module }: OfficialModels): Promise<Json | undefined> {
  if (!kinds.includes("vae")) return configs.vae;
  if (!configs.vae) {
    const { vaeConfigFromKeys } = await import("../config/official/vae-keys.js");
    return vaeConfigFromKeys(module("vae").tensors, path);
  }
  const { isDiffusersVae, officialFromDiffusers } = await import("../config/official/diffusers-vae.js");
  return isDiffusersVae(configs.vae) ? officialFromDiffusers(configs.vae, path) : configs.vae;
}

/** A folder for each model, with its configuration; the whole model's description when there is one. */
async function diffusersParts(
  models: OfficialModels,
  fileOf: (kind: ModuleKind) => TensorFile,
  { dtype, findings, maxShardSize }: Options,
): Promise<Parts> {
  const { path, kinds, configs } = models;
  const metadata = await metadataFor(models, "diffusers");
  const parts: Part[] = [];
  const texts: Record<string, string> = {};
  for (const kind of kinds) {
    const folder = DIFFUSERS_FOLDERS[kind];
    const file = fileOf(kind);
    const names = diffusersNames(kind, [...file.tensors.keys()]);
    const tensors: SafetensorsTensor[] = tensorsFrom(file, { dtype, findings });
    const known = tensors.flatMap((tensor) => {
      const name = names.get(tensor.name);
      return name === undefined ? [] : [{ ...tensor, name }];
    });
    const weights = shard(folder, "diffusion_pytorch_model", known, metadata, maxShardSize);
    parts.push(...weights.parts);
    Object.assign(texts, weights.texts);
    const statistics = tensors.filter(({ name }) => kind === "vae" && isUnusedStatistic(name));
    if (statistics.length > 0) parts.push({ name: join(folder, STATISTICS_FILE), tensors: statistics, metadata: {} });
    texts[join(folder, "config.json")] = json(await diffusersConfig(kind, models));
  }
  const index = diffusersModelIndex(kinds, configs.transformer?.causal_temporal_positioning === true);
  if (index) texts["model_index.json"] = json(index);
  if (kinds.includes("transformer") && kinds.includes("vae")) {
    const { scheduler } = configs;
    const own = scheduler?._class_name === "FlowMatchEulerDiscreteScheduler";
    texts[join("scheduler", "scheduler_config.json")] = json(own ? scheduler : diffusersSchedulerConfig(scheduler));
  }
  check(parts.length > 0, "checkpoint", () => `[convert] ${path} holds no model`);
  return { parts, texts };
}

const json = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;

function diffusersNames(kind: ModuleKind, names: readonly string[]): Map<string, string> {
  if (kind === "vae") return vaeKeys(names, "diffusers");
  return new Map(names.map((name) => [name, kind === "transformer" ? renameTransformerKey(name, "diffusers") : name]));
}

async function diffusersConfig(kind: ModuleKind, models: OfficialModels): Promise<Json> {
  const { path, configs } = models;
  if (kind === "transformer") return diffusersTransformerConfig(configs.transformer ?? {}, path);
  if (kind === "vae") return diffusersVaeConfig((await officialVae(models)) ?? {}, path);
  return { ...configs.upsampler, _class_name: DIFFUSERS_CLASSES.upsampler };
}
