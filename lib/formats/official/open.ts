/** The official models on disk, in any of the forms in which they are handed on. */

import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { path as checkPath } from "../../arguments.js";
import { check, LtxError } from "../../errors.js";
import { newerModel, otherModel } from "../known-models.js";
import { unscaled } from "../scaled-weights.js";
import { isIndexName, openIndex, openShards } from "../sharded.js";
import { openTensorFile, type TensorFile } from "../tensor-file.js";
import { joined, renamed } from "../tensor-view.js";
import { DIFFUSERS_CLASSES, officialTransformerConfig } from "./diffusers.js";
import { causalPositions, inferTransformerConfig } from "./infer.js";
import { isModelKey, type ModuleKind, renameTransformerKey, vaeKeys } from "./keys.js";
import { isAdapterName } from "./lora-names.js";

type Json = Record<string, unknown>;

/** The JSON of each part; what a file does not say is left out. */
export interface OfficialConfigs {
  /** In the official names, whatever the form on disk. */
  transformer?: Json;
  /** That of a diffusers folder as it stands there, which `parseOfficialVae` reads too. */
  vae?: Json;
  /** The same of the scheduler. */
  scheduler?: Json;
  upsampler?: Json;
  /** The only times that the model was distilled for. */
  allowed_inference_steps?: unknown;
}

/** The official models of one path, their weights still on disk. */
export interface OfficialModels {
  readonly path: string;
  /** How the tensors are named and divided there. */
  readonly layout: OfficialLayout;
  /** Which models there are. */
  readonly kinds: readonly ModuleKind[];
  readonly configs: OfficialConfigs;
  /** Tensors at the path that no such model has: of other models beside them, copies of weights, or unknown ones. */
  readonly leftOut: readonly string[];
  /** What the file says of itself; `config` is what the official code reads. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The folder of the text encoder and its tokenizer, where they lie beside the models. */
  readonly textEncoder?: string;
  /**
   * The tensors of one model under the official names, those of unused statistics too. Where the file has fp8 weights
   * with scales, these are multiplied in (see `unscaled`).
   * @throws LtxError `checkpoint` when it is not there
   */
  module(kind: ModuleKind): TensorFile;
  /** Closes all files; safe to call again. */
  close(): Promise<void>;
}

export type OfficialLayout = "official" | "diffusers" | "ltx-native";

/** What stands before the names of each model in files of several. */
export const PREFIXES: Record<Exclude<OfficialLayout, "diffusers">, Record<ModuleKind, string>> = {
  official: { transformer: "model.diffusion_model.", vae: "vae.", upsampler: "latent_upsampler." },
  "ltx-native": { transformer: "transformer.", vae: "vae.", upsampler: "latent_upsampler." },
};
/** What other programs write there, in the order of preference. */
const OTHER_PREFIXES: Record<ModuleKind, readonly string[]> = {
  transformer: ["diffusion_model.", "model."],
  vae: ["first_stage_model."],
  upsampler: [],
};

const KIND_NAMES: Record<ModuleKind, string> = {
  transformer: "transformer",
  vae: "VAE",
  upsampler: "latent upsampler",
};
/** Where a diffusers folder has each model. */
export const DIFFUSERS_FOLDERS: Record<ModuleKind, string> = {
  transformer: "transformer",
  vae: "vae",
  upsampler: "latent_upsampler",
};
/** Where a diffusers VAE keeps the statistics that diffusers has no name for. */
export const STATISTICS_FILE = "per_channel_statistics.safetensors";
/** Files of weights in a folder of one model, in the order of preference. */
const WEIGHT_FILES = ["diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin"];

/**
 * Opens the official models at `path`: a single file with one or several of them, a folder of shards with their index (or
 * the index itself), a diffusers folder, or the folder of one model. What they are is read from the configuration, else
 * from the tensors' names and shapes.
 * @throws LtxError `checkpoint` when nothing of the kind is there or a part is missing; `file_format`, `io`
 */
