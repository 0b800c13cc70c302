/** Images and videos on their way into a model: cut to its proportions, scaled, blurred, compressed, padded. */
import { check } from "../../errors.js";
import type { Animation } from "../images.js";
import { resizeBicubic } from "./bicubic.js";
import { blur, crop, framesOf, type Padding, type PixelClip, pad } from "./clip.js";
import { compressFrames } from "./compress.js";
import { centerBox } from "./sizes.js";

export interface PrepareOptions {
  /** The size of the video, without its padding. */
  height: number;
  width: number;
  /** Whether frames are only cut to the proportions, and keep their resolution. */
  onlyCrop?: boolean;
}

/** Frames cut in the middle to the proportions of `height` and `width` and scaled to them, as bytes. */
export function fitFrames(media: Animation, { height, width, onlyCrop = false }: PrepareOptions): Animation {
  check(media.channels === 3, "shape_mismatch", () => {
    return `[media] expected frames in RGB (3 channels), got ${media.channels}`;
  });
  const cut = crop(media, centerBox(media, { height, width }));
  if (onlyCrop || (cut.height === height && cut.width === width)) return cut;
  const size = height * width * 3;
  const data = new Uint8Array(media.frames * size);
  for (const [i, frame] of framesOf(cut).entries()) {
    data.set(resizeBicubic({ ...cut, data: frame }, height, width).data, i * size);
  }
  return { data, frames: media.frames, height, width, channels: 3 };
}

/** Bytes as numbers from 0 to 1. */
export function toUnit({ data, ...size }: Animation): PixelClip {
  return { ...size, data: Float32Array.from(data, (byte) => byte / 255) };
}

/** Numbers from 0 to 1 as those from -1 to 1. */
export function toSigned({ data, ...size }: PixelClip): PixelClip {
  return { ...size, data: data.map((value) => (value * 255) / 127.5 - 1) };
}

export interface ConditioningOptions {
  /** The rate factor of the H.264 that each frame goes through, 0 for none; the official pipeline's unless given. */
  crf?: number;
  signal?: AbortSignal;
}

/**
 * Frames that condition a video of the given size, or that one starts from, in [-1, 1]. An image that conditions keeps its
 * own resolution, as in the official pipeline, which scales it later. Videos are scaled here, since theirs would take much
 * memory, and so is everything where there is padding, so that it lies exactly under the picture that is cut out.
 * @throws LtxError `unavailable` when they are to be compressed and there is no ffmpeg
 */
export async function prepareMedia(
  media: Animation,
  size: { height: number; width: number; padding?: Padding },
  use: "conditioning" | "source",
  { crf, signal }: ConditioningOptions = {},
): Promise<PixelClip> {
  const { padding = { left: 0, right: 0, top: 0, bottom: 0 } } = size;
  const { left, right, top, bottom } = padding;
  const onlyCrop = use === "conditioning" && media.frames === 1 && left + right + top + bottom === 0;
  const soft = blur(toUnit(fitFrames(media, { ...size, onlyCrop })));
  if (crf === 0) return pad(toSigned(soft), padding);
  const bytes = Uint8Array.from(soft.data, (value) => Math.round(value * 255));
  const compressed = await compressFrames({ ...soft, data: bytes }, { crf, signal });
  return pad(toSigned(toUnit(compressed)), padding);
}
