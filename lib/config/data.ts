import { z } from "zod";
import { count, positive, whole } from "./fields.js";
import { type Problem, section } from "./problems.js";

export const dataSchema = section({
  source: z.enum(["moving-mnist", "npz", "npy"]).default("moving-mnist"),
  path: z.string().min(1).optional(),
  axes: z
    .string()
    // A picture is read in one piece: its rows follow one another, its channels lie inside or outside of it.
    .regex(/^(?!.*(.).*\1)(?=.*N)(?=.*F)(\(NF\)|[NFC]){1,3}HWC?$/, {
      message:
        "expected the order of the array's axes, each letter once, H and W last but for C: NFHW, FNHW, NFHWC, NFCHW, " +
        "NCFHW, (NF)HW, (NF)CHW, …",
    })
    .optional(),
  num_channels: count.default(1),
  num_classes: count.default(10),
  frame_processing: z.enum(["clip", "sample"]).default("clip"),
  // The reference's names for the clip, and this project's.
  image_size: count.optional(),
  input_number_of_frames: count.optional(),
  frames: count.optional(),
  height: count.optional(),
  width: count.optional(),
  digits: count.default(2),
  digit_size: count.default(28),
  seed: whole.default(0),
  size: count.default(10000),
  min_speed: positive.default(2),
  max_speed: positive.default(5),
});

type DataInput = z.output<typeof dataSchema>;

/**
 * The clips that a run sees.
 *
 * `source` `moving-mnist` draws `size` clips of `digits` digits, each `digit_size` pixels a side, that move
 * `min_speed` to `max_speed` pixels a frame; `npz` reads the reference's `videos_data.npz` and `labels_data.npz` from
 * the folder `path`; `npy` reads the original test sequence, without labels, from the file `path` or from
 * `mnist_test_seq.npy` in that folder. `axes` says how the axes of an array of another order lie: N videos, F frames, C
 * channels, H height, W width, `(NF)` where all videos' frames share one. Files are scaled to the clip's size, and the
 * last tenth of their videos is held out. `frame_processing` is for files: `clip` takes the first `frames` frames of a
 * longer video, `sample` every k-th, k the whole part of the video's frames / `frames`.
 */
export type DataConfig = Omit<DataInput, "image_size" | "input_number_of_frames" | "frames" | "height" | "width"> & {
  frames: number;
  /** Frames of the source's clips, where a VAE expects another number: they are cut or repeated to `frames`. */
  source_frames?: number;
  height: number;
  width: number;
};

/** Joins the two spellings of the clip's size; what is wrong with them goes to `problems`. */
export function resolveData(input: DataInput, path: readonly PropertyKey[], problems: Problem[]): DataConfig {
  const { image_size, input_number_of_frames, frames, height, width, ...rest } = input;
  const oneOf = (own: string, ownValue: number | undefined, theirs: string, theirValue: number | undefined) => {
    if (ownValue === undefined && theirValue === undefined) {
      problems.push({ path: [...path, own], message: `missing, give ${own} or ${theirs}` });
    } else if (ownValue !== undefined && theirValue !== undefined && ownValue !== theirValue) {
      const message = `found ${ownValue}, but ${theirs} is ${theirValue}: give one of them, or the same value`;
      problems.push({ path: [...path, own], message });
    }
    return ownValue ?? theirValue ?? 1;
  };
  const data: DataConfig = {
    ...rest,
    frames: oneOf("frames", frames, "input_number_of_frames", input_number_of_frames),
    height: oneOf("height", height, "image_size", image_size),
    width: oneOf("width", width, "image_size", image_size),
  };
  if (data.source !== "moving-mnist" && data.path === undefined) {
    const message = `missing, source "${data.source}" needs the place of its files`;
    problems.push({ path: [...path, "path"], message });
  }
  if (data.source === "moving-mnist" && data.axes !== undefined) {
    problems.push({ path: [...path, "axes"], message: 'is for arrays: source "npz" or "npy"' });
  }
  if (data.source === "moving-mnist") checkDrawn(data, path, problems);
  return data;
}

function checkDrawn(data: DataConfig, path: readonly PropertyKey[], problems: Problem[]): void {
  const side = Math.min(data.height, data.width);
  if (data.digit_size > side) {
    const message = `found ${data.digit_size}, digits must fit into the frame, nearest ${side}`;
    problems.push({ path: [...path, "digit_size"], message });
  }
  if (data.max_speed < data.min_speed) {
    const message = `found ${data.max_speed}, expected at least min_speed, nearest ${data.min_speed}`;
    problems.push({ path: [...path, "max_speed"], message });
  }
  if (data.num_channels !== 1) {
    const message = `found ${data.num_channels}, Moving MNIST has 1 channel, nearest 1`;
    problems.push({ path: [...path, "num_channels"], message });
  }
}