export async function openOfficial(path: string): Promise<OfficialModels> {
  checkPath("official", "the model", path);
  const info = await stat(path).catch((cause) => {
    throw new LtxError("checkpoint", `[official] ${path} does not exist`, { cause });
  });
  if (!info.isDirectory()) {
    return fromFile(path, isIndexName(path) ? await openIndex(path) : await openTensorFile(path));
  }
  const names = await readdir(path);
  const parts = Object.entries(DIFFUSERS_FOLDERS).filter(([, folder]) => names.includes(folder));
  if (names.includes("model_index.json") || parts.length > 0) return openDiffusers(path, names);
  if (names.includes("config.json")) return openModuleFolder(path);
  const index = names.filter((name) => name.includes(".safetensors.") && isIndexName(name));
  if (index.length === 1) return fromFile(path, await openIndex(join(path, index[0])));
  const files = names.filter((name) => name.endsWith(".safetensors"));
  check(index.length === 0 && files.length === 1, "checkpoint", () => {
    const found = files.length + index.length === 0 ? "no weights" : `${[...index, ...files].join(", ")}`;
    return `[official] ${path} holds ${found}: expected one safetensors file, shards with one *.safetensors.index.json, or a diffusers folder; name the file that is meant`;
  });
  return fromFile(path, await openTensorFile(join(path, files[0])));
}

/** Models in one file, or in shards that stand for one. */
async function fromFile(path: string, opened: TensorFile, extra: Json | null = null): Promise<OfficialModels> {
  try {
    refuseNewer(opened, path);
    const file = await unscaled(opened, path);
    const { layout, groups } = modulesIn(path, file);
    const kinds = [...groups.keys()];
    const modules = new Map(kinds.map((kind) => [kind, renamed(file, groups.get(kind) as Map<string, string>)]));
    const { metadata } = file;
    const stored = configSections(storedConfig(path, metadata) ?? extra, kinds, path);
    const used = new Set([...groups].flatMap(([kind, names]) => known(kind, names).map(([, name]) => name)));
    const leftOut = [...file.tensors.keys()].filter((name) => !used.has(name));
    return models({ path, layout, configs: stored, metadata, leftOut }, modules, [file]);
  } catch (error) {
    await opened.close();
    throw error;
  }
}

/** Those of a model's tensors that it can have, by their official names and those on disk. */
const known = (kind: ModuleKind, names: ReadonlyMap<string, string>): [string, string][] =>
  [...names].filter(([official]) => isModelKey(kind, official));

/** Before the forms of its weights are looked at: that it is another model is the point. */
function refuseNewer(file: TensorFile, path: string): void {
  const newer = newerModel(file);
  check(!newer, "checkpoint", () => `[official] ${path} is ${newer}`);
}

function models(
  about: Pick<OfficialModels, "path" | "layout" | "configs" | "metadata" | "leftOut" | "textEncoder">,
  modules: ReadonlyMap<ModuleKind, TensorFile>,
  files: readonly TensorFile[],
): OfficialModels {
  const { path, configs } = about;
  const transformer = modules.get("transformer");
  if (transformer) configs.transformer ??= inferTransformerConfig(path, transformer, modules.get("vae"));
  return {
    ...about,
    kinds: [...modules.keys()],
    module(kind) {
      const file = modules.get(kind);
      check(file, "checkpoint", () => {
        const there = [...modules.keys()].map((name) => KIND_NAMES[name]).join(" and ");
        return `[official] ${path} holds no ${KIND_NAMES[kind]}, only a ${there}: take a file that has both, or bring both into one folder ("ltx-native convert --checkpoint FILE --to diffusers --out FOLDER" for each, the second with --force) and name that`;
      });
      return file;
    },
    async close() {
      for (const file of files) await file.close();
    },
  };
}

