/** Turning any checkpoint that can be read into another form of it. */
import { stat } from "node:fs/promises";
import { loadConfig } from "../config/deferred.js";
import type { RunConfig } from "../config/index.js";
import { check } from "../errors.js";
import { isLoraKey } from "../formats/official/keys.js";
import { closeLoras, openLoras, type WeightedLora } from "../formats/official/lora.js";
import { type OfficialLayout, openOfficial } from "../formats/official/open.js";
import { openTensorFile, type TensorFile } from "../formats/tensor-file.js";
import { findModelFile } from "./checkpoint-path.js";
import { loraParts, officialParts, singleFile } from "./convert-official.js";
import { kindOf } from "./open-checkpoint.js";
import {
  checkFile,
  checkFolder,
  type FloatDtype,
  type Part,
  type Parts,
  tensorsFrom,
  writeModelFile,
  writeModelFolder,
} from "./write-model.js";

export interface ConvertOptions {
  /**
   * The form to write the official models, or a LoRA for them, in: `official` (one file), `diffusers` (a folder) or
   * `ltx-native` (one file). Without it tensors keep their names.
   */
  to?: OfficialLayout;
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
}

/**
 * Writes the model at `from` to `to`. Without a form to write (`options.to`) that is one safetensors file under the
 * reference's keys, of a `.pt` file of either format, a safetensors file, or a checkpoint's or run's folder: `module.`
 * taken away, optimizer states left out. With one, `from` are official models in any form, or a LoRA for them. All is read
 * back and compared before it takes its name; on failure nothing is left behind and what was there is untouched.
 * @throws LtxError `file_exists`, `invalid_argument`, `config`, `checkpoint`, `file_format`, `dtype_mismatch`, `io`
 */
export async function convert(from: string, to: string, options: ConvertOptions = {}): Promise<Conversion> {
  if (options.to !== undefined) return convertOfficial(from, to, options.to, options);
  const { maxShardSize, loras, dtype } = options;
  check(dtype !== "fp8", "invalid_argument", () => {
    return "[convert] dtype fp8 is for the official transformers: say which form to write (official, diffusers or ltx-native)";
  });
  check(maxShardSize === undefined && !loras?.length, "invalid_argument", () => {
    return "[convert] shards and LoRAs are for the official models: say which form to write (official, diffusers or ltx-native)";
  });
  await checkFile(to, options.force);
  const source = await findModelFile(from, "flow");
  const file = await openTensorFile(source);
  try {
    const kind = kindOf(file.tensors.keys());
    const metadata = await describe(file, source, kind, options.config);
    const tensors = tensorsFrom(file, options.dtype);
    const bytes = await writeModelFile(to, { tensors, metadata });
    return { source, path: to, ...(kind ? { kind } : {}), tensors: tensors.length, bytes };
  } finally {
    await file.close();
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
  const { maxShardSize } = options;
  check(maxShardSize === undefined || maxShardSize > 0, "invalid_argument", () => {
    return `[convert] the size of a shard must be above 0, got ${maxShardSize}`;
  });
  if (await isLora(from)) {
    check(
      options.dtype !== "fp8",
      "invalid_argument",
      () => "[convert] a LoRA's matrices need f32, bf16 or f16, not fp8",
    );
    check(maxShardSize === undefined && !options.loras?.length, "invalid_argument", () => {
      return `[convert] ${from} is a LoRA, which becomes one file: leave shards and other LoRAs out`;
    });
    await checkFile(to, options.force);
    const file = await openTensorFile(from);
    try {
      return await write({ source: from, kind: "lora" }, to, loraParts(file, form, options), true);
    } finally {
      await file.close();
    }
  }
  const single = form !== "diffusers" && maxShardSize === undefined;
  await (single ? checkFile(to, options.force) : checkFolder(to, options.force));
  const models = await openOfficial(from);
  let opened: WeightedLora[] = [];
  try {
    opened = await openLoras(options.loras ?? []);
    const parts = await officialParts(models, form, { ...options, loras: opened, stem: singleFile(to) });
    return await write({ source: from, kind: "official" }, to, parts, single);
  } finally {
    await closeLoras(opened);
    await models.close();
  }
}

async function write(
  about: Pick<Conversion, "source" | "kind">,
  to: string,
  written: Parts,
  single: boolean,
): Promise<Conversion> {
  const { parts } = written;
  const bytes = single ? await writeModelFile(to, parts[0]) : await writeModelFolder(to, written);
  return { ...about, path: to, tensors: parts.reduce((n, { tensors }) => n + tensors.length, 0), bytes };
}

async function isLora(path: string): Promise<boolean> {
  const info = await stat(path).catch(() => null);
  if (!info?.isFile() || path.endsWith(".json")) return false;
  const file = await openTensorFile(path);
  try {
    return [...file.tensors.keys()].some(isLoraKey);
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
