/**
 * Checkpoints: a folder `step-NNNNNNNN` with `model.safetensors` (what sampling needs), `training.safetensors` (what
 * resuming needs besides) and `manifest.json` (sizes and hashes). The folder is written under another name and renamed
 * when it is complete and on disk, so a checkpoint is whole or not there.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { check, LtxError, stopIfAborted } from "../errors.js";
import { Counter, type Module, Parameter, toCheckpoint } from "../nn/index.js";
import type { Shape, Tensor } from "../tensor/index.js";
import { syncFolder, temporaryName } from "./atomic-file.js";
import { freeBytes } from "./disk.js";
import type { LoadProgressOptions } from "./load-weights.js";
import { makeFolder } from "./paths.js";
import { type SafetensorsTensor, writeSafetensors } from "./safetensors.js";
import { tensorBytes } from "./safetensors-header.js";
import { openTensorFile } from "./tensor-file.js";

export const MODEL_FILE = "model.safetensors";
export const TRAINING_FILE = "training.safetensors";
export const MANIFEST_FILE = "manifest.json";
const FOLDER = /^step-(\d{8,})$/;

export interface CheckpointContents {
  step: number;
  model: readonly SafetensorsTensor[];
  training: readonly SafetensorsTensor[];
  /** Of the model's file. */
  metadata: Record<string, string>;
  /** Of the training's file. */
  trainingMetadata?: Record<string, string>;
}

export interface SaveCheckpointOptions {
  /** Checkpoints that stay, the new one included. */
  keep?: number;
  /** Hears of what went wrong without harm to the new checkpoint. */
  warn?: (message: string) => void;
}

interface Manifest {
  format: 1;
  step: number;
  files: Record<string, { bytes: number; sha256: string }>;
}

/** The values of `tensor` as F32, read when their turn to be written comes; `parameter` gives key order and layout. */
export function entry(name: string, parameter: Parameter, tensor: Tensor = parameter): SafetensorsTensor {
  const data = async () => {
    const values = toCheckpoint(parameter, (await tensor.read()) as Float32Array);
    return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  };
  return { name, dtype: "F32", shape: parameter.checkpointShape, data };
}

/** The whole state of a module under a prefix; `values` may give other tensors for some parameters (averages). */
export function moduleEntries(
  module: Module,
  prefix: string,
  values?: ReadonlyMap<Parameter, Tensor>,
): SafetensorsTensor[] {
  return [...module.namedState(prefix)].map(([name, item]) => {
    if (item instanceof Parameter) return entry(name, item, values?.get(item));
    if (item instanceof Counter) {
      const data = new Uint8Array(BigInt64Array.of(BigInt(item.value)).buffer);
      return { name, dtype: "I64", shape: [], data };
    }
    return { name, dtype: "F32", shape: item.shape, data: () => item.readBytes() };
  });
}

/** One number as a tensor of its own. */
export function scalarEntry(name: string, value: number): SafetensorsTensor {
  return { name, dtype: "F32", shape: [], data: new Uint8Array(new Float32Array([value]).buffer) };
}

/** How often a folder of the same name is moved away when another process keeps putting one there. */
const RENAME_TRIES = 20;

/**
 * Writes a checkpoint below `folder`, then removes all but `keep` of those up to it. On failure what was there stays.
 * @returns the new checkpoint's path
 * @throws LtxError `io`
 */
export async function saveCheckpoint(
  folder: string,
  contents: CheckpointContents,
  { keep = 2, warn = () => {} }: SaveCheckpointOptions = {},
): Promise<string> {
  const name = `step-${String(contents.step).padStart(8, "0")}`;
  const path = join(folder, name);
  const temporary = join(folder, temporaryName(name, "partial"));
  try {
    await makeFolder(temporary);
    await removeAbandoned(folder, name);
    const metadata = { format: "ltx-native", step: String(contents.step), ...contents.metadata };
    await writeSafetensors(join(temporary, MODEL_FILE), contents.model, metadata);
    await writeSafetensors(join(temporary, TRAINING_FILE), contents.training, {
      format: "ltx-native",
      step: metadata.step,
      ...contents.trainingMetadata,
    });
    const manifest: Manifest = { format: 1, step: contents.step, files: {} };
    for (const file of [MODEL_FILE, TRAINING_FILE]) manifest.files[file] = await fingerprint(join(temporary, file));
    await writeSynced(join(temporary, MANIFEST_FILE), `${JSON.stringify(manifest, null, 2)}\n`);
    await syncFolder(temporary);
    await replaceFolder(temporary, path);
    await syncFolder(folder);
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true }).catch(() => {});
    if (cause instanceof LtxError && cause.code !== "io") throw cause;
    const reason = (((cause as Error).cause ?? cause) as Error).message;
    throw new LtxError("io", `[checkpoint] cannot write ${path}: ${reason}; earlier checkpoints are untouched`, {
      cause,
    });
  }
  // A later one can only be damaged, else the run would have continued from there: it must not count.
  const sofar = (await listCheckpoints(folder)).filter(({ step }) => step <= contents.step);
  for (const old of sofar.slice(0, -keep)) {
    await rm(old.path, { recursive: true, force: true }).catch((error: Error) => {
      warn(`the old checkpoint ${old.path} could not be removed: ${error.message}`);
    });
  }
  return path;
}

