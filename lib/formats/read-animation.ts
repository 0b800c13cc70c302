/** Videos from files: GIF, WebP and PNG, through sharp. */
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { LtxError } from "../errors.js";
import type { Animation } from "./images.js";
import { loadSharp } from "./text.js";

export interface ReadAnimationOptions {
  /** Size of the frames: pictures of the same proportions are scaled to it. */
  height: number;
  width: number;
  /** 1 for grey, 3 for RGB. */
  channels: number;
}

/** How far the proportions may be off, as a part of them: less than a pixel in a hundred. */
const PROPORTION = 0.01;

/**
 * Reads an animated GIF or WebP, a still image (one frame), or a folder of images (a frame each, in the order of the
 * numbers in their names). Transparent pixels are black.
 * @throws LtxError `io` when nothing readable is there, `shape_mismatch` when the proportions differ
 */
export async function readAnimation(path: string, options: ReadAnimationOptions): Promise<Animation> {
  const files = await framesAt(path);
  const parts: Uint8Array[] = [];
  for (const file of files) parts.push(await readImage(file, options));
  const data = new Uint8Array(Buffer.concat(parts));
  const { height, width, channels } = options;
  return { data, frames: data.length / (height * width * channels), height, width, channels };
}

async function framesAt(path: string): Promise<string[]> {
  const info = await stat(path).catch((cause) => {
    throw new LtxError("io", `[video] cannot read ${path}: ${cause.message}`, { cause });
  });
  if (!info.isDirectory()) return [path];
  const names = (await readdir(path)).filter((name) => /\.(png|jpe?g|webp|gif)$/i.test(name));
  if (names.length === 0) throw new LtxError("io", `[video] ${path} holds no images (png, jpg, webp, gif)`);
  names.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  return names.map((name) => join(path, name));
}

/** All frames of one file, behind one another. */
async function readImage(path: string, { height, width, channels }: ReadAnimationOptions): Promise<Uint8Array> {
  const sharp = await loadSharp();
  const open = () => sharp(path, { animated: true });
  try {
    const meta = await open().metadata();
    const [tall, wide] = [meta.pageHeight ?? meta.height, meta.width];
    if (Math.abs((wide * height) / (tall * width) - 1) > PROPORTION) {
      throw new LtxError(
        "shape_mismatch",
        `[video] ${path} is ${wide}x${tall} pixels, expected the proportions of ${width}x${height}`,
      );
    }
    const image = open().flatten({ background: "#000000" }).resize(width, height, { fit: "fill" });
    return await (channels === 1 ? image.toColourspace("b-w") : image.toColourspace("srgb")).raw().toBuffer();
  } catch (cause) {
    if (cause instanceof LtxError) throw cause;
    throw new LtxError("io", `[video] cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
}
