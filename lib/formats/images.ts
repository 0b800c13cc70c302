/** Frames as files: GIF, WebP and PNG, through sharp. */

import { extname } from "node:path";
import { check } from "../errors.js";
import { writeAll, writeFileAtomic } from "./atomic-file.js";
import { gifWithComment, webpWithPlainExif, xmpWithDescription } from "./comment.js";
import { room } from "./media/room.js";
import { loadSharp, type Sharp } from "./text.js";
import { Turns } from "./turns.js";

/** Pixels of a still image: uint8 (height, width, channels), grey or RGB. */
export interface Picture {
  readonly data: Uint8Array;
  readonly height: number;
  readonly width: number;
  readonly channels: number;
}

/** Pixels of a video: uint8 (frames, height, width, channels), grey or RGB. A data set's `Clip` becomes one by `data`. */
export interface Animation extends Picture {
  readonly frames: number;
}

export interface AnimationOptions {
  /** Frames per second, up to 50 for GIF (players slow down what is faster) and 1000 for WebP; default 10. */
  fps?: number;
  /** Whole factor by which each pixel is enlarged to a square; default 1. */
  scale?: number;
  /** WebP only: 1 to 100, where 100 is lossless; default 90. GIF is exact up to 256 colours a frame. */
  quality?: number;
  /**
   * A text kept in the file: GIF's comment, the image description of the others in EXIF, beyond 65,000 bytes in XMP. ASCII
   * is read alike everywhere.
   */
  comment?: string;
}

/** The lowest and the highest frame rate of each format: a frame is shown for 65.535 seconds at most. */
export const FRAME_RATES: Readonly<Record<string, readonly [least: number, most: number]>> = {
  ".gif": [0.02, 50],
  ".webp": [0.02, 1000],
};
const MAX_SIDE: Record<string, number> = { ".gif": 65535, ".webp": 16383 };

/**
 * Writes an endlessly looping animation, GIF or WebP by the extension of `path`. The file appears whole or not at all.
 * WebP stores equal frames that follow one another as one, shown longer; GIF keeps them apart.
 * @throws LtxError `invalid_argument` or `shape_mismatch` for wrong arguments, `io` when the file cannot be written
 */
export async function saveAnimation(path: string, video: Animation, options: AnimationOptions = {}): Promise<void> {
  const { fps = 10, scale = 1, quality = 90 } = options;
  const comment = options.comment || undefined;
  const type = extname(path).toLowerCase();
  check(
    type in FRAME_RATES,
    "invalid_argument",
    () => `[save] cannot tell the format of ${path}; an animation needs the extension .gif or .webp`,
  );
  const [least, most] = FRAME_RATES[type];
  check(
    fps >= least && fps <= most,
    "invalid_argument",
    () => `[save] fps must be from ${least} to ${most} for ${type}, got ${fps}`,
  );
  check(
    Number.isInteger(quality) && quality >= 1 && quality <= 100,
    "invalid_argument",
    () => `[save] quality must be a whole number from 1 to 100, got ${quality}`,
  );
  checkPixels(video, video.frames);
  check(
    Math.max(video.height, video.width) * scale <= MAX_SIDE[type],
    "invalid_argument",
    () =>
      `[save] ${video.width}x${video.height} pixels at scale ${scale} are too many for ${type}, ` +
      `whose sides end at ${MAX_SIDE[type]}`,
  );
  const { data, height, width, channels, frames } = await enlarge(video, scale);

  const sharp = await loadSharp();
  const raw = { width, height: height * frames, channels: channels as 1 | 3, pageHeight: height };
  const image = describe(sharp(data, { raw, limitInputPixels: false }), type === ".gif" ? undefined : comment);
  const delay = frameDelays(frames, fps, type === ".gif" ? 10 : 1);
  const encoded =
    type === ".gif"
      ? // A palette of its own for every frame that needs one: grey videos come back exactly as they were.
        image.gif({
          delay,
          loop: 0,
          keepDuplicateFrames: true,
          interPaletteMaxError: 0,
          dither: channels === 1 ? 0 : 1,
        })
      : image.webp({ delay, loop: 0, quality, lossless: quality === 100 });
  const bytes = await encoded.toBuffer();
  if (comment === undefined) return save(path, bytes);
  await save(path, type === ".gif" ? gifWithComment(bytes, comment) : webpWithPlainExif(bytes));
}

