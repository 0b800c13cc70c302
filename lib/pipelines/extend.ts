import { check } from "../errors.js";
import { checkOverlap, defaultOverlap, type Windows } from "./schemes.js";
import type { GenerateOptions, TextToVideo } from "./text-to-video.js";
import { Video } from "./video.js";

export interface ExtendOptions extends Omit<GenerateOptions, "prompts" | "observed" | "draw"> {
  /** One for each clip; those of the source unless given. */
  prompts?: readonly string[];
  /** Frames that the last ones of the source and the first ones of a new clip share. */
  overlap?: number;
  /** New clips, one behind the other; 1 unless given. */
  rounds?: number;
}

/**
 * Continues clips: the last `overlap` frames become the first of a new clip, whose latents are held to them at every step
 * while the rest is drawn. The source's own frames stay as they are, the new ones follow.
 * @throws LtxError `invalid_argument`, `aborted`, `disposed`
 */
export async function extendVideo(pipeline: TextToVideo, source: Video, options: ExtendOptions = {}): Promise<Video> {
  const { rounds = 1, overlap = defaultOverlap(pipeline.model), prompts = source.prompts, ...rest } = options;
  check(Number.isSafeInteger(rounds) && rounds >= 1, "invalid_argument", () => {
    return `[extend] rounds must be a positive whole number, got ${rounds}`;
  });
  checkOverlap(pipeline.model, overlap);
  check(source.frames >= overlap, "invalid_argument", () => {
    return `[extend] the source has ${source.frames} frames, fewer than the overlap of ${overlap}: give a longer one`;
  });
  const step = pipeline.config.sampling.frames - overlap;
  const windows = { frames: source.frames + rounds * step, first: 0, overlap, step };
  return grow(pipeline, source, windows, { ...rest, prompts });
}

/**
 * Videos of any length from prompts, window by window.
 * @throws LtxError `invalid_argument`, `aborted`, `disposed`
 */
export async function generateLong(
  pipeline: TextToVideo,
  windows: Windows,
  options: Omit<GenerateOptions, "observed" | "draw">,
): Promise<Video> {
  const later = Math.ceil((windows.frames - windows.first) / windows.step);
  const onStep = inAll(options.onStep, 0, 1 + later);
  const first = (await pipeline.generate({ ...options, resample: 1, onStep })).first(windows.first);
  if (later === 0) return first;
  return grow(pipeline, first, windows, options, 1);
}

/** Adds windows until the video has all its frames. `before`: windows that were drawn already. */
async function grow(
  pipeline: TextToVideo,
  start: Video,
  { frames, overlap, step }: Windows,
  options: GenerateOptions,
  before = 0,
): Promise<Video> {
  const count = before + Math.ceil((frames - start.frames) / step);
  let video = start;
  for (let window = before; window < count; window++) {
    const observed = video.range(video.frames - overlap, video.frames);
    const onStep = inAll(options.onStep, window, count);
    const next = await pipeline.generate({
      ...options,
      observed,
      draw: window,
      onStep,
      // Once for all windows.
      onNotice: window === 0 ? options.onNotice : undefined,
    });
    video = appended(video, next.range(overlap, overlap + Math.min(step, frames - video.frames)));
  }
  return video;
}

/** The steps of one window told as those of all. */
function inAll(onStep: GenerateOptions["onStep"], window: number, windows: number): GenerateOptions["onStep"] {
  return onStep && ((done, total) => onStep(window * total + done, windows * total));
}

function appended(a: Video, b: Video): Video {
  const clips = a.clips.map((clip, i) => new Uint8Array(Buffer.concat([clip, b.clips[i]])));
  return new Video(clips, a.frames + b.frames, a.height, a.width, a.channels, b.prompts);
}
