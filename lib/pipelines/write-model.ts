/** Files of tensors that appear whole or not at all: written beside their place, read back, then renamed into it. */
import { createHash } from "node:crypto";
import { mkdir, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, extname, join } from "node:path";
import { check, LtxError } from "../errors.js";
import { syncFolder } from "../formats/atomic-file.js";
import { DTYPE_BITS, fromFloat32, isFloat, type RoundedDtype, type SafetensorsDtype } from "../formats/dtypes.js";
import { isFp8Weight } from "../formats/official/keys.js";
import { type SafetensorsTensor, writeSafetensors } from "../formats/safetensors.js";
import { openTensorFile, type TensorFile } from "../formats/tensor-file.js";

const DTYPES = { f32: "F32", bf16: "BF16", f16: "F16" } as const;
/**
 * What floats may be converted to. `fp8` is that of the official files of the name: float8_e4m3fn for the weights of a
 * transformer's blocks, bf16 for all else.
 */
export type FloatDtype = keyof typeof DTYPES | "fp8";

/** One safetensors file. */
export interface Part {
  /** Its place below the folder that is written. */
  name: string;
  tensors: readonly SafetensorsTensor[];
  metadata: Readonly<Record<string, string>>;
}

/** Several files, and texts beside them. */
export interface Parts {
  parts: readonly Part[];
  texts?: Readonly<Record<string, string>>;
}

/** Bytes that a tensor takes in a file. */
export function sizeOf({ dtype, shape }: Pick<SafetensorsTensor, "dtype" | "shape">): number {
  return (DTYPE_BITS[dtype] / 8) * shape.reduce((n, d) => n * d, 1);
}

/** A file's tensors as they are to be written: under other names, its floats of another type if one is given. */
export function tensorsFrom(
  file: TensorFile,
  dtype: FloatDtype | undefined,
  rename: (name: string) => string = (name) => name,
): SafetensorsTensor[] {
  return [...file.tensors].map(([name, { dtype: own, shape }]) => {
    const type = dtype && isFloat(own) ? typeOf(name, shape, dtype) : own;
    return { name: rename(name), dtype: type, shape, data: () => read(file, name, type) };
  });
}

function typeOf(name: string, shape: readonly number[], dtype: FloatDtype): RoundedDtype {
  if (dtype !== "fp8") return DTYPES[dtype];
  return isFp8Weight(name, shape) ? "F8_E4M3" : "BF16";
}

async function read(file: TensorFile, name: string, dtype: SafetensorsDtype): Promise<Uint8Array> {
  if (file.tensors.get(name)?.dtype === dtype) return file.read(name);
  const bytes = fromFloat32(await file.readF32(name), dtype as RoundedDtype);
  check(bytes !== undefined, "dtype_mismatch", () => {
    const range = dtype === "F16" ? "f16, which ends at 65504" : "float8_e4m3fn, which ends at 448";
    return `[convert] tensor "${name}" has values beyond the range of ${range}: use bf16 or f32`;
  });
  return bytes;
}

/** Throws unless `to` is free for one safetensors file, or may be replaced. */
export async function checkFile(to: string, force = false): Promise<void> {
  check(extname(to) === ".safetensors", "invalid_argument", () => {
    return `[convert] only safetensors files are written: name the result *.safetensors, got ${to}`;
  });
  const exists = await stat(to).catch(() => null);
  check(!exists || force, "file_exists", () => `[convert] ${to} exists: choose another name, or force it`);
  check(!exists?.isDirectory(), "file_exists", () => `[convert] ${to} is a folder: choose another name`);
}

/** Throws unless `to` is free for a folder of files, or is one whose files may be replaced. */
export async function checkFolder(to: string, force = false): Promise<void> {
  const exists = await stat(to).catch(() => null);
  check(!exists || exists.isDirectory(), "file_exists", () => {
    return `[convert] ${to} is a file, the result has several: name a folder`;
  });
  const inside = exists ? await readdir(to) : [];
  check(inside.length === 0 || force, "file_exists", () => {
    return `[convert] ${to} holds ${inside[0]} already: choose an empty folder, or force it`;
  });
}

