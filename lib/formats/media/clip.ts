/** Frames as numbers: what the models take, and the operations on them that come before. */
import { check } from "../../errors.js";
import type { Animation } from "../images.js";

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
  check(frames >= 1 && frames <= clip.frames, "invalid_argument", () => {
    return `[media] cannot take ${frames} frames of a clip that has ${clip.frames}`;
  });
  return { ...clip, frames, data: clip.data.subarray(0, (clip.data.length / clip.frames) * frames) };
}

/** Gaussian of sigma 1 on three pixels. */
const SIDE = Math.exp(-0.5) / (1 + 2 * Math.exp(-0.5));

/** A 3x3 Gaussian blur of sigma 1; at the edges the picture is mirrored about its outermost pixels. */
export function blur(clip: PixelClip): PixelClip {
  const { frames, height, width, channels } = clip;
  const rows = blurAxis(clip.data, frames * height, width, channels);
  return { ...clip, data: blurAxis(rows, frames, height, width * channels) };
}

/** Blurs along the middle one of three axes. */
function blurAxis(data: Float32Array, outer: number, length: number, inner: number): Float32Array {
  // A single pixel is its own mirror image.
  if (length === 1) return data;
  const result = new Float32Array(data.length);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < length; i++) {
      const at = (o * length + i) * inner;
      const before = i === 0 ? at + inner : at - inner;
      const after = i === length - 1 ? at - inner : at + inner;
      for (let c = 0; c < inner; c++) {
        result[at + c] = (1 - 2 * SIDE) * data[at + c] + SIDE * (data[before + c] + data[after + c]);
      }
    }
  }
  return result;
}

/** Bilinear interpolation without antialiasing, with pixel centres at halves (PyTorch's `align_corners=False`). */
export function resizeBilinear(clip: PixelClip, height: number, width: number): PixelClip {
  const { frames, channels } = clip;
  let { data } = clip;
  if (width !== clip.width) data = interpolate(data, frames * clip.height, clip.width, channels, width);
  if (height !== clip.height) data = interpolate(data, frames, clip.height, width * channels, height);
  return { data, frames, height, width, channels };
}

/** Interpolates along the middle one of three axes. */
function interpolate(data: Float32Array, outer: number, from: number, inner: number, to: number): Float32Array {
  const result = new Float32Array(outer * to * inner);
  for (let at = 0; at < to; at++) {
    const place = Math.max(0, (at + 0.5) * (from / to) - 0.5);
    const low = Math.min(Math.floor(place), from - 1);
    const high = Math.min(low + 1, from - 1);
    const part = place - low;
    for (let o = 0; o < outer; o++) {
      const [a, b] = [(o * from + low) * inner, (o * from + high) * inner];
      const target = (o * to + at) * inner;
      for (let c = 0; c < inner; c++) result[target + c] = (1 - part) * data[a + c] + part * data[b + c];
    }
  }
  return result;
}

/** Scales a clip until it covers the size, and cuts off what stands out, as much on either side. */
export function resizeAndCrop(clip: PixelClip, height: number, width: number): PixelClip {
  if (clip.height === height && clip.width === width) return clip;
  const ratio = Math.max(height / clip.height, width / clip.width);
  const scaled = resizeBilinear(clip, Math.floor(clip.height * ratio), Math.floor(clip.width * ratio));
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

/** Zeros, the middle grey of [-1, 1], around every frame. */
export function pad(clip: PixelClip, { left, right, top, bottom }: Padding): PixelClip {
  if (left + right + top + bottom === 0) return clip;
  const { data, frames, channels } = clip;
  const [height, width] = [clip.height + top + bottom, clip.width + left + right];
  const result = new Float32Array(frames * height * width * channels);
  const rowSize = clip.width * channels;
  for (let row = 0; row < frames * clip.height; row++) {
    const y = Math.floor(row / clip.height) * height + top + (row % clip.height);
    result.set(data.subarray(row * rowSize, (row + 1) * rowSize), (y * width + left) * channels);
  }
  return { data: result, frames, height, width, channels };
}
