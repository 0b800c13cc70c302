/** How videos lie in an array: which of its axes are videos, frames, channels, height and width. */
import { LtxError } from "../errors.js";
import type { NpyArray } from "../formats/npy.js";

/** Sizes, and the distances between neighbours in elements. */
export interface Layout {
  /** The axes in order: N videos, F frames, C channels, H height, W width; (NF) both in one. */
  axes: string;
  count: number;
  frames: number;
  height: number;
  width: number;
  channels: number;
  videoStride: number;
  frameStride: number;
  /** 1 where a pixel's channels lie together, else those of a whole plane. */
  channelStride: number;
}

/** What tells one order of axes from another. */
export interface LayoutHints {
  /** The configuration's word on it. */
  axes?: string;
  /** The order of a file that says nothing else: videos first, or frames first. */
  usual: "NF" | "FN";
  /** Of the clips that are asked for. */
  frames: number;
  channels: number;
  /** Shape of the labels: videos, or videos and frames, come first there. */
  labels?: readonly number[];
}

/** The reference's videos, which an array without axes for them must be. */
const REFERENCE = { frames: 30, side: 64 };
/** Orders that an array of so many dimensions may have, each of them with the two orders of N and F. */
const ORDERS: Readonly<Record<number, readonly string[]>> = {
  3: ["(NF)HW"],
  4: ["NFHW", "FNHW", "(NF)CHW", "(NF)HWC"],
  5: ["NFHWC", "NFCHW", "NCFHW", "FNHWC", "FNCHW", "FCNHW"],
};

const wrongShape = (file: string, shape: readonly number[], expected: string) =>
  new LtxError("file_format", `[data] ${file} has shape (${shape.join(", ")}), expected ${expected}`);

/**
 * The layout of an array of videos. Orders that fit neither the labels nor the clips that are asked for are out; where
 * several are left, that of the usual order counts, if the videos' own motion does not speak against it.
 * @throws LtxError `file_format` for no known or several possible orders, naming them and how to say which; `config`
 */
export async function findLayout(array: NpyArray, file: string, hints: LayoutHints): Promise<Layout> {
  const { shape, size } = array;
  const order = hints.usual === "NF" ? "(videos, frames, height, width)" : "(frames, videos, height, width)";
  if (size === 0) throw wrongShape(file, shape, "at least one video");
  if (hints.axes !== undefined) {
    const layout = layoutOf(shape, hints.axes, hints);
    if (layout) return layout;
    throw new LtxError(
      "config",
      `[data] ${file} has shape (${shape.join(", ")}), which data.axes ${hints.axes} does not fit`,
    );
  }
  if (shape.length < 3) return referenceLayout(array, file, order);
  const possible = (ORDERS[shape.length] ?? []).flatMap((axes) => layoutOf(shape, axes, hints) ?? []);
  if (possible.length === 0) throw wrongShape(file, shape, `${order}; ${HOW}`);
  const fitting = narrowed(possible, hints);
  const [{ frames, count }] = fitting;
  if ((frames < hints.frames || count < 2) && shape[1] <= 3) {
    const expected = `${order}, or labels (videos, frames, digits) that say how many of the ${shape[0]} frames are a video's`;
    throw wrongShape(file, shape, `${expected}; ${HOW}`);
  }
  const [first, ...others] = distinct(fitting, hints.usual);
  if (others.length === 0) return first;
  const reversed = others.length === 1 && others[0].count === first.frames && others[0].frames === first.count;
  if (!reversed) throw ambiguous(file, shape, [first, ...others]);
  const motion = await relativeMotion(array, first);
  const unlikely = first.frames > first.count;
  if (motion > AGAINST || (unlikely && !(motion < FOR))) throw ambiguous(file, shape, [first, ...others]);
  return first;
}

const HOW = "data.axes says another order (N videos, F frames, C channels, H height, W width), as in axes: NFHW";

function ambiguous(file: string, shape: readonly number[], layouts: readonly Layout[]): LtxError {
  const readings = layouts.map(({ axes, count, frames, height, width }) => {
    return `${axes} (${count} videos of ${frames} frames of ${width}x${height})`;
  });
  return new LtxError(
    "file_format",
    `[data] ${file} has shape (${shape.join(", ")}), which may be ${readings.join(" or ")}: say which by data.axes, as in ` +
      `axes: ${layouts[0].axes}`,
  );
}

