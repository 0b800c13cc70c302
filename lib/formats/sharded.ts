/** Weights as the Hugging Face hub stores them: one file, or several with an index that says which holds what. */
import { lstat, readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { check, LtxError } from "../errors.js";
import { isFile } from "./paths.js";
import { openTensorFile, type TensorFile } from "./tensor-file.js";

/** Names of a transformers model's single file, in the order of preference; an index has `.index.json` behind it. */
const WEIGHT_FILES = ["model.safetensors", "pytorch_model.bin"];

/** Whether a file of this name says which shard holds what: `*.index.json`, or `*.index.VARIANT.json`. */
export const isIndexName = (name: string): boolean => /\.index(\.\w+)?\.json$/.test(name);

/**
 * Opens the weights in `folder`: `model.safetensors`, or shards beside `model.safetensors.index.json`, or the same of
 * `pytorch_model.bin`, or of other names. Where only a variant is there, as in `model.fp16.safetensors`, that is taken.
 * Of shards only those are opened that hold a tensor that is `wanted`.
 * @throws LtxError `checkpoint` when a file is missing, there are several variants, or the index does not fit the
 *   shards; `file_format`, `io`
 */
export async function openShards(
  folder: string,
  wanted: (name: string) => boolean = () => true,
  names: readonly string[] = WEIGHT_FILES,
): Promise<TensorFile> {
  const path = join(folder, await findWeights(folder, names));
  return isIndexName(path) ? openIndex(path, wanted) : openTensorFile(path);
}

/** The name in `folder` of the weights or of their index. */
async function findWeights(folder: string, names: readonly string[]): Promise<string> {
  const all = await readdir(folder).catch((cause: NodeJS.ErrnoException) => {
    const what =
      cause.code === "ENOTDIR" ? "is a file, expected the folder of a model" : `cannot be read (${cause.code})`;
    throw new LtxError("checkpoint", `[weights] ${folder} ${what}`, { cause });
  });
  for (const name of names) {
    for (const plain of [name, `${name}.index.json`]) if (await isFile(join(folder, plain))) return plain;
    const variants = all.filter((file) => isVariant(file, name));
    check(variants.length < 2, "checkpoint", () => {
      return `[weights] ${folder} holds several variants of ${name}: ${variants.join(", ")}; leave the one that is meant there, and move the others out`;
    });
    if (variants.length === 1 && (await isFile(join(folder, variants[0])))) return variants[0];
  }
  const [first, ...others] = names;
  const expected = `${first}, or ${first}.index.json with its shards, or the same of ${others.join(" or ")}`;
  throw new LtxError(
    "checkpoint",
    `[weights] ${folder} holds no weights: expected ${expected}; ${await whatElse(folder, all)}`,
  );
}

/**
 * Whether `file` is `name` in a variant, as diffusers and transformers spell them: `model.fp16.safetensors`, and as
 * index `model.safetensors.index.fp16.json` or `model.fp16.safetensors.index.json`.
 */
function isVariant(file: string, name: string): boolean {
  const dot = name.lastIndexOf(".");
  const [stem, extension] = [name.slice(0, dot), name.slice(dot)];
  if (!file.startsWith(`${stem}.`)) return false;
  const rest = file.slice(stem.length).replace(extension, "\0");
  return /^\.\w+\0$|^\.\w+\0\.index\.json$|^\0\.index\.\w+\.json$/.test(rest);
}

/** What a folder without weights has instead, for the message. */
async function whatElse(folder: string, names: readonly string[]): Promise<string> {
  const [first] = names.filter((name) => /-\d+-of-\d+\./.test(name));
  if (first) return `the index of its shards (such as ${first}) is missing`;
  for (const name of names) {
    // The hub's cache links to what it downloads.
    const info = await lstat(join(folder, name)).catch(() => null);
    if (info?.isSymbolicLink() && !(await isFile(join(folder, name))) && /\.(safetensors|bin)$/.test(name)) {
      return `${name} is a link to a file that is not there: download it again`;
    }
  }
  const listed = names.filter((name) => !name.startsWith(".")).slice(0, 5);
  return listed.length > 0 ? `found ${listed.join(", ")}` : "the folder is empty";
}

/** Opens the shards that an index names, which lie beside it; their metadata is that of the first. */
export async function openIndex(index: string, wanted: (name: string) => boolean = () => true): Promise<TensorFile> {
  const folder = dirname(index);
  const shardOf = new Map(Object.entries(await readIndex(index)).filter(([name]) => wanted(name)));
  const shards = new Map<string, TensorFile>();
  const close = async () => {
    for (const shard of shards.values()) await shard.close();
  };
  try {
    for (const shard of new Set(shardOf.values())) {
      const path = join(folder, shard);
      check(await isFile(path), "checkpoint", () => `[weights] ${path} is missing, ${index} names it`);
      shards.set(shard, await openTensorFile(path));
    }
    const holder = (name: string): TensorFile => {
      const file = shards.get(shardOf.get(name) ?? "");
      check(file, "invalid_argument", () => `[weights] ${index} names no tensor "${name}"`);
      return file;
    };
    const tensors = new Map(
      [...shardOf].map(([name, shard]) => {
        const entry = holder(name).tensors.get(name);
        check(
          entry,
          "checkpoint",
          () => `[weights] ${join(folder, shard)} lacks "${name}", which ${index} says is there`,
        );
        return [name, entry];
      }),
    );
    return {
      metadata: [...shards.values()][0]?.metadata ?? {},
      tensors,
      read: (name) => holder(name).read(name),
      readF32: (name) => holder(name).readF32(name),
      locate: (name) => holder(name).locate?.(name),
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Shard by tensor. */
async function readIndex(path: string): Promise<Record<string, string>> {
  let map: unknown;
  try {
    map = JSON.parse(await readFile(path, "utf8"))?.weight_map;
  } catch (cause) {
    throw new LtxError("file_format", `[weights] ${path} cannot be read (${(cause as Error).message})`, { cause });
  }
  // A shard lies beside its index: anything else in its name leads out of the folder.
  const isName = (value: unknown) => typeof value === "string" && /^[^/\\]+$/.test(value) && !/^\.+$/.test(value);
  check(typeof map === "object" && map !== null && Object.values(map).every(isName), "file_format", () => {
    return `[weights] ${path} expects "weight_map", from tensors to the names of files beside it`;
  });
  return map as Record<string, string>;
}
