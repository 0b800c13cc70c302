/** Files of tensors that appear whole or not at all: written beside their place, read back, then renamed into it. */
import { createHash } from "node:crypto";
import { link, mkdir, open, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, extname, join } from "node:path";
import { check, LtxError } from "../errors.js";
import { checkReplaceable, syncFolder } from "../formats/atomic-file.js";
import { freeBytes } from "../formats/disk.js";
import { DTYPE_BITS } from "../formats/dtypes.js";
import { type SafetensorsTensor, writeSafetensors } from "../formats/safetensors.js";
import { openTensorFile } from "../formats/tensor-file.js";
import { withWorkFolder } from "./work-folder.js";

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

/** Longest name of a file on Linux's file systems. */
const MAX_NAME_BYTES = 255;

/** What is at `to`; throws where nothing can be. */
async function target(to: string) {
  check(to.trim() !== "" && Buffer.byteLength(basename(to)) <= MAX_NAME_BYTES, "invalid_argument", () => {
    return to.trim() === ""
      ? "[convert] the result's path is empty: name a file or folder"
      : `[convert] the name ${basename(to)} is longer than ${MAX_NAME_BYTES} bytes: choose a shorter one`;
  });
  const folder = dirname(to);
  const parent = await stat(folder).catch(() => null);
  check(parent?.isDirectory(), "io", () => {
    return `[convert] cannot write ${to}: ${folder} ${parent ? "is not a folder" : "does not exist"}; make that folder first, or choose another`;
  });
  return stat(to).catch(() => null);
}

/** Throws unless `to` is free for one safetensors file, or may be replaced. */
export async function checkFile(to: string, force = false): Promise<void> {
  check(extname(to) === ".safetensors", "invalid_argument", () => {
    return `[convert] only safetensors files are written: name the result *.safetensors, got ${to}`;
  });
  const exists = await target(to);
  check(!exists?.isDirectory(), "file_exists", () => `[convert] ${to} is a folder: choose another name`);
  check(!exists || force, "file_exists", () => `[convert] ${to} exists: choose another name, or force it`);
}

/** Throws unless `to` is free for a folder of files, or is one whose files may be replaced. */
export async function checkFolder(to: string, force = false): Promise<void> {
  const exists = await target(to);
  check(!exists || exists.isDirectory(), "file_exists", () => {
    return `[convert] ${to} is a file, the result has several: name a folder`;
  });
  const inside = exists ? await readdir(to) : [];
  check(inside.length === 0 || force, "file_exists", () => {
    return `[convert] ${to} holds ${inside[0]} already: choose an empty folder, or force it`;
  });
}

const fault = (to: string) => (cause: Error) => {
  if (cause instanceof LtxError) throw cause;
  throw new LtxError("io", `[convert] cannot write ${to}: ${cause.message}`, { cause });
};

/** Room for a header's entry besides its name and shape, generously. */
const ENTRY_BYTES = 128;

/** Throws unless the disk has room for all that is to be written. */
async function checkSpace(to: string, parts: readonly Omit<Part, "name">[]): Promise<void> {
  const text = (metadata: Part["metadata"]) => JSON.stringify(metadata).length;
  const tensorBytes = (tensor: SafetensorsTensor) => sizeOf(tensor) + tensor.name.length + ENTRY_BYTES;
  const needed = parts.reduce(
    (n, { tensors, metadata }) => tensors.reduce((m, tensor) => m + tensorBytes(tensor), n + text(metadata)),
    0,
  );
  const free = await freeBytes(dirname(to)).catch(fault(to));
  check(free === null || needed <= free, "io", () => {
    const size = (bytes: number) => (bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);
    return `[convert] cannot write ${to}: it takes ${size(needed)}, the disk has ${size(free as number)} free`;
  });
}

/** Writes one file. @param force whether it may replace another @returns its bytes */
export async function writeModelFile(to: string, part: Omit<Part, "name">, force = false): Promise<number> {
  await checkReplaceable(to);
  await checkSpace(to, [part]);
  return withWorkFolder(to, async (folder) => {
    const temporary = join(folder, "result");
    await writeChecked(temporary, part);
    const { size } = await stat(temporary);
    await (force ? rename(temporary, to) : placeNew(temporary, to)).catch(fault(to));
    await syncFolder(dirname(to));
    return size;
  });
}