/** Sizes and distances for one order of axes; null where the shape has no such order. */
function layoutOf(shape: readonly number[], axes: string, { labels, frames }: LayoutHints): Layout | null {
  const letters = axes.match(/\(NF\)|[NFCHW]/g) ?? [];
  if (letters.length !== shape.length) return null;
  const size: Record<string, number> = {};
  const stride: Record<string, number> = {};
  let elements = 1;
  for (let i = letters.length - 1; i >= 0; i--) {
    size[letters[i]] = shape[i];
    stride[letters[i]] = elements;
    elements *= shape[i];
  }
  const { H: height, W: width, C: channels = 1 } = size;
  if (channels !== 1 && channels !== 3) return null;
  const place = { axes, height, width, channels, channelStride: stride.C ?? 1 };
  const merged = size["(NF)"];
  if (merged === undefined) {
    return { ...place, count: size.N, frames: size.F, videoStride: stride.N, frameStride: stride.F };
  }
  const each = framesOfEach(merged, { height, width }, labels) ?? (frames === 1 ? 1 : null);
  if (each === null) return null;
  const frameStride = stride["(NF)"];
  return { ...place, count: merged / each, frames: each, videoStride: each * frameStride, frameStride };
}

/** Frames of a video where all videos' frames share an axis: the labels know, or it is the reference's file. */
function framesOfEach(
  merged: number,
  { height, width }: { height: number; width: number },
  labels: readonly number[] | undefined,
): number | null {
  if (labels && labels.length === 3 && labels[0] * labels[1] === merged) return labels[1];
  const each = labels && labels.length === 2 ? merged / labels[0] : Number.NaN;
  if (Number.isInteger(each) && each > 1) return each;
  const reference = height === REFERENCE.side && width === REFERENCE.side && merged % REFERENCE.frames === 0;
  return reference ? REFERENCE.frames : null;
}

/** Leaves out what fits less, as long as something is left. */
function narrowed(layouts: readonly Layout[], { labels, frames, channels }: LayoutHints): readonly Layout[] {
  const tests: ((layout: Layout) => boolean)[] = [
    ({ height, width }) => height > 1 && width > 1,
    (layout) => !labels || fitsLabels(layout, labels),
    (layout) => layout.channels === channels,
    (layout) => layout.frames >= frames,
    ({ count }) => count > 1,
  ];
  return tests.reduce((left, test) => {
    const fitting = left.filter(test);
    return fitting.length > 0 ? fitting : left;
  }, layouts);
}

/** Whether labels of this shape are those of such videos. */
export function fitsLabels({ count, frames }: Pick<Layout, "count" | "frames">, labels: readonly number[]): boolean {
  if (labels.length <= 1) return true;
  if (labels.length >= 3) return labels[0] === count && (labels[1] === frames || labels[1] === 1);
  return labels[0] === count || labels[0] === count * frames;
}

/** One of those that come to the same, the usual order first. */
function distinct(layouts: readonly Layout[], usual: "NF" | "FN"): Layout[] {
  const key = ({ axes, ...layout }: Layout) =>
    Object.values({ ...layout, channelStride: layout.channels === 1 || layout.channelStride }).join();
  const rank = ({ axes }: Layout) => Number(axes.indexOf("N") > axes.indexOf("F") !== (usual === "FN"));
  const sorted = [...layouts].sort((a, b) => rank(a) - rank(b));
  return [...new Map(sorted.reverse().map((layout) => [key(layout), layout])).values()].reverse();
}

/** Any shape that holds the reference's videos one after the other, as the reference reads it. */
function referenceLayout({ shape, size }: NpyArray, file: string, order: string): Layout {
  const { frames, side } = REFERENCE;
  const area = side * side;
  const row = shape[shape.length - 1];
  const fits = size % (frames * area) === 0 && (shape.length === 1 || row === area || row === frames * area);
  if (!fits) throw wrongShape(file, shape, `${order}; ${HOW}`);
  const place = { height: side, width: side, channels: 1, videoStride: frames * area, frameStride: area };
  return { axes: "(NF)HW", count: size / place.videoStride, frames, channelStride: 1, ...place };
}

/** Pairs of frames that are compared. */
const PAIRS = 24;
/** Above this, what is taken for a video's frames is less alike than frames of different videos. */
const AGAINST = 1.25;
/** Below this, it is clearly more alike. */
const FOR = 0.8;

/** How much frames differ from the next ones of their video, as a part of how much they differ from another video's. */
async function relativeMotion(array: NpyArray, layout: Layout): Promise<number> {
  const { count, frames, height, width, videoStride, frameStride } = layout;
  const size = height * width;
  const read = (video: number, frame: number) => array.read(video * videoStride + frame * frameStride, size);
  let [along, across] = [0, 0];
  for (let i = 0; i < PAIRS; i++) {
    const video = Math.floor((i * (count - 1)) / PAIRS);
    const frame = Math.floor(((i * 7) % PAIRS) * ((frames - 1) / PAIRS));
    const [here, next, other] = await Promise.all([read(video, frame), read(video, frame + 1), read(video + 1, frame)]);
    for (let k = 0; k < size; k++) {
      along += Math.abs(here[k] - next[k]);
      across += Math.abs(here[k] - other[k]);
    }
  }
  return along / across;
}
