/** Weights as the Hugging Face hub stores them: one file, or several with an index that says which holds what. */
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { check, LtxError } from "../errors.js";
import { isFile } from "./paths.js";
import { openTensorFile, type TensorFile } from "./tensor-file.js";

/** Names of a transformers model's single file, in the order of preference; an index has `.index.json` behind it. */
const WEIGHT_FILES = ["model.safetensors", "pytorch_model.bin"];

/**
 * Opens the weights in `folder`: `model.safetensors`, or shards beside `model.safetensors.index.json`, or the same of
 * `pytorch_model.bin`, or of other names. Of shards only those are opened that hold a tensor that is `wanted`.
 * @throws LtxError `checkpoint` when a file is missing or the index does not fit the shards; `file_format`, `io`
 */
export async function openShards(
  folder: string,
  wanted: (name: string) => boolean = () => true,
  names: readonly string[] = WEIGHT_FILES,
): Promise<TensorFile> {
  for (const name of names) {
    if (await isFile(join(folder, name))) return openTensorFile(join(folder, name));
    const index = join(folder, `${name}.index.json`);
    if (await isFile(index)) return openIndex(index, wanted);
  }
  const [first, ...others] = names;
  throw new LtxError(
    "checkpoint",
    `[weights] ${folder} holds no weights: expected ${first}, or ${first}.index.json with its shards, or the same of ${others.join(" or ")}`,
  );
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