/** Gives a file its name, unless another has taken it since it was found to be free. */
async function placeNew(from: string, to: string): Promise<void> {
  try {
    // Unlike a rename this fails where something is.
    await link(from, to);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    check(code !== "EEXIST", "file_exists", () => `[convert] ${to} was made by another program meanwhile: it is left`);
    // Not every file system has links.
    await (await open(to, "wx")).close();
    await rename(from, to);
  }
}

/** Writes a folder of files; what else is in it stays. @returns their bytes */
export async function writeModelFolder(to: string, { parts, texts = {} }: Parts): Promise<number> {
  const names = [...parts.map((part) => part.name), ...Object.keys(texts)];
  const long = names.find((name) => Buffer.byteLength(basename(name)) > MAX_NAME_BYTES);
  check(long === undefined, "invalid_argument", () => {
    return `[convert] the name ${long} is longer than ${MAX_NAME_BYTES} bytes: choose a shorter one for the result`;
  });
  await checkSpace(to, parts);
  return withWorkFolder(to, async (folder) => {
    const result = join(folder, "result");
    let bytes = 0;
    for (const [i, part] of parts.entries()) {
      // Under a short name, to which the writer adds its own.
      const temporary = join(folder, String(i));
      await writeChecked(temporary, part);
      bytes += (await stat(temporary)).size;
      await mkdir(dirname(join(result, part.name)), { recursive: true }).catch(fault(to));
      await rename(temporary, join(result, part.name)).catch(fault(to));
    }
    for (const [name, text] of Object.entries(texts)) {
      await mkdir(dirname(join(result, name)), { recursive: true }).catch(fault(to));
      await writeFile(join(result, name), text, { flush: true }).catch(fault(to));
    }
    for (const place of new Set(names.map((name) => dirname(join(result, name))))) await syncFolder(place);
    // All is on disk: from here on files only take their names, at once where nothing is in the way.
    const whole = await rename(result, to).then(
      () => true,
      () => false,
    );
    if (!whole) await placeEach(result, to, names);
    await syncFolder(dirname(to));
    return bytes;
  });
}

/** Moves files into a folder that holds others. Weights that they take the place of, under other names, go. */
async function placeEach(from: string, to: string, names: readonly string[]): Promise<void> {
  for (const name of names) {
    const path = join(to, name);
    await mkdir(dirname(path), { recursive: true }).catch(fault(to));
    await rename(join(from, name), path).catch(fault(to));
  }
  for (const folder of new Set(names.map((name) => dirname(name)))) {
    const own = names.filter((name) => dirname(name) === folder).map((name) => basename(name));
    const stems = new Set(own.flatMap((name) => SHARD.exec(name)?.[1] ?? []));
    for (const name of await readdir(join(to, folder))) {
      if (!own.includes(name) && stems.has(SHARD.exec(name)?.[1] ?? "")) await rm(join(to, folder, name));
    }
    await syncFolder(join(to, folder));
  }
}

/** A file of weights, one of several, or their index: the stem of the name is what all of a model's have in common. */
const SHARD = /^(.+?)(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?$/;

/** Writes a file, then reads all of it back: the metadata, the names, types and shapes, and every value. */
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
  const same = (what: string, ok: boolean) =>
    check(ok, "io", () => `[convert] ${what} was read back otherwise than it was written: is the disk failing?`);
  try {
    same(
      "the metadata",
      JSON.stringify(Object.entries(file.metadata).sort()) === JSON.stringify(Object.entries(metadata).sort()),
    );
    same("the list of tensors", file.tensors.size === tensors.length);
    for (const { name, dtype, shape } of tensors) {
      const entry = file.tensors.get(name);
      same(`tensor "${name}"`, entry?.dtype === dtype && entry.shape.join() === shape.join());
      same(`tensor "${name}"`, hashOf(await file.read(name)) === hashes.get(name));
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
