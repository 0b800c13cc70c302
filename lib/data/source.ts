/** What every data set of videos looks like to the trainers. */

import { show } from "../arguments.js";
import { check } from "../errors.js";

/** One video, channels last: byte (f, y, x, c) lies at ((f * height + y) * width + x) * channels + c. */
export interface Clip {
  /** frames * height * width * channels bytes, 0 to 255. */
  readonly video: Uint8Array;
  readonly frames: number;
  readonly height: number;
  readonly width: number;
  readonly channels: number;
  /** The text that describes the video, where the source has one. */
  readonly prompt?: string;
  /** What is to be seen, as class numbers, where the source knows them. */
  readonly labels?: readonly number[];
}

/** A finite, indexed set of clips of one size. `clip(i)` is pure: the same index always gives the same clip. */
export interface DataSource {
  readonly length: number;
  readonly frames: number;
  readonly height: number;
  readonly width: number;
  readonly channels: number;
  /** @throws LtxError `invalid_argument` when `index` is not a whole number from 0 to `length` - 1 */
  clip(index: number): Clip | Promise<Clip>;
  /**
   * Tells the pixels of this source from those of any other: what is made of them (latents) may be kept on disk and
   * found again by it. Nothing is kept for a source without one.
   */
  readonly fingerprint?: string;
  /** Another wording of the prompt for `labels`, a pure function of (seed, draw); absent where there is only one. */
  promptFor?(labels: readonly number[], seed: number, draw: number): string;
}

/** @throws LtxError `invalid_argument` unless `index` is a whole number from 0 to `length` - 1 */
export function checkIndex(op: string, index: number, length: number): void {
  check(
    Number.isInteger(index) && index >= 0 && index < length,
    "invalid_argument",
    () => `[${op}] clip index must be a whole number from 0 to ${length - 1}, got ${show(index)}`,
  );
}

/**
 * @param op what the message begins with
 * @throws LtxError `invalid_argument` unless a source has at least one clip, and a size
 */
export function checkSource(op: string, source: DataSource): void {
  for (const name of ["length", "frames", "height", "width", "channels"] as const) {
    const value: unknown = source?.[name];
    check(Number.isSafeInteger(value) && (value as number) >= 1, "invalid_argument", () => {
      return `[${op}] a data source's ${name} must be a whole number from 1, got ${value}`;
    });
  }
  check(
    typeof source.clip === "function",
    "invalid_argument",
    () => `[${op}] a data source needs a method clip(index)`,
  );
}

/** A clip of a source. @throws LtxError `shape_mismatch` when its size is not the source's */
export async function readClip(source: DataSource, index: number): Promise<Clip> {
  const clip = await source.clip(index);
  checkClip(source, index, clip);
  return clip;
}

/** @throws LtxError `shape_mismatch` unless the clip is of the source's size, and has all its bytes */
export function checkClip(source: DataSource, index: number, clip: Clip): void {
  const { frames, height, width, channels } = source;
  const expected = `${frames}×${height}×${width}×${channels}`;
  check(clip?.video instanceof Uint8Array, "invalid_argument", () => {
    return `[data] clip ${index} has no bytes: expected a Uint8Array of ${expected} as its video`;
  });
  const found = [clip.frames, clip.height, clip.width, clip.channels].join("×");
  const bytes = frames * height * width * channels;
  check(found === expected && clip.video.length === bytes, "shape_mismatch", () => {
    return `[data] clip ${index} is ${found} (frames, height, width, channels) with ${clip.video.length} bytes, the source says ${expected}: ${bytes} bytes`;
  });
}
