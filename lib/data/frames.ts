import { show } from "../arguments.js";
import { check } from "../errors.js";
import { type Clip, checkClip, checkSource, type DataSource } from "./source.js";

/**
 * The same clips with `frames` frames each: of longer ones the first, shorter ones end to end as often as it takes. The
 * clip that comes out fails with `shape_mismatch` when the source's is not of the source's size.
 * @throws LtxError `invalid_argument` when `frames` is not a positive whole number, or the source has no clips
 */
export function withFrames(source: DataSource, frames: number): DataSource {
  check(Number.isSafeInteger(frames) && frames > 0, "invalid_argument", () => {
    return `[data] a clip needs a positive whole number of frames, got ${show(frames)}`;
  });
  checkSource("data", source);
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
      const fitted = (loaded: Clip) => {
        checkClip(source, index, loaded);
        return fit(loaded, frames);
      };
      return clip instanceof Promise ? clip.then(fitted) : fitted(clip);
    },
    ...(source.fingerprint !== undefined && { fingerprint: `${source.fingerprint} in ${frames} frames` }),
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
