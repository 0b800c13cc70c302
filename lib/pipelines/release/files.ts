/** Where the files of an official release lie. Nothing is downloaded. */
import { readdir } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { PipelineConfig } from "../../config/index.js";
import { LtxError } from "../../errors.js";
import { hubSnapshots } from "../../formats/hub-cache.js";
import { exists, isFile, isFolder } from "../../formats/paths.js";
import { refuseFile, T5_FILES, t5Places } from "../../models/text-encoder/t5-folder.js";
import { closest } from "../../suggest.js";

/** The settings of the releases that come with this package. */
const SHIPPED = join(__dirname, "..", "..", "..", "configs", "official");
/** Where the released files are published. */
const HUB = "Lightricks/LTX-Video";

/** The release that a command takes when it is not told one: the smallest of the newest ones. */
export const DEFAULT_RELEASE = "ltxv-2b-0.9.8-distilled";

/**
 * The YAML file of a release: a path, or the name of one that this package has (its folder, as in the official
 * repository's `configs/…`, and its extension don't count).
 * @throws LtxError `config`, naming those that there are
 */
export async function findReleaseConfig(name: string): Promise<string> {
  if (await isFile(name)) return name;
  const shipped = (await readdir(SHIPPED)).sort().map((file) => basename(file, ".yaml"));
  const wanted = basename(name).replace(/\.ya?ml$/, "");
  if (shipped.includes(wanted)) return join(SHIPPED, `${wanted}.yaml`);
  const near = closest(wanted, shipped);
  const hint = near ? `did you mean ${near}?` : "give the path of a YAML file.";
  const found = (await isFolder(name)) ? "is a folder, not a YAML file" : "is not a file";
  throw new LtxError(
    "config",
    `[release] ${name} ${found}, and not a release that comes with this package: ${hint} Known are ${shipped.join(", ")}`,
  );
}

/** The text encoder that releases name when nobody names another. */
const USUAL_TEXT_ENCODER = "PixArt-alpha/PixArt-XL-2-1024-MS";

export interface ReleaseFiles {
  checkpoint: string;
  textEncoder: string;
  spatialUpscaler?: string;
  /** Where the VAE is not in the checkpoint. */
  vae?: string;
}

/**
 * The models that `config`, read from `file`, names: a path, from here or from beside the file; or a name in the folder
 * LTX_MODELS or the Hugging Face cache. A diffusers folder brings its own text encoder, unless another one is named.
 * @throws LtxError `unavailable`, naming all that is missing, every place that was looked at and what gets it
 */
export async function findReleaseFiles(
  config: PipelineConfig,
  file: string,
  env: NodeJS.ProcessEnv = process.env,
): Promise<ReleaseFiles> {
  const beside = dirname(file);
  const missing: string[] = [];
  const find = async (key: ModelKey): Promise<string | undefined> => {
    const name = config[key];
    if (name === undefined) return undefined;
    const places = await modelPlaces(name, beside, env);
    for (const place of places) if (await isModel(place)) return place;
    missing.push(await notFound(key, name, places));
    return undefined;
  };
  const checkpoint = await find("checkpoint_path");
  const vae = await find("vae_path");
  const spatialUpscaler = await find("spatial_upscaler_model_path");
  const { text_encoder_model_name_or_path: name } = config;
  let textEncoder: string | undefined;
  if (name === USUAL_TEXT_ENCODER && checkpoint !== undefined && (await isT5(join(checkpoint, "text_encoder")))) {
    textEncoder = checkpoint;
  } else {
    const places = await textEncoderPlaces(name, beside, env);
    for (const place of places) {
      if (textEncoder === undefined && ((await isT5(place)) || (await isT5(join(place, "text_encoder"))))) {
        textEncoder = place;
      }
    }
    if (textEncoder === undefined) missing.push(await noTextEncoder(name, places));
  }
  if (checkpoint === undefined || textEncoder === undefined || missing.length > 0) {
    throw new LtxError("unavailable", `[release] ${missing.join(".\n[release] ")}. Nothing is downloaded`);
  }
  return { checkpoint, textEncoder, ...(spatialUpscaler && { spatialUpscaler }), ...(vae && { vae }) };
}

type ModelKey = "checkpoint_path" | "spatial_upscaler_model_path" | "vae_path";

async function modelPlaces(name: string, beside: string, env: NodeJS.ProcessEnv): Promise<string[]> {
  const places = [name, join(beside, name), ...(env.LTX_MODELS ? [join(env.LTX_MODELS, name)] : [])];
  for (const snapshot of await hubSnapshots(HUB, env)) places.push(join(snapshot, name));
  return [...new Set(places)];
}

/** A file, or a folder that has something of a model in it: an empty one of the same name hides nothing. */
async function isModel(path: string): Promise<boolean> {
  if (await isFile(path)) return true;
  const names = await readdir(path).catch(() => []);
  return names.some((name) =>
    /^(model_index\.json|config\.json|transformer|vae)$|\.(safetensors|bin)(\.|$)/.test(name),
  );
}

async function isT5(folder: string): Promise<boolean> {
  return isFile(join(folder, "config.json"));
}

async function notFound(key: ModelKey, name: string, places: readonly string[]): Promise<string> {
  const folders = [];
  for (const place of places) if (await isFolder(place)) folders.push(place);
  const there = folders.length > 0 ? `; ${folders.join(" and ")} holds no model` : "";
  return (
    `${key} ${name} was not found (looked for ${places.join(", ")}${there}): get it by "hf download ${HUB} ` +
    `${basename(name)}", or name the file by --${key.replaceAll("_", "-")} or its folder by the environment variable ` +
    "LTX_MODELS"
  );
}

async function textEncoderPlaces(name: string, beside: string, env: NodeJS.ProcessEnv): Promise<string[]> {
  const own = env.LTX_MODELS;
  const places = [name, join(beside, name), ...(own ? [join(own, name), join(own, basename(name))] : [])];
  return [...new Set([...places, ...(await t5Places(name, env))])];
}

async function noTextEncoder(name: string, places: readonly string[]): Promise<string> {
  const flag = "--text-encoder-model-name-or-path";
  for (const place of places) {
    const file = await refuseFile(place).catch((error: LtxError) => error.message.replace("[t5] ", ""));
    if (file) return `${file} (${flag})`;
  }
  const there = [];
  for (const place of places) if (await exists(place)) there.push(place);
  const what =
    there.length > 0 ? `${there.join(" and ")} has no config.json of a T5` : `looked for ${places.join(", ")}`;
  const hub = /^[\w.-]+\/[\w.-]+$/.test(name);
  const get = hub ? `get it by "hf download ${name} --include 'text_encoder/*' 'tokenizer/*'", or ` : "";
  return `the text encoder ${name} was not found (${what}): ${get}name the folder by ${flag} that has ${T5_FILES}`;
}
