import { integer } from "../arguments.js";
import type { SamplingSchemeConfig } from "../config/index.js";
import { check } from "../errors.js";
import type { FlowModel } from "../models/flow-model.js";
import { legalOverlaps } from "./observed.js";

/** How a video is drawn window by window: each later window begins with the last `overlap` frames and adds `step`. */
export interface Windows {
  /** Frames in all. */
  frames: number;
  /** Frames that the first window adds. */
  first: number;
  overlap: number;
  step: number;
}

type Sized = Pick<FlowModel, "config">;

/** Frames that a continued clip shares with the one before it, as in the reference. */
const USUAL_OVERLAP = 4;

/** The least legal overlap of at least 4 frames, or the greatest there is. */
export function defaultOverlap(model: Sized): number {
  const legal = legalOverlaps(model);
  return legal.find((overlap) => overlap >= USUAL_OVERLAP) ?? legal[legal.length - 1];
}

/** @throws LtxError `invalid_argument` naming the legal numbers of frames */
export function checkOverlap(model: Sized, overlap: number): void {
  const legal = legalOverlaps(model);
  const { frames } = model.config.sampling;
  check(legal.length > 0, "invalid_argument", () => {
    return `[overlap] the model's clips have ${frames} frame: there is nothing to continue`;
  });
  check(legal.includes(overlap), "invalid_argument", () => {
    return (
      `[overlap] ${overlap} frames are no whole number of latent frames; clips of ${frames} frames can share ` +
      legal.join(", ")
    );
  });
}

/** Over an hour of video, which is kept in memory while it is drawn. */
const MAX_FRAMES = 100_000;

/** @throws LtxError `invalid_argument` */
export function planAutoregressive(model: Sized, frames: number, overlap = defaultOverlap(model)): Windows {
  integer("sample", "frames", frames, 1, MAX_FRAMES);
  const window = model.config.sampling.frames;
  if (frames > window) checkOverlap(model, overlap);
  return { frames, first: Math.min(frames, window), overlap, step: window - overlap };
}

/**
 * A scheme file's windows. They may be shorter than the model's clip, the rest of which is then left out.
 * @throws LtxError `invalid_argument` when the model cannot follow the scheme
 */
export function planScheme(model: Sized, scheme: SamplingSchemeConfig): Windows {
  const { video_length, num_observed_frames, max_frames, step_size } = scheme;
  const { frames } = model.config.sampling;
  check(num_observed_frames === 0, "invalid_argument", () => {
    return (
      `[scheme] num_observed_frames ${num_observed_frames}: drawing from prompts observes no frames (0); ` +
      "extend continues given ones"
    );
  });
  check(max_frames <= frames, "invalid_argument", () => {
    return `[scheme] max_frames ${max_frames}: the model's clips have ${frames} frames, use at most that`;
  });
  const overlap = max_frames - step_size;
  if (video_length > max_frames) {
    check(legalOverlaps(model).includes(overlap), "invalid_argument", () => {
      return (
        `[scheme] max_frames ${max_frames} - step_size ${step_size} = ${overlap} observed frames are no whole number of ` +
        `latent frames; clips of ${frames} frames can observe ${legalOverlaps(model).join(", ")}`
      );
    });
  }
  return { frames: video_length, first: Math.min(video_length, max_frames), overlap, step: step_size };
}
