/** What every data set of videos looks like to the trainers. */

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
  /** Another wording of the prompt for `labels`, a pure function of (seed, draw); absent where there is only one. */
  promptFor?(labels: readonly number[], seed: number, draw: number): string;
}

/** @throws LtxError `invalid_argument` unless `index` is a whole number from 0 to `length` - 1 */
export function checkIndex(op: string, index: number, length: number): void {
  check(
    Number.isInteger(index) && index >= 0 && index < length,
    "invalid_argument",
    () => `[${op}] clip index must be a whole number from 0 to ${length - 1}, got ${index}`,
  );
}
