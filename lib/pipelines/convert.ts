/** Turning any checkpoint that can be read into another form of it. */
import { realpath, stat } from "node:fs/promises";
import { sep } from "node:path";
import { loadConfig } from "../config/deferred.js";
import type { RunConfig } from "../config/index.js";
import { check } from "../errors.js";
import { closeLoras, loraFile, openLora, openLoras, type WeightedLora } from "../formats/official/lora.js";
import { isAdapterName } from "../formats/official/lora-names.js";
import { type OfficialLayout, openOfficial } from "../formats/official/open.js";
import { unscaled } from "../formats/scaled-weights.js";
import { openTensorFile, type TensorFile } from "../formats/tensor-file.js";
import { findModelFile } from "./checkpoint-path.js";
import { loraPart } from "./convert-lora.js";
import { officialParts, singleFile } from "./convert-official.js";
import { Findings, type FloatDtype, tensorsFrom } from "./convert-tensors.js";
import { kindOf } from "./open-checkpoint.js";
import { checkFile, checkFolder, type Part, writeModelFile, writeModelFolder } from "./write-model.js";

export interface ConvertOptions {
  /**
   * The form to write the official models, or a LoRA for them, in: `official` or `comfyui`, which are the same (one file),
   * `diffusers` (a folder; of a LoRA one file) or `ltx-native` (one file). Without it tensors keep their names.
   */
  to?: OfficialLayout | "comfyui";
  /** Element type of the floats; each tensor's own unless given. Integers and booleans stay what they are. */
  dtype?: FloatDtype;
  /** With `to`: bytes of weights in a file. Where there are more, the result is a folder of files with an index. */
  maxShardSize?: number;
  /** With `to`: LoRA files to merge into the transformer, each with the weight it is added with. */
  loras?: readonly { path: string; weight?: number }[];
  /** Without `to`: configuration or YAML file to store in the file, in place of the checkpoint's own if it has one. */
  config?: RunConfig | string;
  /** Replace existing files. */
  force?: boolean;
}

export interface Conversion {
  /** The file or folder that was read. */
  source: string;
  path: string;
  /** What the tensors are, where their names tell. */
  kind?: "vae" | "flow" | "official" | "lora";
  tensors: number;
  /** Of the files that were written. */
  bytes: number;
  /** The tensors of the source that are not in the result, by name. */
  leftOut: readonly string[];
  /** What to know of the result, each in a sentence. */
  notices: readonly string[];
}

/**
 * Writes the model at `from` to `to`. Without a form to write (`options.to`) that is one safetensors file under the
 * reference's keys, of a `.pt` file of either format, a safetensors file, or a checkpoint's or run's folder: `module.`
 * taken away, optimizer states left out. With one, `from` are official models in any form, or a LoRA for them. Where the
 * source has fp8 weights with scales, these are multiplied in. All is read back and compared before it takes its name; on
 * failure nothing is left behind and what was there is untouched.
 * @throws LtxError `file_exists`, `invalid_argument`, `config`, `checkpoint`, `file_format`, `dtype_mismatch`,
 *   `non_finite`, `io`
 */
export async function convert(from: string, to: string, options: ConvertOptions = {}): Promise<Conversion> {
  await checkApart(to, [from, ...(options.loras ?? []).map(({ path }) => path)]);
  if (options.to !== undefined) {
    return convertOfficial(from, to, options.to === "comfyui" ? "official" : options.to, options);
  }
  const { maxShardSize, loras, dtype } = options;
  check(dtype !== "fp8", "invalid_argument", () => {
    return "[convert] dtype fp8 is for the official transformers: say which form to write (official, diffusers or ltx-native)";
  });
  check(maxShardSize === undefined && !loras?.length, "invalid_argument", () => {
    return "[convert] shards and LoRAs are for the official models: say which form to write (official, diffusers or ltx-native)";
  });
  await checkFile(to, options.force);
  const source = await findModelFile(from, "flow");
  await checkApart(to, [source]);
  const stored = await openTensorFile(source);
  try {
    const file = await unscaled(stored, source);
    const kind = kindOf(file.tensors.keys());
    const metadata = await describe(file, source, kind, options.config);
    const findings = new Findings();
    const tensors = tensorsFrom(file, { dtype, findings });
    const bytes = await writeModelFile(to, { tensors, metadata }, options.force);
    const about = { source, path: to, ...(kind ? { kind } : {}) };
    return { ...about, tensors: tensors.length, bytes, leftOut: [], notices: findings.notices() };
  } finally {
    await stored.close();
  }
}

