/** What there is at a path. */
import type { Stats } from "node:fs";
import { stat } from "node:fs/promises";
import { resolve } from "node:path";
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
