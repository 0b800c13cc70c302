/** Images and videos on their way into a model: cut to its proportions, scaled, blurred, compressed, padded. */
import { choice, object, show } from "../../arguments.js";
import { check } from "../../errors.js";
import { type Animation, checkPixels, type Picture } from "../images.js";
import { Turns } from "../turns.js";
import { resizeBicubic } from "./bicubic.js";
import { blur, blurBytes } from "./blur.js";
import { type Box, framesOf, type Padding, type PixelClip, resizeBilinear } from "./clip.js";
import { CONDITIONING_CRF, compressFrame, MAX_SIDE } from "./compress.js";
import { room } from "./room.js";
import { centerBox } from "./sizes.js";

export interface ConditioningOptions {
  /** The rate factor of the H.264 that each frame goes through, 0 for none; the official pipeline's unless given. */
  crf?: number;
  signal?: AbortSignal;
  /** Hears what its reader should know. */
  onNotice?: (message: string) => void;
}

/** Frames at work at once: while one is in ffmpeg another is blurred. */
const AT_ONCE = 4;
/** Bytes of a clip that is kept at its own resolution. */
const MAX_OWN = 2 * 2 ** 30;
const FLOAT_BYTES = 4;

/** Numbers from 0 to 1, and bytes, from -1 to 1. */
const signed = (unit: number): number => (unit * 255) / 127.5 - 1;
const SIGNED = Float32Array.from({ length: 256 }, (_, byte) => signed(Math.fround(byte / 255)));

/**
 * Frames that condition a video of the given size, or that one starts from, in [-1, 1]. What conditions keeps its own
 * resolution, as in the official pipeline, which scales it later; it is scaled here where there is padding, so that it
 * lies exactly under the picture that is cut out, where it would take more than 2 GiB, and where H.264 has no frames so
 * large. Frame by frame, with pauses for the event loop: beside the media and the result it takes a few frames' memory.
 * @throws LtxError `unavailable` when they are to be compressed and there is no ffmpeg, `shape_mismatch` unless in RGB,
 * `invalid_argument`, `out_of_memory`, `aborted`
 */
export async function prepareMedia(
  media: Animation,
  size: { height: number; width: number; padding?: Padding },
  use: "conditioning" | "source",
  options: ConditioningOptions = {},
): Promise<PixelClip> {
  object("media", "media", media);
  object("media", "size", size);
  choice("media", "use", use, { conditioning: 0, source: 1 });
  object("media", "options", options);
  check(media.channels === 3, "shape_mismatch", () => {
    return `[media] expected frames in RGB (3 channels), got ${show(media.channels)}`;
  });
  checkPixels(media, media.frames);
  const { crf = CONDITIONING_CRF, signal } = options;
  checkSizes(size, crf);
  const plan = planOf(media, size, use, options);
  const { frames } = media;
  const area = plan.height * plan.width * 3;
  const data = room(Float32Array, frames * area, `${frames} prepared frames`, "give fewer or smaller ones");
  const sources = framesOf(media);
  const turns = new Turns("[media] preparing frames", signal);
  let next = 0;
  const worker = async () => {
    for (let i = next++; i < frames; i = next++) {
      const source = { ...media, data: sources[i] };
      const target = data.subarray(i * area, (i + 1) * area);
      await place(await prepared(source, plan, { crf, signal }, turns), plan, target, turns);
    }
  };
  const stopping = (cause: unknown) => {
    next = frames;
    throw cause;
  };
  const work = Array.from({ length: Math.min(AT_ONCE, frames) }, () => worker().catch(stopping));
  // All have to end: after an error nothing is at work any more.
  const failed = (await Promise.allSettled(work)).find((end) => end.status === "rejected");
  if (failed) throw failed.reason;
  return { data, frames, height: plan.height, width: plan.width, channels: 3 };
}

function checkSizes({ height, width, padding }: Parameters<typeof prepareMedia>[1], crf: number): void {
  for (const [name, value] of Object.entries({ height, width, ...padding })) {
    const least = name === "height" || name === "width" ? 1 : 0;
    check(Number.isSafeInteger(value) && value >= least, "invalid_argument", () => {
      return `[media] ${name} must be a whole number from ${least}, got ${show(value)}`;
    });
  }
  check(Number.isInteger(crf) && crf >= 0 && crf <= 51, "invalid_argument", () => {
    return `[media] crf must be a whole number from 0 (no compression) to 51, got ${crf}`;
  });
}

/** What happens to each frame. */
interface Plan {
  /** The part that is kept. */
  box: Box;
  /** Scaled like PIL to this before anything else. */
  first?: { height: number; width: number };
  /** Scaled bilinearly to this at the end. */
  last?: { height: number; width: number };
  padding: Padding;
  /** Of what comes out. */
  height: number;
  width: number;
}