/** The tensors of each model: from its official names to those in the file. */
function modulesIn(
  path: string,
  file: TensorFile,
): { layout: OfficialLayout; groups: Map<ModuleKind, Map<string, string>> } {
  const names = [...file.tensors.keys()];
  check(!names.some(isAdapterName), "checkpoint", () => {
    return `[official] ${path} is a LoRA, not a model: give the model's checkpoint, and this file as one of its LoRAs`;
  });
  const layout = file.metadata.format === "ltx-native" ? "ltx-native" : "official";
  const groups = new Map<ModuleKind, Map<string, string>>();
  for (const [kind, prefix] of Object.entries(PREFIXES[layout]) as [ModuleKind, string][]) {
    for (const before of [prefix, ...(layout === "official" ? OTHER_PREFIXES[kind] : [])]) {
      const own = names.filter((name) => name.startsWith(before));
      // A prefix as common as "model." says little: the rest of the names must tell.
      if (own.length === 0 || (before !== prefix && kindOfNames(own, before) !== kind)) continue;
      groups.set(kind, officialNames(kind, own, before));
      break;
    }
  }
  if (groups.size > 0) return { layout, groups };
  const kind = kindOfNames(names);
  check(kind, "checkpoint", () => {
    const other = otherModel(file);
    if (other) return `[official] ${path} is ${other}`;
    const some = names.slice(0, 3).map((name) => `"${name}", `);
    return `[official] ${path} holds none of the official models: expected names that begin with model.diffusion_model. or vae., or those of a single model, found ${some.join("") || "none, "}...`;
  });
  groups.set(kind, officialNames(kind, names, ""));
  const diffusers = [...(groups.get(kind) ?? [])].some(([official, own]) => official !== own);
  return { layout: diffusers ? "diffusers" : "official", groups };
}

/** The model that the names without `prefix` are of. */
function kindOfNames(own: readonly string[], prefix = ""): ModuleKind | undefined {
  const all = new Set(own);
  const has = (...names: string[]) => names.some((name) => all.has(prefix + name));
  if (has("patchify_proj.weight", "proj_in.weight")) return "transformer";
  if (has("encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight")) return "vae";
  return has("initial_conv.weight") && has("final_conv.weight") ? "upsampler" : undefined;
}

/** From the official names of one model to those in the file, whichever spelling that has. */
function officialNames(kind: ModuleKind, names: readonly string[], prefix: string): Map<string, string> {
  const own = names.map((name) => name.slice(prefix.length));
  if (kind === "transformer")
    return new Map(own.map((name) => [renameTransformerKey(name, "official"), prefix + name]));
  const diffusers = kind === "vae" && own.some((name) => name.includes(".resnets."));
  if (!diffusers) return new Map(own.map((name) => [name, prefix + name]));
  return new Map([...vaeKeys(own, "official")].map(([name, official]) => [official, prefix + name]));
}

/** The configuration in a file's metadata. */
function storedConfig(path: string, { config }: TensorFile["metadata"]): Json | null {
  if (config === undefined) return null;
  try {
    return asObject(JSON.parse(config));
  } catch (cause) {
    const reason = (cause as Error).message;
    throw new LtxError("file_format", `[official] ${path}: its config is no JSON object (${reason}): it is damaged`, {
      cause,
    });
  }
}

function asObject(value: unknown): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error(`found ${typeof value}`);
  return value as Json;
}

const CLASS_KINDS: Record<string, ModuleKind> = {
  Transformer3DModel: "transformer",
  CausalVideoAutoencoder: "vae",
  LatentUpsampler: "upsampler",
  [DIFFUSERS_CLASSES.vae]: "vae",
  [DIFFUSERS_CLASSES.upsampler]: "upsampler",
};

/** What the parts of a configuration of several models are called in it. */
const SECTIONS = { transformer: "transformer", vae: "vae", scheduler: "scheduler", upsampler: "latent_upsampler" };

/** A configuration of several models, or of a single one. */
function configSections(config: Json | null, kinds: readonly ModuleKind[], path: string): OfficialConfigs {
  if (!config) return {};
  if (Object.values(SECTIONS).some((key) => key in config)) {
    const sections = Object.entries(SECTIONS).filter(([, key]) => config[key] != null);
    const { allowed_inference_steps } = config;
    return {
      ...Object.fromEntries(sections.map(([name, key]) => [name, asSection(config[key], key, path)])),
      ...(allowed_inference_steps == null ? {} : { allowed_inference_steps }),
    };
  }
  const named = String(config._class_name);
  const kind =
    (Object.hasOwn(CLASS_KINDS, named) ? CLASS_KINDS[named] : undefined) ?? (kinds.length === 1 ? kinds[0] : undefined);
  return kind ? { [kind]: config } : {};
}