/**
 * Writes a PNG file, which appears whole or not at all.
 * @throws LtxError `invalid_argument` or `shape_mismatch` for wrong arguments, `io` when the file cannot be written
 */
export async function savePng(
  path: string,
  picture: Picture,
  { scale = 1, comment }: Pick<AnimationOptions, "scale" | "comment"> = {},
): Promise<void> {
  check(
    extname(path).toLowerCase() === ".png",
    "invalid_argument",
    () => `[save] a still image is written as PNG; give ${path} the extension .png`,
  );
  checkPixels(picture, 1);
  const { data, height, width, channels } = await enlarge({ ...picture, frames: 1 }, scale);
  const sharp = await loadSharp();
  const raw = { width, height, channels: channels as 1 | 3 };
  const image = describe(sharp(data, { raw, limitInputPixels: false }), comment);
  await save(path, await image.png().toBuffer());
}

/** EXIF beyond this is left out of the file without a word. */
const MAX_EXIF = 65000;

function describe(image: ReturnType<Sharp>, comment: string | undefined): ReturnType<Sharp> {
  if (!comment) return image;
  if (Buffer.byteLength(comment) <= MAX_EXIF) return image.withExif({ IFD0: { ImageDescription: comment } });
  return image.withXmp(xmpWithDescription(comment));
}

/** Writes encoded bytes atomically. */
export async function save(path: string, bytes: Uint8Array): Promise<void> {
  await writeFileAtomic(path, (file) => writeAll(file, bytes));
}

/**
 * Every pixel as a square of `scale` by `scale` pixels.
 * @throws LtxError `invalid_argument` when `scale` is no positive whole number
 */
export async function enlarge(video: Animation, scale: number): Promise<Animation> {
  check(
    Number.isInteger(scale) && scale >= 1,
    "invalid_argument",
    () => `[save] scale must be a positive whole number, got ${scale}`,
  );
  if (scale === 1) return video;
  const { data, frames, height, width, channels } = video;
  const rowBytes = width * scale * channels;
  const out = room(
    Uint8Array,
    frames * height * scale * rowBytes,
    `the picture at scale ${scale}`,
    "give a smaller one",
  );
  const turns = new Turns("[save] enlarging frames");
  for (let row = 0; row < frames * height; row++) {
    const start = row * scale * rowBytes;
    for (let x = 0; x < width * scale; x++) {
      const from = (row * width + Math.floor(x / scale)) * channels;
      for (let c = 0; c < channels; c++) out[start + x * channels + c] = data[from + c];
    }
    for (let copy = 1; copy < scale; copy++) out.copyWithin(start + copy * rowBytes, start, start + rowBytes);
    if (turns.due) await turns.next();
  }
  return { data: out, frames, height: height * scale, width: width * scale, channels };
}

/** @throws LtxError unless the sizes are positive, the channels 1 or 3, and the bytes as many as they say */
export function checkPixels({ data, height, width, channels }: Picture, frames: number): void {
  for (const [name, value] of Object.entries({ frames, height, width })) {
    check(
      Number.isSafeInteger(value) && value >= 1,
      "invalid_argument",
      () => `[save] ${name} must be a positive whole number, got ${value}`,
    );
  }
  check(
    channels === 1 || channels === 3,
    "invalid_argument",
    () => `[save] channels must be 1 (grey) or 3 (RGB), got ${channels}`,
  );
  const expected = frames * height * width * channels;
  check(
    data.length === expected,
    "shape_mismatch",
    () => `[save] [${[frames, height, width, channels]}] pixels need ${expected} bytes, got ${data.length}`,
  );
}

/** Milliseconds that each frame stays, whole multiples of `unit`, rounded so that no error builds up over the video. */
function frameDelays(frames: number, fps: number, unit: number): number[] {
  const end = (frame: number) => Math.round((frame * 1000) / fps / unit) * unit;
  return Array.from({ length: frames }, (_, frame) => end(frame + 1) - end(frame));
}