function planOf(
  media: Animation,
  { height, width, padding = { left: 0, right: 0, top: 0, bottom: 0 } }: Parameters<typeof prepareMedia>[1],
  use: "conditioning" | "source",
  { crf, onNotice = () => {} }: ConditioningOptions,
): Plan {
  const { left, right, top, bottom } = padding;
  const box = centerBox(media, { height, width });
  const target = { height, width };
  const scaled = { box, first: target, padding, height: height + top + bottom, width: width + left + right };
  if (use === "source" || left + right + top + bottom > 0) return scaled;
  // H.264 has even sides.
  const even = (side: number) => (crf === 0 ? side : Math.max(2, side - (side % 2)));
  const own = { height: even(box.height), width: even(box.width) };
  const bytes = own.height * own.width * 3 * FLOAT_BYTES;
  const kept = media.frames * bytes;
  const fits = kept <= MAX_OWN || own.height * own.width <= height * width;
  const encodes = crf === 0 || Math.max(own.height, own.width) <= MAX_SIDE;
  if (fits && encodes) return { box, padding, ...own };
  onNotice(
    `${media.frames} frames of ${own.width}x${own.height} are scaled to ${width}x${height} before anything else looks at ` +
      `them: ${encodes ? `kept as they are they would take ${(kept / 2 ** 30).toFixed(1)} GiB` : "H.264 has none so large"}`,
  );
  return encodes && bytes <= MAX_OWN / AT_ONCE ? { box, last: target, padding, ...target } : scaled;
}

async function prepared(
  source: Picture,
  { box, first, last }: Plan,
  { crf, signal }: { crf: number; signal?: AbortSignal },
  turns: Turns,
): Promise<Picture | PixelClip> {
  const cut = await cutOut(source, box, turns);
  const picture = first ? await resizeBicubic(cut, first.height, first.width, turns) : cut;
  const clip = async (): Promise<PixelClip> => ({ ...picture, frames: 1, data: await blur(picture, turns) });
  if (crf === 0) return last ? resizeBilinear(await clip(), last.height, last.width, turns) : clip();
  const soft = await blurBytes(picture, turns);
  const even = await (first ? evenByRepeating : evenByCutting)(soft, turns);
  const compressed = await compressFrame(even, { crf, signal });
  if (!last) return cutOut(compressed, { left: 0, top: 0, ...(first ?? compressed) }, turns);
  return resizeBilinear({ ...compressed, frames: 1, data: unit(compressed.data) }, last.height, last.width, turns);
}

/** The part of a picture that lies in the box. */
async function cutOut(
  { data, ...picture }: Picture,
  { left, top, height, width }: Box,
  turns: Turns,
): Promise<Picture> {
  const { channels } = picture;
  const [row, whole] = [width * channels, picture.width * channels];
  if (width === picture.width) {
    return { data: data.subarray(top * whole, (top + height) * whole), height, width, channels };
  }
  const result = new Uint8Array(height * row);
  for (let y = 0; y < height; y++) {
    const from = (top + y) * whole + left * channels;
    result.set(data.subarray(from, from + row), y * row);
    if (turns.due) await turns.next();
  }
  return { data: result, height, width, channels };
}

const unit = (bytes: Uint8Array): Float32Array => {
  const result = new Float32Array(bytes.length);
  for (let i = 0; i < bytes.length; i++) result[i] = bytes[i] / 255;
  return result;
};

/** As officially: without the last row and column where they are odd. */
async function evenByCutting(picture: Picture, turns: Turns): Promise<Picture> {
  const [height, width] = [picture.height, picture.width].map((side) => side - (side % 2));
  if (height === 0 || width === 0) return evenByRepeating(picture, turns);
  return cutOut(picture, { left: 0, top: 0, height, width }, turns);
}

/** With the last row and column once more where they are odd: the picture must keep its size. */
async function evenByRepeating(picture: Picture, turns: Turns): Promise<Picture> {
  const [height, width] = [picture.height, picture.width].map((side) => side + (side % 2));
  if (height === picture.height && width === picture.width) return picture;
  const { channels } = picture;
  const data = new Uint8Array(height * width * channels);
  for (let y = 0; y < height; y++) {
    const from = Math.min(y, picture.height - 1) * picture.width * channels;
    const to = y * width * channels;
    data.set(picture.data.subarray(from, from + picture.width * channels), to);
    const last = to + (width - 1) * channels;
    if (width > picture.width) data.copyWithin(last, last - channels, last);
    if (turns.due) await turns.next();
  }
  return { data, height, width, channels };
}

/** Writes bytes, or numbers from 0 to 1, in [-1, 1] into a frame, with zeros, the middle grey, around them. */
async function place(
  { data, height, width }: Picture | PixelClip,
  { padding, ...plan }: Plan,
  into: Float32Array,
  turns: Turns,
): Promise<void> {
  const row = width * 3;
  for (let y = 0; y < height; y++) {
    const from = y * row;
    const to = ((padding.top + y) * plan.width + padding.left) * 3;
    if (data instanceof Uint8Array) for (let i = 0; i < row; i++) into[to + i] = SIGNED[data[from + i]];
    else for (let i = 0; i < row; i++) into[to + i] = signed(data[from + i]);
    if (turns.due) await turns.next();
  }
}
