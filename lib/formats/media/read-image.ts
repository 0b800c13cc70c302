/** Images through sharp, as bytes in RGB. */
import { readFile, stat } from "node:fs/promises";
import { check, LtxError } from "../../errors.js";
import type { Animation } from "../images.js";
import { loadSharp } from "../text.js";
import type { Kind } from "./kind.js";
import { type OnNotice, warn } from "./notice.js";
import { checkRoom } from "./room.js";

/** As PIL and sharp have it: more pixels in one frame are a trap, not a picture. */
const MAX_PIXELS = 0x3fff * 0x3fff;
/** Files whose pages are frames; those of others are documents. */
const ANIMATED = ["gif", "webp"];

/** Bytes in which the beginning of an animated PNG says so. */
const ANIMATION_WITHIN = 4096;

/**
 * An image of the kind that its content says, in sRGB of 8 bits: colour profiles are applied, 16 bits are cut to 8,
 * photographs turned upright, transparent pixels laid on black. An animation gives all its frames.
 * @throws LtxError `file_format`, `out_of_memory`
 */
export async function readImage(
  path: string,
  kind: Kind,
  { maxFrames = Number.POSITIVE_INFINITY, onNotice = warn }: { maxFrames?: number; onNotice?: OnNotice } = {},
): Promise<Animation> {
  const sharp = await loadSharp();
  try {
    checkRoom((await stat(path)).size, `the file ${path}`, "give a smaller one");
    // In memory, so that no file stays open in sharp's cache.
    const file = await readFile(path);
    // sharp's limit counts the pixels of all frames together.
    const input = { limitInputPixels: false };
    const { format, width, height, pageHeight = height, pages = 1 } = await sharp(file, input).metadata();
    check(format === kind.format, "file_format", () => `[media] ${path} is ${kind.name}, but opens as ${format}`);
    // An animated PNG says so before its first picture; sharp reads that one alone.
    if (format === "png" && maxFrames > 1 && file.subarray(0, ANIMATION_WITHIN).includes("acTL")) {
      onNotice(`${path} is an animated PNG: its first frame is read, the others are left out`);
    }
    check(width * pageHeight <= MAX_PIXELS, "file_format", () => {
      return `[media] ${path} has ${width}x${pageHeight} pixels, more than ${MAX_PIXELS}: make it smaller`;
    });
    const animated = ANIMATED.includes(format);
    if (!animated && pages > 1) onNotice(`${path} has ${pages} pages: the first is read`);
    const frames = animated ? Math.max(1, Math.min(pages, maxFrames)) : 1;
    checkRoom(frames * width * pageHeight * 3, `the ${frames} frames of ${path}`, "give fewer or smaller ones");
    const image = frames > 1 ? sharp(file, { ...input, pages: frames }) : sharp(file, input).autoOrient();
    const { data, info } = await image
      .flatten({ background: "#000000" })
      .toColourspace("srgb")
      .raw({ depth: "uchar" })
      .toBuffer({ resolveWithObject: true });
    check(info.channels === 3, "file_format", () => `[media] ${path} has ${info.channels} channels, expected colours`);
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.length);
    return { data: bytes, frames, height: info.height / frames, width: info.width, channels: 3 };
  } catch (cause) {
    if (cause instanceof LtxError) throw cause;
    throw new LtxError("file_format", `[media] cannot read ${path}: ${(cause as Error).message}`, { cause });
  }
}
