import { check } from "../errors.js";
import { room } from "../formats/media/room.js";
import { Turns } from "../formats/turns.js";
import { openNpyClips, openNpzClips } from "./array-clips.js";
import type { Split } from "./digits.js";
import { withFrames } from "./frames.js";
import { MovingMnist } from "./moving-mnist.js";
import { type DataSource, readClip } from "./source.js";

/** What a configuration's `data` section says, as far as sources need it. */
export interface DataOptions {
  source: "moving-mnist" | "npz" | "npy";
  /** Where the files are, for sources that read any. */
  path?: string;
  /** Order of the axes of an array, where the file's own does not tell it: `NFHW`. */
  axes?: string;
  frames: number;
  /** Of the source's clips, where they are then cut or repeated to `frames`. */
  source_frames?: number;
  height: number;
  width: number;
  num_channels: number;
  frame_processing: "clip" | "sample";
  digits: number;
  digit_size: number;
  seed: number;
  size: number;
  min_speed: number;
  max_speed: number;
}

/**
 * The clips that a configuration names. The test split of drawn clips shows other handwritten digits than the training
 * split; that of files is the last tenth of their videos.
 * @param size at most so many clips; by default the configuration's `size` of drawn clips, all of a file's
 * @throws LtxError `config`, `file_format`, `io`
 */
export async function openData(options: DataOptions, split: Split = "train", size?: number): Promise<DataSource> {
  const { frames, source_frames = frames } = options;
  return withFrames(await openSource({ ...options, frames: source_frames }, split, size), frames);
}

async function openSource(options: DataOptions, split: Split, size: number | undefined): Promise<DataSource> {
  const { source, path, axes, frames, height, width, digits, seed } = options;
  if (source === "moving-mnist") {
    const { digit_size: digitSize, min_speed: minSpeed, max_speed: maxSpeed } = options;
    const drawn = { frames, height, width, digits, digitSize, seed, minSpeed, maxSpeed };
    return new MovingMnist({ split, size: size ?? options.size, ...drawn });
  }
  check(path !== undefined, "config", () => `[data] source "${source}" needs a path`);
  const { num_channels: channels, frame_processing: frameProcessing } = options;
  const clips = { path, axes, frames, height, width, channels, frameProcessing, split, size, seed };
  return source === "npz" ? openNpzClips(clips) : openNpyClips(clips);
}

/** Clips that are read at the same time. */
const AT_ONCE = 64;

/**
 * Several clips as one array (B, F, H, W, C).
 * @throws LtxError `shape_mismatch` for a clip that is not of the source's size
 */
export async function loadClips(data: DataSource, indices: readonly number[]): Promise<Uint8Array> {
  const bytes = data.frames * data.height * data.width * data.channels;
  const remedy = "take a smaller batch";
  const batch = room(Uint8Array, bytes * indices.length, `a batch of ${indices.length} clips`, remedy);
  const turns = new Turns("[data] reading clips");
  for (let from = 0; from < indices.length; from += AT_ONCE) {
    const part = indices.slice(from, from + AT_ONCE);
    const clips = await Promise.all(part.map((index) => readClip(data, index)));
    for (const [i, clip] of clips.entries()) batch.set(clip.video, (from + i) * bytes);
    if (turns.due) await turns.next();
  }
  return batch;
}