/** Throws where the result would take the place of what it is made from. */
async function checkApart(to: string, sources: readonly string[]): Promise<void> {
  const place = await realpath(to).catch(() => null);
  if (place === null) return;
  for (const source of sources) {
    const own = await realpath(source).catch(() => null);
    const same = own !== null && (own === place || place.startsWith(own + sep) || own.startsWith(place + sep));
    const how = own === place ? "is what is converted" : "and what is converted lie in each other";
    check(!same, "invalid_argument", () => `[convert] ${to} ${how}, ${source}: choose another place for the result`);
  }
}

async function convertOfficial(
  from: string,
  to: string,
  form: OfficialLayout,
  options: ConvertOptions,
): Promise<Conversion> {
  check(options.config === undefined, "invalid_argument", () => {
    return "[convert] a configuration is for this package's own models: official ones bring theirs";
  });
  const { maxShardSize, dtype, force } = options;
  check(maxShardSize === undefined || maxShardSize > 0, "invalid_argument", () => {
    return `[convert] the size of a shard must be above 0, got ${maxShardSize}`;
  });
  if (await isLora(from)) return convertLora(from, to, form, options);
  const single = form !== "diffusers" && maxShardSize === undefined;
  await (single ? checkFile(to, force) : checkFolder(to, force));
  const models = await openOfficial(from);
  let loras: WeightedLora[] = [];
  try {
    loras = await openLoras(options.loras ?? []);
    const findings = new Findings();
    const written = await officialParts(models, form, { dtype, maxShardSize, loras, findings, stem: singleFile(to) });
    const { parts } = written;
    const { leftOut } = models;
    const bytes = single ? await writeModelFile(to, parts[0], force) : await writeModelFolder(to, written);
    const tensors = parts.reduce((n, part) => n + part.tensors.length, 0);
    const notices = [...loras.flatMap(({ lora }) => lora.notices), ...leaving(leftOut), ...findings.notices()];
    return { source: from, kind: "official", path: to, tensors, bytes, leftOut, notices };
  } finally {
    await closeLoras(loras);
    await models.close();
  }
}

/** Says what is left out, by the names' beginnings. */
function leaving(names: readonly string[]): string[] {
  if (names.length === 0) return [];
  const groups = new Map<string, number>();
  for (const name of names) {
    const [group] = /^(?:model\.diffusion_model|[^.]*)/.exec(name) ?? [name];
    groups.set(group, (groups.get(group) ?? 0) + 1);
  }
  const list = [...groups].map(([group, count]) => `${count} of ${group}`);
  const shown = list.slice(0, 6).join(", ") + (list.length > 6 ? `, and of ${list.length - 6} more` : "");
  const count =
    names.length === 1 ? "1 tensor is left out, which is" : `${names.length} tensors are left out, which are`;
  return [`${count} not part of the models: ${shown} (the first is "${names[0]}")`];
}

async function convertLora(
  from: string,
  to: string,
  form: OfficialLayout,
  { dtype, maxShardSize, loras, force }: ConvertOptions,
): Promise<Conversion> {
  check(dtype !== "fp8", "invalid_argument", () => "[convert] a LoRA's matrices need f32, bf16 or f16, not fp8");
  check(maxShardSize === undefined && !loras?.length, "invalid_argument", () => {
    return `[convert] ${from} is a LoRA, which becomes one file: leave shards and other LoRAs out`;
  });
  await checkFile(to, force);
  const lora = await openLora(from);
  try {
    const part = loraPart(lora, form === "diffusers" ? "diffusers" : "official", dtype);
    const bytes = await writeModelFile(to, part, force);
    const { notices, leftOut } = lora;
    return { source: from, kind: "lora", path: to, tensors: part.tensors.length, bytes, leftOut, notices };
  } finally {
    await lora.close();
  }
}

/** Whether a file is a LoRA, or a folder that holds one and no model. */
async function isLora(path: string): Promise<boolean> {
  const info = await stat(path).catch(() => null);
  if (!info || path.endsWith(".json")) return false;
  const place = info.isDirectory() ? await loraFile(path).catch(() => null) : path;
  if (place === null) return false;
  const file = await openTensorFile(place);
  try {
    return [...file.tensors.keys()].some(isAdapterName);
  } finally {
    await file.close();
  }
}

/** What the new file says of itself. */
async function describe(
  file: TensorFile,
  source: string,
  kind: "vae" | "flow" | undefined,
  given: RunConfig | string | undefined,
): Promise<Part["metadata"]> {
  if (given === undefined) return { ...file.metadata };
  const config = typeof given === "string" ? await loadConfig(given) : given;
  check(kind !== undefined, "config", () => {
    return `[convert] ${source} holds neither a VAE nor a text-to-video model: leave the configuration out`;
  });
  const stage = config.kind === "quickstart" ? config[kind] : config;
  check(stage.kind === kind, "config", () => {
    return `[convert] ${source} holds a ${kind} model, the configuration is one of a ${stage.kind} run`;
  });
  return { ...file.metadata, format: "ltx-native", kind, config: JSON.stringify(stage) };
}
