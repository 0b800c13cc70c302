import { LtxError } from "../errors.js";
import type { Split } from "./digits.js";
import { MovingMnist } from "./moving-mnist.js";
import type { DataSource } from "./source.js";

/** What a configuration's `data` section says, as far as sources need it. */
export interface DataOptions {
  source: "moving-mnist" | "npz";
  frames: number;
  height: number;
  width: number;
  digits: number;
  digit_size: number;
  seed: number;
  size: number;
  min_speed: number;
  max_speed: number;
}

/**
 * The clips that a configuration names. The test split shows other handwritten digits than the training split.
 * @throws LtxError `unavailable` for a source that can't be read yet
 */
export function openData(options: DataOptions, split: Split = "train", size = options.size): DataSource {
  if (options.source !== "moving-mnist") {
    throw new LtxError("unavailable", `[data] source "${options.source}" is not supported yet: use "moving-mnist"`);
  }
  const { frames, height, width, digits, seed } = options;
  const { digit_size: digitSize, min_speed: minSpeed, max_speed: maxSpeed } = options;
  return new MovingMnist({ split, size, frames, height, width, digits, digitSize, seed, minSpeed, maxSpeed });
}

/** Several clips as one array (B, F, H, W, C). */
export async function loadClips(data: DataSource, indices: readonly number[]): Promise<Uint8Array> {
  const clips = await Promise.all(indices.map((index) => data.clip(index)));
  const bytes = data.frames * data.height * data.width * data.channels;
  const batch = new Uint8Array(bytes * clips.length);
  clips.forEach((clip, i) => {
    batch.set(clip.video, i * bytes);
  });
  return batch;
}
