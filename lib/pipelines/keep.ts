/** A second way out for videos that took long to make. */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, extname, join } from "node:path";
import { LtxError } from "../errors.js";
import { exists } from "../formats/paths.js";
import type { SaveOptions, Video } from "./video.js";

/**
 * Saves a finished video. Where its file can't be written, the frames are kept in another format or folder: as WebP, else
 * as PNGs, beside it, else in the system's folder for temporary files.
 * @throws LtxError of the failure, saying where the frames are
 */
export async function saveOrKeep(video: Video, path: string, options: SaveOptions = {}): Promise<void> {
  try {
    await video.save(path, options);
  } catch (cause) {
    const { code = "io", message } = cause as LtxError;
    if (code === "aborted") throw cause;
    const kept = await keep(video, path, options);
    const where = kept === null ? "; its frames could not be kept anywhere else either" : `; its frames are in ${kept}`;
    throw new LtxError(cause instanceof LtxError ? code : "io", message + where, { cause });
  }
}

async function keep(video: Video, path: string, options: SaveOptions): Promise<string | null> {
  const type = extname(path).toLowerCase();
  const name = basename(path, extname(path));
  const still = type === ".png" || video.frames === 1;
  for (const beside of [true, false]) {
    const folder = beside ? dirname(path) : await mkdtemp(join(tmpdir(), "ltx-native-")).catch(() => null);
    if (folder === null) continue;
    // A file that could not be written there as WebP can't be now.
    const asWebp = !still && !(beside && type === ".webp");
    const kept =
      (asWebp && (await saveNew(video, join(folder, `${name}.webp`), options))) ||
      (await saveFrames(still ? video.range(0, 1) : video, join(folder, `${name}_frames`), options));
    if (kept) return kept;
    if (!beside) await rm(folder, { recursive: true, force: true });
  }
  return null;
}

async function saveNew(video: Video, path: string, options: SaveOptions): Promise<string | null> {
  if (await exists(path)) return null;
  return video.save(path, options).then(
    () => path,
    () => null,
  );
}

/** Every frame as a PNG in a new folder, all of them or none. */
async function saveFrames(video: Video, folder: string, options: SaveOptions): Promise<string | null> {
  const digits = String(video.frames - 1).length;
  try {
    await mkdir(folder);
  } catch {
    return null;
  }
  try {
    for (let i = 0; i < video.frames; i++) {
      const path = join(folder, `frame_${String(i).padStart(digits, "0")}.png`);
      await video.range(i, i + 1).save(path, options);
    }
    return folder;
  } catch {
    await rm(folder, { recursive: true, force: true });
    return null;
  }
}
