/** What there is at a path. */
import type { Stats } from "node:fs";
import { mkdir, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { LtxError } from "../errors.js";

const about = (path: string, fits: (info: Stats) => boolean): Promise<boolean> => stat(path).then(fits, () => false);

export const exists = (path: string): Promise<boolean> => about(path, () => true);
export const isFile = (path: string): Promise<boolean> => about(path, (info) => info.isFile());
export const isFolder = (path: string): Promise<boolean> => about(path, (info) => info.isDirectory());

/**
 * Tells a file from another one, or from itself after a change, without reading it: its path, size and time of change.
 * @throws LtxError `io` when it is not there
 */
export async function fileIdentity(path: string): Promise<string> {
  const info = await stat(path, { bigint: true }).catch((cause) => {
    throw new LtxError("io", `[data] cannot open ${path}: ${cause.message}`, { cause });
  });
  return `${resolve(path)} ${info.size} ${info.mtimeNs}`;
}

/**
 * Makes a folder and those above it that are missing. Unlike the recursive mkdir, which speaks of missing folders on a
 * read-only file system, it fails with what the file system says.
 */
export async function makeFolder(path: string): Promise<void> {
  const missing: string[] = [];
  for (let at = resolve(path); !(await exists(at)); at = dirname(at)) missing.unshift(at);
  for (const folder of missing) {
    await mkdir(folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error; // another process was faster
    });
  }
}
