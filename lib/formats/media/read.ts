/** Images, videos and folders of images from files, as bytes in RGB: images by sharp, videos by ffmpeg. */
import { readdir, stat } from "node:fs/promises";
import { extname, join } from "node:path";
import { check, LtxError } from "../../errors.js";
import type { Animation } from "../images.js";
import { checkReadable, IMAGE_TYPES, kindOf, READABLE } from "./kind.js";
import { type OnNotice, warn } from "./notice.js";
import { readImage } from "./read-image.js";
import { readVideo } from "./read-video.js";
import { room } from "./room.js";

export interface ReadMediaOptions {
  /** Frames after these are not read. */
  maxFrames?: number;
  signal?: AbortSignal;
  /** Hears what its reader should know: damage, uneven timing, streams and files left out. Node's warnings unless given. */
  onNotice?: OnNotice;
}

/**
 * Reads an image (one frame; an animated GIF or WebP all of them), a video, or a folder of images of one size (a frame
 * each, in the order of the numbers in their names; hidden files are skipped). What a file is, its content says, not its
 * name. Photographs and videos are turned upright, transparent pixels are black, colours are sRGB in 8 bits. Of a video
 * every frame comes once, whatever its time; pixels that are not square become so.
 * @throws LtxError `io` when it cannot be read, `file_format` when it is something else or damaged, `invalid_argument`,
 * `shape_mismatch` for images of several sizes, `out_of_memory`, `unavailable` for a video without ffmpeg, `aborted`
 */
export async function readMedia(path: string, options: ReadMediaOptions = {}): Promise<Animation> {
  const { maxFrames, signal } = options;
  check(maxFrames === undefined || (Number.isSafeInteger(maxFrames) && maxFrames >= 1), "invalid_argument", () => {
    return `[media] maxFrames must be a whole number from 1, got ${maxFrames}`;
  });
  check(!signal?.aborted, "aborted", () => `[media] reading ${path} was aborted`);
  const info = await stat(path).catch((cause) => {
    throw new LtxError("io", `[media] cannot read ${path}: ${cause.message}`, { cause });
  });
  if (info.isDirectory()) return readFolder(path, options);
  const kind = await kindOf(path);
  checkReadable(path, kind);
  return kind.type === "image" ? readImage(path, kind, options) : readVideo(path, kind, options);
}

const collator = new Intl.Collator("en", { numeric: true });
const inOrder = (a: string, b: string): number => collator.compare(a, b) || (a < b ? -1 : 1);

async function readFolder(path: string, options: ReadMediaOptions): Promise<Animation> {
  const { maxFrames, signal, onNotice = warn } = options;
  const images: string[] = [];
  const others: string[] = [];
  const found = await readdir(path, { withFileTypes: true }).catch((cause) => {
    throw new LtxError("io", `[media] cannot read ${path}: ${cause.message}`, { cause });
  });
  for (const entry of found) {
    // .DS_Store, ._frame.png and the like are the system's, not frames.
    if (entry.name.startsWith(".") || entry.name === "Thumbs.db" || entry.name === "desktop.ini") continue;
    const isImage = !entry.isDirectory() && IMAGE_TYPES.includes(extname(entry.name).toLowerCase());
    (isImage ? images : others).push(entry.name);
  }
  check(images.length > 0, "io", () => {
    const instead = others.length > 0 ? `, only ${listed(others)}` : "";
    return `[media] the folder ${path} holds no images (${IMAGE_TYPES.join(" ")})${instead}; ${READABLE}`;
  });
  if (others.length > 0) onNotice(`of the folder ${path} only images are frames: ${listed(others)} left out`);
  const names = images.sort(inOrder).slice(0, maxFrames);
  let all: { data: Uint8Array; height: number; width: number } | undefined;
  for (const [i, name] of names.entries()) {
    check(!signal?.aborted, "aborted", () => `[media] reading ${path} was aborted`);
    const file = join(path, name);
    const kind = await kindOf(file);
    checkReadable(file, kind);
    check(kind.type === "image", "file_format", () => `[media] ${file} is ${kind.name}, expected an image`);
    const { data, height, width } = await readImage(file, kind, { maxFrames: 1, onNotice });
    const size = data.length;
    const what = `the ${names.length} images of ${path}`;
    all ??= { data: room(Uint8Array, names.length * size, what, "give fewer or smaller ones"), height, width };
    const first = `${all.width}x${all.height}`;
    check(height === all.height && width === all.width, "shape_mismatch", () => {
      return (
        `[media] the images in ${path} are a video's frames and must be of one size: ${names[0]} is ${first}, ` +
        `${name} ${width}x${height}`
      );
    });
    all.data.set(data, i * size);
  }
  return { ...all!, frames: names.length, channels: 3 };
}

/** A few names, and how many more there are. */
function listed(names: readonly string[]): string {
  const shown = [...names].sort(inOrder).slice(0, 3).join(", ");
  return names.length > 3 ? `${shown} and ${names.length - 3} more` : shown;
}
