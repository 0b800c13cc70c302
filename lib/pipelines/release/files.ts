/** Where the files of an official release lie. Nothing is downloaded. */
import { readdir } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { PipelineConfig } from "../../config/index.js";
import { LtxError } from "../../errors.js";
import { hubSnapshots } from "../../formats/hub-cache.js";
import { exists } from "../../formats/paths.js";
import { findT5Folder } from "../../models/text-encoder/t5-folder.js";
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
  if (await exists(name)) return name;
  const shipped = (await readdir(SHIPPED)).sort().map((file) => basename(file, ".yaml"));
  const wanted = basename(name).replace(/\.ya?ml$/, "");
  if (shipped.includes(wanted)) return join(SHIPPED, `${wanted}.yaml`);
  const near = closest(wanted, shipped);
  const hint = near ? `did you mean ${near}?` : "give a path";
  throw new LtxError(
    "config",
    `[release] ${name} is no file and no release that comes with this package: ${hint} Known are ${shipped.join(", ")}`,
  );
}

export interface ReleaseFiles {
  checkpoint: string;
  textEncoder: string;
  spatialUpscaler?: string;
}

/**
 * The models that `config`, read from `file`, names: a path, from here or from beside the file; or a name in the folder
 * LTX_MODELS or the Hugging Face cache.
 * @throws LtxError `unavailable`, naming every place that was looked at and the command that gets the file
 */
export async function findReleaseFiles(
  config: PipelineConfig,
  file: string,
  env: NodeJS.ProcessEnv = process.env,
): Promise<ReleaseFiles> {
  const beside = dirname(file);
  const { checkpoint_path, spatial_upscaler_model_path: upscaler, text_encoder_model_name_or_path: text } = config;
  const checkpoint = await findModel(checkpoint_path, "checkpoint_path", beside, env);
  const textEncoder = await findTextEncoder(text, beside, env);
  if (upscaler === undefined) return { checkpoint, textEncoder };
  const spatialUpscaler = await findModel(upscaler, "spatial_upscaler_model_path", beside, env);
  return { checkpoint, textEncoder, spatialUpscaler };
}

async function findModel(name: string, key: string, beside: string, env: NodeJS.ProcessEnv): Promise<string> {
  const places = [name, join(beside, name), ...(env.LTX_MODELS ? [join(env.LTX_MODELS, name)] : [])];
  for (const snapshot of await hubSnapshots(HUB, env)) places.push(join(snapshot, name));
  for (const place of places) if (await exists(place)) return place;
  throw new LtxError(
    "unavailable",
    `[release] ${key} ${name} was not found (looked for ${[...new Set(places)].join(", ")}). Nothing is downloaded: get ` +
      `it by "hf download ${HUB} ${basename(name)}", or name the file by --${key.replaceAll("_", "-")} or its folder by ` +
      "the environment variable LTX_MODELS",
  );
}

async function findTextEncoder(name: string, beside: string, env: NodeJS.ProcessEnv): Promise<string> {
  const own = env.LTX_MODELS;
  const places = [name, join(beside, name), ...(own ? [join(own, name), join(own, basename(name))] : [])];
  for (const place of places) if (await exists(place)) return place;
  return findT5Folder({ version: name }, { env });
}
