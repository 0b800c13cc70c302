/** Videos from files: GIF, WebP and PNG through sharp, and NumPy arrays. */
import { readdir, stat } from "node:fs/promises";
import { extname, join } from "node:path";
import { check, LtxError } from "../errors.js";
import type { Animation } from "./images.js";
import { openNpy } from "./npy.js";
import { loadSharp, type Sharp } from "./text.js";

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
 * Reads an animated GIF or WebP, a still image (one frame), a folder of images (a frame each, in the order of the numbers
 * in their names), or a `.npy` array of bytes (F, H, W) or (F, H, W, C). Transparent pixels are black.
 * @throws LtxError `io` when nothing readable is there, `file_format`, `shape_mismatch` when the proportions differ
 */
export async function readAnimation(path: string, options: ReadAnimationOptions): Promise<Animation> {
  const parts: Uint8Array[] = [];
  for (const open of await imagesAt(path)) parts.push(await readImage(path, open, options));
  const data = new Uint8Array(Buffer.concat(parts));
  const { height, width, channels } = options;
  return { data, frames: data.length / (height * width * channels), height, width, channels };
}

/** An image of one frame or several; a pipeline of sharp's serves once. */
type Open = () => ReturnType<Sharp>;

async function imagesAt(path: string): Promise<Open[]> {
  const sharp = await loadSharp();
  const info = await stat(path).catch((cause) => {
    throw new LtxError("io", `[video] cannot read ${path}: ${cause.message}`, { cause });
  });
  if (!info.isDirectory()) {
    return extname(path).toLowerCase() === ".npy" ? openArray(sharp, path) : [() => sharp(path, { animated: true })];
  }
  const names = (await readdir(path)).filter((name) => /\.(png|jpe?g|webp|gif)$/i.test(name));
  if (names.length === 0) throw new LtxError("io", `[video] ${path} holds no images (png, jpg, webp, gif)`);
  names.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  return names.map((name) => () => sharp(join(path, name), { animated: true }));
}

async function openArray(sharp: Sharp, path: string): Promise<Open[]> {
  const { dtype, shape, size, read } = await openNpy(path);
  const [frames, height, width, channels = 1] = shape;
  const fits = dtype === "u1" && size > 0 && (shape.length === 3 || shape.length === 4) && [1, 3].includes(channels);
  check(fits, "file_format", () => {
    return `[video] ${path} holds ${dtype} [${shape}], expected bytes (u1) of frames (F,H,W) or (F,H,W,1 or 3)`;
  });
  const data = (await read(0, size)) as Uint8Array;
  const area = size / frames;
  const raw = { width, height, channels: channels as 1 | 3 };
  return Array.from({ length: frames }, (_, f) => () => sharp(data.subarray(f * area, (f + 1) * area), { raw }));
}

/** All frames of one image, behind one another. */
async function readImage(
  path: string,
  open: Open,
  { height, width, channels }: ReadAnimationOptions,
): Promise<Uint8Array> {
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
