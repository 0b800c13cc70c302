/** Moving MNIST from NumPy files: the reference's `.npz` pair, and the original test sequence without labels. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { check, LtxError } from "../errors.js";
import { type NpyArray, openNpy, openNpz } from "../formats/npy.js";
import { fileIdentity } from "../formats/paths.js";
import { findLayout, fitsLabels, type Layout } from "./array-layout.js";
import type { Split } from "./digits.js";
import { promptFor } from "./moving-mnist.js";
import { resizeFrame } from "./resize.js";
import { type Clip, checkIndex, type DataSource } from "./source.js";

export interface ArrayClipsOptions {
  /** `npz`: the folder of both files; `npy`: the file, or the folder that holds `mnist_test_seq.npy`. */
  path: string;
  /** Of the clips that come out. */
  frames: number;
  height: number;
  width: number;
  channels: number;
  /** The order of the array's axes, where it is another one than the file's own: `NFHW`, see {@link Layout}. */
  axes?: string;
  /** `clip` takes the first frames of a video, `sample` every floor(video's frames / `frames`)-th. */
  frameProcessing: "clip" | "sample";
  split: Split;
  /** At most so many clips; default all of the split. */
  size?: number;
  /** Of the prompts' wordings. */
  seed: number;
}

const VIDEOS_FILE = "videos_data.npz";
const LABELS_FILE = "labels_data.npz";
const SEQUENCES_FILE = "mnist_test_seq.npy";
/** Every tenth of the videos, the last ones, are held out. The reference has no such split. */
const HELD_OUT = 10;
/** Classes: the digits. */
const LABELS = 10;

/** Floats beyond 0 and 1 by less than this are rounding, of a resize say. */
const ROUNDING = 1e-3;

/** Videos in their array. */
type Videos = Layout & { array: NpyArray; file: string };

/**
 * `videos_data.npz` and `labels_data.npz` from a folder: videos (N, F, H, W), with or without a channel axis, in another
 * order that the labels' shape tells or `axes` says, or all videos' frames in one axis, as in the reference's file
 * (N * F, 1, 64, 64); labels (N, F, digits), of which the first frame's count.
 * @throws LtxError `file_format` for arrays of another form, `config` when the videos do not give such clips, `io`
 */
export async function openNpzClips(options: ArrayClipsOptions): Promise<DataSource> {
  const file = join(options.path, VIDEOS_FILE);
  const array = await openNpz(file);
  const labelFile = join(options.path, LABELS_FILE);
  const labelArray = await openNpz(labelFile);
  const layout = await findLayout(array, file, { ...options, usual: "NF", labels: labelArray.shape });
  const videos = { ...layout, array, file };
  const labels = await readLabels(labelArray, labelFile, videos);
  return new ArrayClips(videos, options, labels, await fileIdentity(file));
}

/**
 * `mnist_test_seq.npy` of the original Moving MNIST: uint8 (F, N, H, W), no labels, so every prompt is empty. Another
 * order is read where `axes` says it.
 * @throws LtxError as {@link openNpzClips}
 */
export async function openNpyClips(options: ArrayClipsOptions): Promise<DataSource> {
  const info = await stat(options.path).catch((cause) => {
    throw new LtxError("io", `[data] cannot open ${options.path}: ${cause.message}`, { cause });
  });
  const file = info.isDirectory() ? join(options.path, SEQUENCES_FILE) : options.path;
  const array = await openNpy(file);
  const layout = await findLayout(array, file, { ...options, usual: "FN" });
  return new ArrayClips({ ...layout, array, file }, options, null, await fileIdentity(file));
}

const wrongShape = (file: string, shape: readonly number[], expected: string) =>
  new LtxError("file_format", `[data] ${file} has shape (${shape.join(", ")}), expected ${expected}`);

/** The digits of each video: those of its first frame. */
async function readLabels(array: NpyArray, file: string, videos: Videos): Promise<number[][]> {
  const { shape, size } = array;
  const each = size / videos.count;
  const { count, frames } = videos;
  if (size === 0 || !Number.isInteger(each) || !fitsLabels(videos, shape)) {
    throw wrongShape(file, shape, `(${count}, ${frames}, digits) to go with ${videos.file}`);
  }
  // An array that names all frames has their number among its axes, or a multiple of it for each video.
  const digits = shape.length === 3 ? shape[2] : each % frames === 0 ? each / frames : each;
  const values = await array.read(0, size);
  return Array.from({ length: count }, (_, i) =>
    Array.from({ length: digits }, (_, k) => {
      const label = values[i * each + k];
      check(Number.isInteger(label) && label >= 0 && label < LABELS, "file_format", () => {
        return `[data] ${file}: video ${i} has label ${label}, expected digits from 0 to ${LABELS - 1}`;
      });
      return label;
    }),
  );
}

