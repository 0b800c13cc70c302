/** Frames as numbers: what the models take, and the operations on them that come before. */

import { object, show } from "../../arguments.js";
import { check } from "../../errors.js";
import type { Animation } from "../images.js";
import { Turns } from "../turns.js";
import { room } from "./room.js";

/** Frames of numbers, (frames, height, width, channels), channels last; around [-1, 1] where a model takes them. */
export interface PixelClip {
  readonly data: Float32Array;
  readonly frames: number;
  readonly height: number;
  readonly width: number;
  readonly channels: number;
}

/** What is added on each side of a frame. */
export interface Padding {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

/** Every frame by itself. */
export function framesOf<Data extends Uint8Array | Float32Array>(clip: {
  readonly data: Data;
  readonly frames: number;
}): Data[] {
  const size = clip.data.length / clip.frames;
  return Array.from({ length: clip.frames }, (_, i) => clip.data.subarray(i * size, (i + 1) * size) as Data);
}

/** The first frames of a clip, without a copy. @throws LtxError `invalid_argument` when it has fewer */
export function firstFrames<Clip extends PixelClip | Animation>(clip: Clip, frames: number): Clip {
  const { data } = object("media", "clip", clip);
  check(data instanceof Uint8Array || data instanceof Float32Array, "invalid_argument", () => {
    return `[media] the clip's data are ${show(data)}, expected a Uint8Array or Float32Array`;
  });
  // A buffer that was transferred leaves an array of no values.
  check(data.length > 0, "invalid_argument", () => "[media] the clip's data hold no values");
  check(Number.isInteger(frames) && frames >= 1 && frames <= clip.frames, "invalid_argument", () => {
    return `[media] cannot take ${show(frames)} frames of a clip that has ${clip.frames}`;
  });
  return { ...clip, frames, data: clip.data.subarray(0, (clip.data.length / clip.frames) * frames) };
}

/**
 * Bilinear interpolation without antialiasing, with pixel centres at halves (PyTorch's `align_corners=False`).
 * @throws LtxError `aborted` by the signal of `turns`
 */
export async function resizeBilinear(
  clip: PixelClip,
  height: number,
  width: number,
  turns = new Turns("[media] scaling frames"),
): Promise<PixelClip> {
  const { frames, channels } = clip;
  let { data } = clip;
  if (width !== clip.width) data = await interpolate(data, [frames * clip.height, clip.width, channels, width], turns);
  if (height !== clip.height) data = await interpolate(data, [frames, clip.height, width * channels, height], turns);
  return { data, frames, height, width, channels };
}

/** Interpolates along the middle one of three axes, from `from` values to `to`. */
async function interpolate(
  data: Float32Array,
  [outer, from, inner, to]: readonly [outer: number, from: number, inner: number, to: number],
  turns: Turns,
): Promise<Float32Array> {
  const result = room(Float32Array, outer * to * inner, "the resized frames", "give a smaller size");
  const places = Float64Array.from({ length: to }, (_, at) => Math.max(0, (at + 0.5) * (from / to) - 0.5));
  for (let o = 0; o < outer; o++) {
    for (let at = 0; at < to; at++) {
      const low = Math.min(Math.floor(places[at]), from - 1);
      const part = places[at] - low;
      const a = (o * from + low) * inner;
      const b = (o * from + Math.min(low + 1, from - 1)) * inner;
      const target = (o * to + at) * inner;
      for (let c = 0; c < inner; c++) result[target + c] = (1 - part) * data[a + c] + part * data[b + c];
      // A row is long, a pixel is not worth a look at the clock.
      if (inner > 4 && turns.due) await turns.next();
    }
    if (turns.due) await turns.next();
  }
  return result;
}

/** Scales a clip until it covers the size, and cuts off what stands out, as much on either side. */
export async function resizeAndCrop(clip: PixelClip, height: number, width: number): Promise<PixelClip> {
  if (clip.height === height && clip.width === width) return clip;
  const ratio = Math.max(height / clip.height, width / clip.width);
  const scaled = await resizeBilinear(clip, Math.floor(clip.height * ratio), Math.floor(clip.width * ratio));
  const left = Math.floor((scaled.width - width) / 2);
  const top = Math.floor((scaled.height - height) / 2);
  return crop(scaled, { left, top, height, width });
}

export interface Box {
  readonly left: number;
  readonly top: number;
  readonly height: number;
  readonly width: number;
}

/** The part of each frame that lies in the box. */
export function crop<Clip extends PixelClip | Animation>(clip: Clip, { left, top, height, width }: Box): Clip {
  const { data, frames, channels } = clip;
  if (height === clip.height && width === clip.width) return clip;
  const result = new (data.constructor as Float32ArrayConstructor)(frames * height * width * channels);
  for (let row = 0; row < frames * height; row++) {
    const y = top + (row % height);
    const from = ((Math.floor(row / height) * clip.height + y) * clip.width + left) * channels;
    result.set(data.subarray(from, from + width * channels), row * width * channels);
  }
  return { ...clip, data: result, height, width };
}