const fault = (to: string) => (cause: Error) => {
  throw new LtxError("io", `[convert] cannot write ${to}: ${cause.message}`, { cause });
};

/** Writes one file. @returns its bytes */
export async function writeModelFile(to: string, part: Omit<Part, "name">): Promise<number> {
  const temporary = join(dirname(to), `.${basename(to)}.${process.pid}.partial`);
  try {
    await writeChecked(temporary, part);
    const { size } = await stat(temporary);
    await rename(temporary, to)
      .then(() => syncFolder(dirname(to)))
      .catch(fault(to));
    return size;
  } finally {
    await rm(temporary, { force: true });
  }
}

/** Writes a folder of files; what else is in it stays. @returns their bytes */
export async function writeModelFolder(to: string, { parts, texts = {} }: Parts): Promise<number> {
  const temporary = join(dirname(to), `.${basename(to)}.${process.pid}.partial`);
  try {
    await mkdir(temporary).catch(fault(to));
    let bytes = 0;
    for (const part of parts) {
      const path = join(temporary, part.name);
      await mkdir(dirname(path), { recursive: true });
      await writeChecked(path, part);
      bytes += (await stat(path)).size;
    }
    for (const [name, text] of Object.entries(texts)) {
      await mkdir(dirname(join(temporary, name)), { recursive: true });
      await writeFile(join(temporary, name), text, { flush: true }).catch(fault(to));
    }
    // All is on disk: from here on files only take their names.
    for (const name of [...parts.map((part) => part.name), ...Object.keys(texts)]) {
      const path = join(to, name);
      await mkdir(dirname(path), { recursive: true }).catch(fault(to));
      await rename(join(temporary, name), path).catch(fault(to));
      await syncFolder(dirname(path));
    }
    return bytes;
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

/** Writes a file, then reads every tensor back. */
async function writeChecked(path: string, { tensors, metadata }: Omit<Part, "name">): Promise<void> {
  const hashes = new Map<string, string>();
  const hashed = tensors.map((tensor) => ({
    ...tensor,
    data: async () => {
      const bytes = typeof tensor.data === "function" ? await tensor.data() : tensor.data;
      hashes.set(tensor.name, hashOf(bytes));
      return bytes;
    },
  }));
  await writeSafetensors(path, hashed, metadata);
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

const hashOf = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/**
 * Divides tensors among files of at most `maxBytes`, in the order of their names; one that is larger has a file of its
 * own. One file keeps the name `<stem>.safetensors`; several are numbered and have an index, as on the Hugging Face hub.
 */
export function shard(
  folder: string,
  stem: string,
  tensors: readonly SafetensorsTensor[],
  metadata: Part["metadata"],
  maxBytes = Number.POSITIVE_INFINITY,
): Required<Parts> {
  const shards: SafetensorsTensor[][] = [];
  let room = 0;
  for (const tensor of [...tensors].sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const size = sizeOf(tensor);
    if (size > room || shards.length === 0) {
      shards.push([]);
      room = maxBytes;
    }
    shards[shards.length - 1].push(tensor);
    room -= size;
  }
  if (shards.length <= 1)
    return { parts: [{ name: join(folder, `${stem}.safetensors`), tensors, metadata }], texts: {} };
  const number = (n: number) => String(n).padStart(5, "0");
  const names = shards.map((_, i) => `${stem}-${number(i + 1)}-of-${number(shards.length)}.safetensors`);
  const weight_map = Object.fromEntries(shards.flatMap((own, i) => own.map(({ name }) => [name, names[i]])));
  const total_size = tensors.reduce((n, tensor) => n + sizeOf(tensor), 0);
  const index = `${JSON.stringify({ metadata: { total_size }, weight_map }, null, 2)}\n`;
  return {
    parts: shards.map((own, i) => ({ name: join(folder, names[i]), tensors: own, metadata })),
    texts: { [join(folder, `${stem}.safetensors.index.json`)]: index },
  };
}
