/** Folders and names for results, settled before the work that fills them. */

import { mkdir, open, rm, rmdir, stat, unlink } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { LtxError } from "../errors.js";
import { showBytes } from "../tensor/byte-size.js";
import { temporaryName } from "./atomic-file.js";
import { freeBytes } from "./disk.js";
import { exists } from "./paths.js";

/**
 * Checks that files can be written into a folder, which need not be there yet.
 * @param name what the user calls it, for messages: `[sample] --out`
 * @param bytes how much is to be written, roughly
 * @throws LtxError `io` when it can't be made or written to, or has less room than that
 */
export async function checkOutputFolder(folder: string, name: string, bytes = 0): Promise<void> {
  const fault = (problem: string, cause?: unknown) =>
    new LtxError("io", `${name} ${folder} ${problem}; name another folder`, { cause });
  try {
    const there = await nearestFolder(folder);
    const trial = join(there, temporaryName("ltx-native", "tmp"));
    await (await open(trial, "wx")).close();
    await unlink(trial);
    const room = (await freeBytes(there)) ?? Number.POSITIVE_INFINITY;
    if (room < bytes) throw fault(`has ${showBytes(room)} free, the result may take ${showBytes(bytes)}`);
  } catch (cause) {
    if (cause instanceof LtxError) throw cause;
    const { code, message } = cause as NodeJS.ErrnoException;
    const reason = code === "ENOTDIR" || code === "EEXIST" ? "a file is in its place" : message;
    throw fault(`cannot be written to: ${reason}`, cause);
  }
}

/** The folder itself, or the nearest one above it that is there. */
async function nearestFolder(folder: string): Promise<string> {
  const info = await stat(folder).catch((error) => {
    if (error.code !== "ENOENT" || dirname(folder) === folder) throw error;
    return null;
  });
  if (info === null) return nearestFolder(dirname(folder));
  if (!info.isDirectory()) throw Object.assign(new Error(`${folder} is a file`), { code: "ENOTDIR" });
  return folder;
}

/** A name that belongs to one writer alone, of whatever process. */
export interface ReservedName {
  /** The file of that name with an extension. */
  path(extension: string): string;
  /** Gives the name back: takes the file away that holds it, and folders that were made for it. Never fails. */
  release(): Promise<void>;
}

/**
 * Takes the first free one of `name(0)`, `name(1)`, … in a folder, which is made, for files with the given extensions.
 * The first of these files is made at once, with `contents`, and holds the name: two processes never get the same.
 * @throws LtxError `io`
 */
export async function reserveName(
  folder: string,
  name: (index: number) => string,
  extensions: readonly string[],
  contents = "",
): Promise<ReservedName> {
  let made: string | undefined;
  for (let i = 0; ; i++) {
    const path = (extension: string) => join(folder, name(i) + extension);
    const holder = path(extensions[0]);
    const release = async () => {
      // It is called when something failed, which is what there is to tell.
      await rm(holder, { force: true }).catch(() => {});
      if (made !== undefined) await removeEmpty(folder, made);
    };
    try {
      made = (await mkdir(folder, { recursive: true })) ?? made;
      const there = await Promise.all(extensions.map((extension) => exists(path(extension))));
      if (there.some(Boolean)) continue;
      const file = await open(holder, "wx");
      try {
        await file.writeFile(contents).finally(() => file.close());
      } catch (error) {
        await release();
        throw error;
      }
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException;
      if (code === "EEXIST" && (await exists(holder))) continue;
      throw new LtxError("io", `[write] cannot write ${holder}: ${message}`, { cause });
    }
    return { path, release };
  }
}

/** Removes folders from the innermost up to `last`, as far as nothing is in them. */
async function removeEmpty(folder: string, last: string): Promise<void> {
  for (let at = resolve(folder); at.startsWith(resolve(last)); at = dirname(at)) {
    if (
      !(await rmdir(at).then(
        () => true,
        () => false,
      ))
    )
      return;
  }
}