/** Removes what writers of a checkpoint left behind that were killed. */
async function removeAbandoned(folder: string, name: string): Promise<void> {
  for (const found of await readdir(folder)) {
    const pid = found.startsWith(`.${name}.`)
      ? /^\.(\d+)\.[0-9a-f]+\.partial$/.exec(found.slice(name.length + 1))?.[1]
      : undefined;
    if (pid !== undefined && !isAlive(Number(pid))) await rm(join(folder, found), { recursive: true, force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** Gives a folder its name. What has that name is moved out of the way first, whole, and then removed. */
async function replaceFolder(temporary: string, path: string): Promise<void> {
  for (let left = RENAME_TRIES; ; left--) {
    const aside = join(dirname(path), temporaryName(basename(path), "partial"));
    const moved = await rename(path, aside).then(
      () => true,
      (error: NodeJS.ErrnoException) => {
        if (error.code === "ENOENT") return false;
        throw error;
      },
    );
    try {
      await rename(temporary, path);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (moved) await rename(aside, path).catch(() => rm(aside, { recursive: true, force: true }));
      if (left <= 1 || (code !== "ENOTEMPTY" && code !== "EEXIST")) throw error;
      continue;
    }
    // The new one is there; what is left of the old one is removed when the run is next opened.
    if (moved) await rm(aside, { recursive: true, force: true }).catch(() => {});
    return;
  }
}

/**
 * Checks that a checkpoint of these contents fits on the disk below `folder`, before the work that it is to keep.
 * @throws LtxError `io` when it does not
 */
export async function checkRoom(folder: string, { model, training }: CheckpointContents): Promise<void> {
  const bytes = [...model, ...training].reduce(
    (sum, { shape, dtype }) => sum + (tensorBytes(dtype, shape) ?? Number.POSITIVE_INFINITY),
    0,
  );
  const free = await freeBytesBelow(folder);
  check(free === null || bytes <= free, "io", () => {
    return `[checkpoint] a checkpoint takes about ${sizeText(bytes)}, the disk of ${folder} has ${sizeText(free as number)} free: make room, or choose a folder on another disk`;
  });
}

/** Free bytes on the disk where `folder` is or will be; null where that is not told. */
async function freeBytesBelow(folder: string): Promise<number | null> {
  for (let at = resolve(folder); ; at = dirname(at)) {
    const found = await freeBytes(at).catch(() => undefined);
    if (found !== undefined) return found;
    if (at === dirname(at)) return null;
  }
}

const sizeText = (bytes: number): string => {
  const unit = bytes >= 1e9 ? "GB" : bytes >= 1e6 ? "MB" : "kB";
  return `${(bytes / { GB: 1e9, MB: 1e6, kB: 1e3 }[unit]).toPrecision(3)} ${unit}`;
};

/** Complete checkpoints below `folder`, oldest first. */
export async function listCheckpoints(folder: string): Promise<{ path: string; step: number }[]> {
  const names = await readdir(folder).catch(() => [] as string[]);
  return names
    .map((name) => ({ path: join(folder, name), step: Number(FOLDER.exec(name)?.[1] ?? Number.NaN) }))
    .filter(({ step }) => Number.isFinite(step))
    .sort((a, b) => a.step - b.step);
}

/** @throws LtxError `checkpoint` when a file is missing or differs from what was written. */
export async function verifyCheckpoint(path: string): Promise<void> {
  let manifest: Manifest;
  try {
    manifest = JSON.parse(await readFile(join(path, MANIFEST_FILE), "utf8"));
  } catch (cause) {
    throw new LtxError("checkpoint", `[checkpoint] ${path} has no readable manifest.json: not a complete checkpoint`, {
      cause,
    });
  }
  for (const file of [MODEL_FILE, TRAINING_FILE]) {
    const expected = manifest?.files?.[file];
    check(expected, "checkpoint", () => `[checkpoint] ${join(path, MANIFEST_FILE)} says nothing of ${file}: damaged`);
    const full = join(path, file);
    const info = await stat(full).catch(() => null);
    check(info !== null, "checkpoint", () => `[checkpoint] ${full} is missing`);
    const found = await fingerprint(full);
    check(found.sha256 === expected.sha256, "checkpoint", () => {
      return `[checkpoint] ${full} is damaged: ${found.bytes} bytes with SHA-256 ${found.sha256}, expected ${expected.bytes} with ${expected.sha256}`;
    });
  }
}

/** Tensors by name as f32, of a safetensors file or a state dict that PyTorch saved. `wanted` limits them by name. */
export async function readTensors(
  path: string,
  wanted: (name: string) => boolean = () => true,
  { signal, onProgress = () => {} }: LoadProgressOptions = {},
): Promise<{ metadata: Record<string, string>; tensors: Map<string, { shape: Shape; data: Float32Array }> }> {
  const file = await openTensorFile(path);
  try {
    const tensors = new Map<string, { shape: Shape; data: Float32Array }>();
    const chosen = [...file.tensors].filter(([name]) => wanted(name));
    const total = chosen.reduce((sum, [, { byteLength }]) => sum + byteLength, 0);
    let done = 0;
    for (const [name, { shape, byteLength }] of chosen) {
      stopIfAborted(signal, "[checkpoint] reading was stopped by the caller");
      tensors.set(name, { shape, data: await file.readF32(name) });
      done += byteLength;
      onProgress(done, total);
    }
    return { metadata: { ...file.metadata }, tensors };
  } finally {
    await file.close();
  }
}

/** The entries whose name starts with `prefix`, without it. */
export function withPrefix<T>(tensors: ReadonlyMap<string, T>, prefix: string): Map<string, T> {
  const found = [...tensors].filter(([name]) => name.startsWith(prefix));
  return new Map(found.map(([name, value]) => [name.slice(prefix.length), value]));
}

async function fingerprint(path: string): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) {
    hash.update(chunk);
    bytes += chunk.length;
  }
  return { bytes, sha256: hash.digest("hex") };
}

async function writeSynced(path: string, text: string): Promise<void> {
  const file = await open(path, "w");
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}
