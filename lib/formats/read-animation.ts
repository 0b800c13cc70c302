/** Videos from files at the size and in the colours that a model takes. */
import { extname } from "node:path";
import { check, LtxError } from "../errors.js";
import type { Animation } from "./images.js";
import { framesOf } from "./media/clip.js";
import { type ReadMediaOptions, readMedia } from "./media/read.js";
import { room } from "./media/room.js";
import { openNpy } from "./npy.js";
import { loadSharp, type Sharp } from "./text.js";

export interface ReadAnimationOptions extends ReadMediaOptions {
  /** Size of the frames: pictures of the same proportions are scaled to it. */
  height: number;
  width: number;
  /** 1 for grey, 3 for RGB. */
  channels: number;
}

/** How far the proportions may be off, as a part of them: less than a pixel in a hundred. */
const PROPORTION = 0.01;

/**
 * Reads all that {@link readMedia} does, and a `.npy` array of bytes (F, H, W) or (F, H, W, C).
 * @throws LtxError as {@link readMedia}; `shape_mismatch` when the proportions differ
 */
export async function readAnimation(path: string, options: ReadAnimationOptions): Promise<Animation> {
  const { height, width, channels, signal } = options;
  const media = extname(path).toLowerCase() === ".npy" ? await readArray(path) : await readMedia(path, options);
  check(Math.abs((media.width * height) / (media.height * width) - 1) <= PROPORTION, "shape_mismatch", () => {
    return `[video] ${path} is ${media.width}x${media.height} pixels, expected the proportions of ${width}x${height}`;
  });
  const size = height * width * channels;
  const data = room(Uint8Array, media.frames * size, `the frames of ${path}`, "give fewer");
  const sharp = await loadSharp();
  for (const [i, frame] of framesOf(media).entries()) {
    check(!signal?.aborted, "aborted", () => `[video] reading ${path} was aborted`);
    data.set(await scaled(sharp, { ...media, data: frame }, options), i * size);
  }
  return { data, frames: media.frames, height, width, channels };
}

async function scaled(
  sharp: Sharp,
  { data, ...own }: Animation,
  { height, width, channels }: ReadAnimationOptions,
): Promise<Uint8Array> {
  const raw = { width: own.width, height: own.height, channels: own.channels as 1 | 3 };
  const image = sharp(data, { raw, limitInputPixels: false }).resize(width, height, { fit: "fill" });
  return (channels === 1 ? image.toColourspace("b-w") : image.toColourspace("srgb")).raw().toBuffer();
}

async function readArray(path: string): Promise<Animation> {
  const { dtype, shape, size, read } = await openNpy(path);
  const [frames, height, width, channels = 1] = shape;
  const fits = dtype === "u1" && size > 0 && (shape.length === 3 || shape.length === 4) && [1, 3].includes(channels);
  if (!fits) {
    throw new LtxError(
      "file_format",
      `[video] ${path} holds ${dtype} [${shape}], expected bytes (u1) of frames (F,H,W) or (F,H,W,1 or 3)`,
    );
  }
  return { data: (await read(0, size)) as Uint8Array, frames, height, width, channels };
}
