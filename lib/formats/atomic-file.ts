import { randomBytes } from "node:crypto";
import { type FileHandle, open, rename, stat, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { LtxError } from "../errors.js";
import { isFolder } from "./paths.js";

/**
 * Writes a file so that `path` holds either all of it or what it held before, even if the machine loses power: `write`
 * fills a temporary file in the same folder, which is synced, renamed over `path`, and the folder synced.
 *
 * When anything fails the temporary file is removed and an existing `path` is untouched.
 * @throws LtxError `io` when the file system refuses; an LtxError thrown by `write` passes through
 */
export async function writeFileAtomic(path: string, write: (file: FileHandle) => Promise<void>): Promise<void> {
  await replaceAtomic(path, async (temporary) => {
    const file = await open(temporary, "wx");
    try {
      await write(file);
      await file.sync();
    } finally {
      await file.close();
    }
  });
}

/**
 * A rename would put a file in the place of /dev/null, for every program of the machine.
 * @throws LtxError `io` for a device, pipe or socket
 */
export async function checkReplaceable(path: string): Promise<void> {
  const there = await stat(path).catch(() => null);
  if (there && !there.isFile() && !there.isDirectory()) {
    throw new LtxError("io", `[write] ${path} is a device, pipe or socket, expected the name of a file`);
  }
}

/** The same with a file that `make` writes and syncs under the temporary name that it is given. */
export async function replaceAtomic(path: string, make: (temporary: string) => Promise<void>): Promise<void> {
  const folder = dirname(path);
  const temporary = join(folder, temporaryName(basename(path), "tmp"));
  await checkReplaceable(path);
  try {
    await make(temporary);
    await rename(temporary, path);
    // The file is there and whole. Where its folder can't be synced, a loss of power may bring back what was before.
    await syncFolder(folder).catch(() => {});
  } catch (cause) {
    await unlink(temporary).catch(() => {});
    if (cause instanceof LtxError) throw cause;
    const missing = (cause as NodeJS.ErrnoException).code === "ENOENT" && !(await isFolder(folder));
    const reason = missing ? `there is no folder ${folder}` : (cause as Error).message;
    throw new LtxError("io", `[write] cannot write ${path}: ${reason}`, { cause });
  }
}

/** Bytes of a name that a temporary one begins with: file systems allow 255 in all. */
const NAME_BYTES = 150;

/** A hidden name for what becomes `name` when it is whole; no two writers ever have the same. */
export function temporaryName(name: string, extension: "tmp" | "partial"): string {
  const start = Buffer.from(name).subarray(0, NAME_BYTES).toString().replaceAll("\ufffd", "");
  return `.${start}.${process.pid}.${randomBytes(4).toString("hex")}.${extension}`;
}

/** Makes renames in a folder durable. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Writes all of `bytes` at `position`, or where the file stands; a single write may stop early, as Linux does after 2 GiB.
 */
export async function writeAll(file: FileHandle, bytes: Uint8Array, position?: number): Promise<void> {
  for (let written = 0; written < bytes.length; ) {
    const at = position === undefined ? null : position + written;
    const { bytesWritten } = await file.write(bytes, written, Math.min(bytes.length - written, 1 << 30), at);
    written += bytesWritten;
  }
}
