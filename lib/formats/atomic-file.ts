import { randomBytes } from "node:crypto";
import { type FileHandle, open, rename, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { LtxError } from "../errors.js";

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

/** The same with a file that `make` writes and syncs under the temporary name that it is given. */
export async function replaceAtomic(path: string, make: (temporary: string) => Promise<void>): Promise<void> {
  const folder = dirname(path);
  const temporary = join(folder, `.${basename(path)}.${process.pid}.${randomBytes(4).toString("hex")}.tmp`);
  try {
    await make(temporary);
    await rename(temporary, path);
    await syncFolder(folder);
  } catch (cause) {
    await unlink(temporary).catch(() => {});
    if (cause instanceof LtxError) throw cause;
    throw new LtxError("io", `[write] cannot write ${path}: ${(cause as Error).message}`, { cause });
  }
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
