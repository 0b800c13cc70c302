/** Media that a request brings, checked. */
import { LtxError } from "../../errors.js";
import type { PixelClip } from "../../formats/media/clip.js";

/** An image or a video that a part of the result is to show. */
export interface ConditioningItem {
  /** 1 or 8k + 1 frames in RGB around [-1, 1], of any size; a list has one for each sample. */
  mediaItem: PixelClip | readonly PixelClip[];
  /** The frame of the result at which it begins. A sequence that does not begin at 0 must begin at a multiple of 8. */
  mediaFrameNumber: number;
  /** From 0 (no effect) to 1 (stays as it is), which is the default. */
  conditioningStrength?: number;
  /** A place other than the whole frame is not supported. */
  mediaX?: number | null;
  mediaY?: number | null;
}

export function refuse(message: string): never {
  throw new LtxError("invalid_argument", `[generate] ${message}`);
}

export function inUnit(name: string, value: number): void {
  if (!(typeof value === "number" && value >= 0 && value <= 1)) refuse(`${name} ${value}: needs a number from 0 to 1`);
}

/** @throws {LtxError} `invalid_argument` naming the item by its place */
export function checkItem(
  item: ConditioningItem,
  i: number,
  video: { batch: number; numFrames: number; time: number },
) {
  const { mediaItem, mediaFrameNumber: first, conditioningStrength = 1, mediaX, mediaY } = item;
  const { batch, numFrames, time } = video;
  const name = `conditioningItems[${i}]`;
  if ((mediaX ?? 0) !== 0 || (mediaY ?? 0) !== 0) {
    refuse(`${name}: mediaX and mediaY are not supported, media fill the whole frame`);
  }
  inUnit(`${name}.conditioningStrength`, conditioningStrength);
  const whole = (n: number) => (n - 1) % time === 0;
  const frames = checkClips(`${name}.mediaItem`, mediaItem, batch, whole, `1 or ${time}k+1 frames`);
  const last = numFrames - frames;
  const what = frames === 1 ? "an image" : `a sequence of ${frames} frames`;
  if (last < 0) refuse(`${name}: ${what} is longer than the video, which has ${numFrames}`);
  if (!Number.isSafeInteger(first) || first < 0 || first > last) {
    refuse(`${name}.mediaFrameNumber ${first}: ${what} must begin at 0 to ${last}, the video has ${numFrames} frames`);
  }
  if (frames > 1 && first % time !== 0) {
    const below = Math.floor(first / time) * time;
    const near = [below, below + time].filter((n) => n <= last).join(" or ");
    refuse(`${name}.mediaFrameNumber ${first}: a sequence must begin at a multiple of ${time}, nearest ${near}`);
  }
  return { mediaItem, mediaFrameNumber: first, conditioningStrength };
}

/**
 * The number of frames of one clip, or of each in a list.
 * @throws {LtxError} `invalid_argument`
 */
export function checkClips(
  name: string,
  clips: PixelClip | readonly PixelClip[],
  batch: number,
  legal: (frames: number) => boolean,
  expected: string,
): number {
  const list: readonly PixelClip[] = Array.isArray(clips) ? clips : [clips as PixelClip];
  if (list.length !== 1 && list.length !== batch) {
    refuse(`${name} must be one clip, or one for each of ${batch} samples, got ${list.length}`);
  }
  for (const clip of list) {
    const { data, frames, height, width, channels } = clip ?? {};
    const sized = data instanceof Float32Array && data.length === frames * height * width * channels && data.length > 0;
    if (!sized || channels !== 3) {
      const found = clip ? `${data?.length} values for ${frames}x${height}x${width}x${channels}` : clip;
      refuse(`${name} must be a clip of frames x height x width x 3 values (Float32Array), got ${found}`);
    }
    if (!legal(frames)) refuse(`${name} has ${frames} frames, needs ${expected}`);
    if (frames !== list[0].frames) {
      refuse(`${name} has clips of ${list[0].frames} and ${frames} frames: they must be as long`);
    }
  }
  return list[0].frames;
}
