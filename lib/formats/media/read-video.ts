/** Images and videos from files, as bytes in RGB: images by sharp, videos by ffmpeg. */
import { readdir, stat } from "node:fs/promises";
import { extname, join } from "node:path";
import { check, LtxError } from "../../errors.js";
import type { Animation } from "../images.js";
import { loadSharp } from "../text.js";
import { ffmpeg } from "./ffmpeg.js";
import { PpmFrames } from "./ppm.js";

export const IMAGE_TYPES = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".tif", ".tiff"];
export const VIDEO_TYPES = [".mp4", ".mov", ".webm", ".mkv", ".m4v", ".avi"];

export interface ReadMediaOptions {
  /** Frames after these are not read. */
  maxFrames?: number;
  signal?: AbortSignal;
}

/**
 * Reads an image (one frame; an animated GIF or WebP all of them), a video, or a folder of images of one size (a frame
 * each, in the order of the numbers in their names). Photographs are turned upright, transparent pixels are black.
 * @throws LtxError `io` when it cannot be read, `file_format`, `unavailable` for a video without ffmpeg, `aborted`
 */
export async function readMedia(path: string, options: ReadMediaOptions = {}): Promise<Animation> {
  const info = await stat(path).catch((cause) => {
    throw new LtxError("io", `[media] cannot read ${path}: ${cause.message}`, { cause });
  });
  if (info.isDirectory()) return readFolder(path, options);
  const type = extname(path).toLowerCase();
  if (IMAGE_TYPES.includes(type)) return readImage(path, options);
  check(VIDEO_TYPES.includes(type), "invalid_argument", () => {
    return `[media] cannot tell the kind of ${path}: images are ${IMAGE_TYPES.join(" ")}, videos ${VIDEO_TYPES.join(" ")}`;
  });
  return readVideo(path, options);
}

async function readImage(path: string, { maxFrames = Number.POSITIVE_INFINITY }: ReadMediaOptions): Promise<Animation> {
  const sharp = await loadSharp();
  try {
    const pages = (await sharp(path).metadata()).pages ?? 1;
    const frames = Math.max(1, Math.min(pages, maxFrames));
    const image = frames > 1 ? sharp(path, { pages: frames }) : sharp(path).autoOrient();
    const { data, info } = await image
      .flatten({ background: "#000000" })
      .toColourspace("srgb")
      .raw({ depth: "uchar" })
      .toBuffer({ resolveWithObject: true });
    return { data: new Uint8Array(data), frames, height: info.height / frames, width: info.width, channels: 3 };
  } catch (cause) {
    throw new LtxError("file_format", `[media] cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
}

async function readFolder(path: string, { maxFrames, signal }: ReadMediaOptions): Promise<Animation> {
  const names = (await readdir(path)).filter((name) => IMAGE_TYPES.includes(extname(name).toLowerCase()));
  check(names.length > 0, "io", () => `[media] ${path} holds no images (${IMAGE_TYPES.join(" ")})`);
  names.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const images: Animation[] = [];
  for (const name of names.slice(0, maxFrames)) {
    if (signal?.aborted) throw new LtxError("aborted", `[media] reading ${path} was aborted`);
    const image = await readImage(join(path, name), { maxFrames: 1 });
    const [{ height, width }] = images.length > 0 ? images : [image];
    check(image.height === height && image.width === width, "shape_mismatch", () => {
      const [found, first] = [`${image.width}x${image.height}`, `${width}x${height}`];
      return `[media] the images in ${path} are a video's frames and must be of one size: ${names[0]} is ${first}, ${name} ${found}`;
    });
    images.push(image);
  }
  const data = new Uint8Array(Buffer.concat(images.map((image) => image.data)));
  return { ...images[0], data, frames: images.length };
}

/** Decodes a video's frames, upright and at a steady rate. */
async function readVideo(path: string, { maxFrames, signal }: ReadMediaOptions): Promise<Animation> {
  const frames = new PpmFrames();
  // "file:" keeps names with colons or a leading hyphen from being read as something else.
  const limit = maxFrames === undefined ? [] : ["-frames:v", String(maxFrames)];
  const args = ["-i", `file:${path}`, "-map", "0:v:0", ...limit, "-f", "image2pipe", "-c:v", "ppm", "pipe:1"];
  await ffmpeg(["-protocol_whitelist", "file,pipe", ...args], {
    what: `reading ${path}`,
    instead: "give a GIF, a WebP or a folder of images",
    onOutput: (chunk) => frames.push(chunk),
    signal,
  });
  check(frames.done.length > 0, "file_format", () => `[media] ${path} holds no frame of video`);
  return frames.animation();
}