class ArrayClips implements DataSource {
  readonly length: number;
  readonly frames: number;
  readonly height: number;
  readonly width: number;
  readonly channels: number;
  readonly promptFor?: (labels: readonly number[], seed: number, draw: number) => string;
  private readonly first: number;
  /** Frames of the video from one of the clip to the next. */
  private readonly step: number;

  constructor(
    private readonly videos: Videos,
    private readonly options: ArrayClipsOptions,
    private readonly labels: readonly (readonly number[])[] | null,
    private readonly identity: string,
  ) {
    const { count, file, frames, channels, array } = videos;
    const { dtype } = array;
    check(dtype === "u1" || dtype === "f4" || dtype === "f8", "file_format", () => {
      return `[data] ${file} holds ${dtype}, expected pixels as u1 from 0 to 255, or f4 or f8 from 0 to 1`;
    });
    check(frames >= options.frames, "config", () => {
      return `[data] the videos of ${file} have ${frames} frames, the configuration asks for ${options.frames}; lower data.frames`;
    });
    check(channels === options.channels, "config", () => {
      return `[data] the videos of ${file} have ${channels} channels, data.num_channels is ${options.channels}`;
    });
    check(
      count >= 2,
      "file_format",
      () => `[data] ${file} holds ${count} video, expected one for training and one held out`,
    );
    const heldOut = Math.max(1, Math.floor(count / HELD_OUT));
    const available = options.split === "test" ? heldOut : count - heldOut;
    this.first = options.split === "test" ? count - heldOut : 0;
    this.length = Math.min(available, options.size ?? available);
    this.frames = options.frames;
    this.height = options.height;
    this.width = options.width;
    this.channels = channels;
    this.step = options.frameProcessing === "sample" ? Math.floor(frames / options.frames) : 1;
    if (labels) this.promptFor = promptFor;
  }

  /** The videos' file as it is, and what is taken of it. */
  get fingerprint(): string {
    const { frames, height, width, channels, length, first, step } = this;
    return JSON.stringify({
      file: this.identity,
      axes: this.videos.axes,
      frames,
      height,
      width,
      channels,
      length,
      first,
      step,
    });
  }

  async clip(index: number): Promise<Clip> {
    checkIndex("data", index, this.length);
    const { frames, height, width, channels } = this;
    const { videos, labels, options } = this;
    const at = this.first + index;
    const video = new Uint8Array(frames * height * width * channels);
    for (const [f, frame] of (await this.readFrames(at)).entries()) {
      const scaled = resizeFrame(frame, [videos.height, videos.width], [height, width], channels);
      video.set(scaled, f * scaled.length);
    }
    const size = { frames, height, width, channels };
    if (!labels) return { video, ...size, prompt: "" };
    return { video, ...size, labels: labels[at], prompt: promptFor(labels[at], options.seed, index) };
  }

  private async readFrames(at: number): Promise<Uint8Array[]> {
    const { array, frameStride, videoStride, height, width, channels, channelStride } = this.videos;
    const size = height * width * channels;
    const offsets = Array.from({ length: this.frames }, (_, f) => at * videoStride + f * this.step * frameStride);
    if (channels > 1 && channelStride > 1) return Promise.all(offsets.map((offset) => this.readPlanes(offset, at)));
    if (frameStride !== size) {
      return Promise.all(offsets.map(async (offset) => this.pixels(await array.read(offset, size), at)));
    }
    // The frames lie one after the other: one read gives them all.
    const last = offsets[offsets.length - 1] + size;
    const bytes = this.pixels(await array.read(offsets[0], last - offsets[0]), at);
    return offsets.map((offset) => bytes.subarray(offset - offsets[0], offset - offsets[0] + size));
  }

  /** A frame whose channels lie apart, each a whole picture. */
  private async readPlanes(offset: number, at: number): Promise<Uint8Array> {
    const { array, height, width, channels, channelStride } = this.videos;
    const area = height * width;
    const frame = new Uint8Array(area * channels);
    for (let c = 0; c < channels; c++) {
      const plane = this.pixels(await array.read(offset + c * channelStride, area), at);
      for (let i = 0; i < area; i++) frame[i * channels + c] = plane[i];
    }
    return frame;
  }

  /** Bytes as they are, floats from 0 to 1 as bytes. */
  private pixels(values: ArrayLike<number>, at: number): Uint8Array {
    if (values instanceof Uint8Array) return values;
    const bytes = new Uint8Array(values.length);
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      check(value >= -ROUNDING && value <= 1 + ROUNDING, "file_format", () => {
        return `[data] ${this.videos.file}: video ${at} holds ${value}, expected floats from 0 to 1`;
      });
      bytes[i] = Math.round(Math.min(1, Math.max(0, value)) * 255);
    }
    return bytes;
  }
}
