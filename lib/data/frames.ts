import { check } from "../errors.js";
import type { Clip, DataSource } from "./source.js";

/**
 * The same clips with `frames` frames each: of longer ones the first, shorter ones end to end as often as it takes.
 * @throws LtxError `invalid_argument` when `frames` is no positive whole number
 */
export function withFrames(source: DataSource, frames: number): DataSource {
  check(Number.isSafeInteger(frames) && frames > 0, "invalid_argument", () => {
    return `[data] a clip needs a positive whole number of frames, got ${frames}`;
  });
  if (source.frames === frames) return source;
  const { length, height, width, channels } = source;
  return {
    length,
    frames,
    height,
    width,
    channels,
    clip(index) {
      const clip = source.clip(index);
      return clip instanceof Promise ? clip.then((loaded) => fit(loaded, frames)) : fit(clip, frames);
    },
    ...(source.promptFor && { promptFor: source.promptFor.bind(source) }),
  };
}

function fit(clip: Clip, frames: number): Clip {
  const size = frames * clip.height * clip.width * clip.channels;
  const video = new Uint8Array(size);
  for (let at = 0; at < size; at += clip.video.length) {
    video.set(clip.video.subarray(0, Math.min(clip.video.length, size - at)), at);
  }
  return { ...clip, video, frames };
}
