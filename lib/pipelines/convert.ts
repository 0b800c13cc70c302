/** Turning any checkpoint that can be read into one safetensors file. */
import { createHash } from "node:crypto";
import { rename, rm, stat } from "node:fs/promises";
import { basename, dirname, extname, join } from "node:path";
import { loadConfig } from "../config/deferred.js";
import type { RunConfig } from "../config/index.js";
import { check, LtxError } from "../errors.js";
import { syncFolder } from "../formats/atomic-file.js";
import { fromFloat32, isFloat, type SafetensorsDtype } from "../formats/dtypes.js";
import { writeSafetensors } from "../formats/safetensors.js";
import { openTensorFile, type TensorFile } from "../formats/tensor-file.js";
import { findModelFile } from "./checkpoint-path.js";
import { kindOf } from "./open-checkpoint.js";

export interface ConvertOptions {
  /** Element type of the floats; each tensor's own unless given. Integers and booleans stay what they are. */
  dtype?: "f32" | "bf16" | "f16";
  /** Configuration or YAML file to store in the file, in place of the checkpoint's own if it has one. */
  config?: RunConfig | string;
  /** Replace an existing file. */
  force?: boolean;
}

export interface Conversion {
  /** The file that was read. */
  source: string;
  path: string;
  /** What the tensors are, where their names tell. */
  kind?: "vae" | "flow";
  tensors: number;
  /** Of the file that was written. */
  bytes: number;
}

const DTYPES = { f32: "F32", bf16: "BF16", f16: "F16" } as const;

/**
 * Writes the model at `from` (a `.pt` file of either format, a safetensors file, a checkpoint's or run's folder) to the
 * safetensors file `to`, under the reference's keys: `module.` taken away, optimizer states left out. The file is read
 * back and compared before it takes its name; on failure nothing is left behind and an existing file is untouched.
 * @throws LtxError `file_exists`, `invalid_argument`, `config`, `checkpoint`, `file_format`, `dtype_mismatch`, `io`
 */
export async function convert(from: string, to: string, options: ConvertOptions = {}): Promise<Conversion> {
  check(extname(to) === ".safetensors", "invalid_argument", () => {
    return `[convert] only safetensors files are written: name the result *.safetensors, got ${to}`;
  });
  const exists = await stat(to).catch(() => null);
  check(!exists || options.force, "file_exists", () => `[convert] ${to} exists: choose another name, or force it`);
  check(!exists?.isDirectory(), "file_exists", () => `[convert] ${to} is a folder: choose another name`);
  const source = await findModelFile(from, "flow");
  const file = await openTensorFile(source);
  const temporary = join(dirname(to), `.${basename(to)}.${process.pid}.partial`);
  try {
    const kind = kindOf(file.tensors.keys());
    const metadata = await describe(file, source, kind, options.config);
    const hashes = new Map<string, string>();
    const tensors = [...file.tensors].map(([name, { dtype: own, shape }]) => {
      const dtype = options.dtype && isFloat(own) ? DTYPES[options.dtype] : own;
      const data = async () => {
        const bytes = await read(file, name, dtype);
        hashes.set(name, hashOf(bytes));
        return bytes;
      };
      return { name, dtype, shape, data };
    });
    await writeSafetensors(temporary, tensors, metadata);
    await compare(temporary, hashes);
    const { size } = await stat(temporary);
    await rename(temporary, to)
      .then(() => syncFolder(dirname(to)))
      .catch((cause) => {
        throw new LtxError("io", `[convert] cannot write ${to}: ${cause.message}`, { cause });
      });
    return { source, path: to, ...(kind ? { kind } : {}), tensors: tensors.length, bytes: size };
  } finally {
    await rm(temporary, { force: true });
    await file.close();
  }
}

/** What the new file says of itself. */
async function describe(
  file: TensorFile,
  source: string,
  kind: "vae" | "flow" | undefined,
  given: RunConfig | string | undefined,
): Promise<Record<string, string>> {
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

async function read(file: TensorFile, name: string, dtype: SafetensorsDtype): Promise<Uint8Array> {
  if (file.tensors.get(name)?.dtype === dtype) return file.read(name);
  const values = await file.readF32(name);
  const bytes = fromFloat32(values, dtype as (typeof DTYPES)[keyof typeof DTYPES]);
  check(bytes !== undefined, "dtype_mismatch", () => {
    return `[convert] tensor "${name}" has values beyond the range of f16, which ends at 65504: use bf16 or f32`;
  });
  return bytes;
}

const hashOf = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** Reads every tensor back. */
async function compare(path: string, hashes: ReadonlyMap<string, string>): Promise<void> {
  const file = await openTensorFile(path);
  try {
    for (const [name, hash] of hashes) {
      check(hashOf(await file.read(name)) === hash, "io", () => {
        return `[convert] tensor "${name}" was read back with other bytes than were written: is the disk failing?`;
      });
    }
  } finally {
    await file.close();
  }
}