function asSection(value: unknown, key: string, path: string): Json {
  check(typeof value === "object" && value !== null && !Array.isArray(value), "file_format", () => {
    return `[official] ${path}: ${key} of its configuration is ${JSON.stringify(value)}, expected a section of keys`;
  });
  return value as Json;
}

async function readConfig(path: string): Promise<Json> {
  const text = await readFile(path, "utf8").catch((cause) => {
    throw new LtxError("checkpoint", `[official] ${path} cannot be read (${cause.message})`, { cause });
  });
  try {
    return asObject(JSON.parse(text));
  } catch (cause) {
    throw new LtxError("file_format", `[official] ${path} is no JSON object (${(cause as Error).message})`, { cause });
  }
}

/** The folder of one model: its configuration beside its weights, as diffusers has them. */
async function openModuleFolder(path: string): Promise<OfficialModels> {
  const config = await readConfig(join(path, "config.json"));
  const file = await openShards(path, undefined, WEIGHT_FILES);
  return fromFile(path, file, translate(config, join(path, "config.json")));
}

/** A transformer's configuration in the official names; others as they are. */
function translate(config: Json, where: string, vae?: TensorFile): Json {
  if (config._class_name === DIFFUSERS_CLASSES.transformer) {
    return officialTransformerConfig(config, causalPositions(vae, Number(config.num_layers)), where);
  }
  return config;
}

async function openDiffusers(path: string, names: readonly string[]): Promise<OfficialModels> {
  const files: TensorFile[] = [];
  try {
    const modules = new Map<ModuleKind, TensorFile>();
    const configs: OfficialConfigs = {};
    let metadata: Readonly<Record<string, string>> = {};
    const described = new Map<ModuleKind, Json>();
    const leftOut: string[] = [];
    for (const [kind, folder] of Object.entries(DIFFUSERS_FOLDERS) as [ModuleKind, string][]) {
      if (!names.includes(folder)) continue;
      const place = join(path, folder);
      const stored = await openShards(place, undefined, WEIGHT_FILES);
      files.push(stored);
      refuseNewer(stored, place);
      const file = await unscaled(stored, place);
      described.set(kind, await readConfig(join(place, "config.json")));
      if (file.metadata.config !== undefined) metadata = file.metadata;
      const own = officialNames(kind, [...file.tensors.keys()], "");
      const used = new Set(known(kind, own).map(([, name]) => name));
      leftOut.push(...[...file.tensors.keys()].filter((name) => !used.has(name)).map((name) => `${folder}/${name}`));
      const view = renamed(file, own);
      modules.set(kind, kind === "vae" ? await withStatistics(place, view, files) : view);
    }
    check(modules.size > 0, "checkpoint", () => {
      return `[official] ${path} holds no ${Object.values(DIFFUSERS_FOLDERS).join(", ")}: expected at least one of these folders of a diffusers model`;
    });
    for (const [kind, config] of described) {
      configs[kind] = translate(config, join(path, DIFFUSERS_FOLDERS[kind], "config.json"), modules.get("vae"));
    }
    if (names.includes("scheduler"))
      configs.scheduler = await readConfig(join(path, "scheduler", "scheduler_config.json"));
    // What this package wrote from an official file carries its configuration.
    Object.assign(configs, configSections(storedConfig(path, metadata), [...modules.keys()], path));
    const textEncoder = names.includes("text_encoder") ? path : undefined;
    return models({ path, layout: "diffusers", configs, metadata, leftOut, textEncoder }, modules, files);
  } catch (error) {
    for (const file of files) await file.close();
    throw error;
  }
}

async function withStatistics(folder: string, vae: TensorFile, files: TensorFile[]): Promise<TensorFile> {
  const place = join(folder, STATISTICS_FILE);
  if (!(await stat(place).catch(() => null))) return vae;
  const statistics = await openTensorFile(place);
  files.push(statistics);
  return joined([vae, statistics], vae.metadata);
}
