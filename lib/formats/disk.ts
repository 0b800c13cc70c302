import { statfs } from "node:fs/promises";

/**
 * Free bytes on the disk of a folder that is there; null where that is not told: file systems that know no sizes (some
 * network mounts) say 0 of everything.
 * @throws what the system says of a folder that can't be asked
 */
export async function freeBytes(folder: string): Promise<number | null> {
  const { bavail, bsize, blocks } = await statfs(folder);
  return blocks > 0 ? bavail * bsize : null;
}
