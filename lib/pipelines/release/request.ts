/** What the official command line asks for, checked before anything is loaded. */

import type { PipelineConfig } from "../../config/index.js";
import { check, LtxError } from "../../errors.js";
import { FRAME_RATES } from "../../formats/images.js";
import { firstFrames, type PixelClip } from "../../formats/media/clip.js";
import { hasX264 } from "../../formats/media/encoders.js";
import { prepareMedia } from "../../formats/media/prepare.js";
import { readMedia } from "../../formats/media/read.js";
import { conditioningFrames, type PaddedSize, paddedSize } from "../../formats/media/sizes.js";
import { MAX_FPS, usualEncoder, VIDEO_OUTPUTS, videoEncoder } from "../../formats/media/write-video.js";

/** The official command's own defaults. */
export const DEFAULTS = {
  negativePrompt: "worst quality, inconsistent motion, blurry, jittery, distorted",
  seed: 171198,
  height: 704,
  width: 1216,
  numFrames: 121,
  frameRate: 30,
  imageCondNoiseScale: 0.15,
} as const;

/** The arguments of the official command, in camelCase, and a few of this package's own. */
export interface ReleaseRequest {
  prompt: string;
  negativePrompt?: string;
  /** A folder; default `outputs/` and the date. */
  outputPath?: string;
  /** What a video is written as: the extension; MP4 unless given, a single frame always becomes a PNG. */
  format?: string;
  seed?: number;
  height?: number;
  width?: number;
  numFrames?: number;
  frameRate?: number;
  /** A video to start from instead of noise; together with `skip_initial_inference_steps`. */
  inputMediaPath?: string;
  imageCondNoiseScale?: number;
  conditioningMediaPaths?: readonly string[];
  /** From 0 to 1, one for each path; 1 unless given. */
  conditioningStrengths?: readonly number[];
  /** The frame at which each begins. */
  conditioningStartFrames?: readonly number[];
}

/** A request with its defaults, and the size at which the models draw it. */
export type CheckedRequest = ReleaseRequest &
  Required<Pick<ReleaseRequest, keyof typeof DEFAULTS | "format">> & { padded: PaddedSize };

const FORMATS = [...VIDEO_OUTPUTS, ".gif", ".webp"];

/** @throws LtxError `invalid_argument` naming the first argument that makes no sense */
export function checkRequest(request: ReleaseRequest, config: PipelineConfig): CheckedRequest {
  const given = Object.fromEntries(Object.entries(request).filter(([, value]) => value !== undefined));
  const full = { ...DEFAULTS, format: ".mp4", ...given } as CheckedRequest;
  const { height, width, numFrames } = full;
  const fault = (name: string, value: unknown, expected: string): LtxError =>
    new LtxError("invalid_argument", `[generate] ${name} must be ${expected}, got ${JSON.stringify(value)}`);
  for (const [name, value] of Object.entries({ height, width, num_frames: numFrames })) {
    if (!Number.isSafeInteger(value) || value < 1) throw fault(name, value, "a whole number from 1");
  }
  if (typeof full.prompt !== "string") throw fault("prompt", full.prompt, "a text");
  if (!Number.isSafeInteger(full.seed) || full.seed < 0) throw fault("seed", full.seed, "a whole number from 0");
  if (!(full.frameRate > 0)) throw fault("frame_rate", full.frameRate, "above 0");
  if (!(full.imageCondNoiseScale >= 0)) throw fault("image_cond_noise_scale", full.imageCondNoiseScale, "0 or more");
  if (!FORMATS.includes(full.format)) throw fault("format", full.format, `one of ${FORMATS.join(", ")}`);
  const [least, most] = (numFrames > 1 && FRAME_RATES[full.format]) || [0, MAX_FPS];
  if (full.frameRate > most) throw fault("frame_rate", full.frameRate, `at most ${most} for ${full.format}`);
  if (full.frameRate < least) throw fault("frame_rate", full.frameRate, `at least ${least} for ${full.format}`);
  checkConditioning(full);
  if (full.inputMediaPath !== undefined) checkSource(config);
  return { ...full, padded: paddedSize({ height, width, frames: numFrames }) };
}

/**
 * Makes sure that the result can be encoded; what is written without ffmpeg always can.
 * @returns what the user should know of it
 * @throws LtxError `unavailable` without ffmpeg, or without an encoder that takes such a video
 */
export async function checkEncoder(request: CheckedRequest, signal?: AbortSignal): Promise<string[]> {
  const { format, height, width, numFrames, frameRate: fps } = request;
  if (numFrames === 1 || !VIDEO_OUTPUTS.includes(format)) return [];
  const size = { height, width, channels: 3 };
  const instead = "choose --format gif or webp, which need nothing";
  const { name } = await videoEncoder(`the video as ${format}`, size, { fps, signal }, instead);
  const usual = usualEncoder(format);
  if (name === usual) return [];
  return [`this ffmpeg has no ${usual} for ${width}x${height}: the video is encoded by ${name}, and larger for that`];
}

function checkConditioning(request: CheckedRequest): void {
  const { conditioningMediaPaths: paths, conditioningStrengths, conditioningStartFrames, numFrames } = request;
  const lists = { conditioning_strengths: conditioningStrengths, conditioning_start_frames: conditioningStartFrames };
  for (const [name, list] of Object.entries(lists)) {
    if (!list) continue;
    check(paths !== undefined, "invalid_argument", () => `[generate] ${name} needs conditioning_media_paths`);
    check(list.length === paths.length, "invalid_argument", () => {
      return `[generate] give one of ${name} for each of the ${paths.length} conditioning_media_paths, got ${list.length}`;
    });
  }
  if (!paths) return;
  check(conditioningStartFrames !== undefined, "invalid_argument", () => {
    return "[generate] conditioning_media_paths need conditioning_start_frames: the frame at which each begins, 0 for the first";
  });
  for (const strength of conditioningStrengths ?? []) {
    check(strength >= 0 && strength <= 1, "invalid_argument", () => {
      return `[generate] conditioning_strengths must be from 0 (no influence) to 1 (kept), got ${strength}`;
    });
  }
  for (const frame of conditioningStartFrames) {
    check(Number.isSafeInteger(frame) && frame >= 0 && frame < numFrames, "invalid_argument", () => {
      return `[generate] conditioning_start_frames must lie in the video, 0 to ${numFrames - 1}, got ${frame}`;
    });
  }
}

/** A video that one starts from is drowned in noise if all steps are taken. */
function checkSource(config: PipelineConfig): void {
  const { skip_initial_inference_steps: skip = 0, timesteps } = config.first_pass ?? config;
  const begins = timesteps?.[skip];
  check(begins === undefined ? skip > 0 : begins < 1, "invalid_argument", () => {
    const first = config.first_pass
      ? "first_pass: { skip_initial_inference_steps: … }"
      : "skip_initial_inference_steps";
    return (
      "[generate] input_media_path is what drawing starts from, but the first step begins with pure noise: leave some " +
      `steps out by ${first} (about a third of them keeps the composition)`
    );
  });
}

/** A clip that a video is to show from `startFrame` on. */
export interface ConditioningMedia {
  path: string;
  clip: PixelClip;
  startFrame: number;
  strength: number;
}

export interface RequestMedia {
  conditioning: ConditioningMedia[];
  source?: PixelClip;
  /** What its reader should know. */
  notices: string[];
}

/**
 * Reads the images and videos of a request and brings them to its size, as clips in [-1, 1].
 * @throws LtxError `invalid_argument` when one doesn't fit, and as {@link readMedia}
 */
export async function readRequestMedia(request: CheckedRequest, signal?: AbortSignal): Promise<RequestMedia> {
  const { inputMediaPath, conditioningMediaPaths: paths = [], padded } = request;
  const notices: string[] = [];
  const compressed = (paths.length === 0 && inputMediaPath === undefined) || (await hasX264(signal));
  if (!compressed) {
    notices.push(
      "without an ffmpeg that has libx264 the given images are used as they are; the models were trained on frames from " +
        "compressed videos, and move better from such ones",
    );
  }
  const size = { height: request.height, width: request.width, padding: padded.padding };
  const options = { crf: compressed ? undefined : 0, signal, onNotice: (notice: string) => notices.push(notice) };
  const conditioning: ConditioningMedia[] = [];
  for (const [i, path] of paths.entries()) {
    const startFrame = request.conditioningStartFrames?.[i] ?? 0;
    // One more than fits shows whether something is left out.
    const media = await readMedia(path, {
      maxFrames: request.numFrames - startFrame + 1,
      signal,
      onNotice: options.onNotice,
    });
    const frames = conditioningFrames(startFrame, media.frames, request.numFrames);
    check(frames === 1 || startFrame % 8 === 0, "invalid_argument", () => {
      const nearest = [Math.floor(startFrame / 8) * 8, Math.ceil(startFrame / 8) * 8];
      return (
        `[generate] ${path} has ${media.frames} frames: a video must begin at a multiple of 8, got ` +
        `conditioning_start_frames ${startFrame}, nearest ${nearest.join(" or ")}; single images may begin anywhere`
      );
    });
    const clip = await prepareMedia(firstFrames(media, frames), size, "conditioning", options);
    const strength = request.conditioningStrengths?.[i] ?? 1;
    conditioning.push({ path, clip, startFrame, strength });
    if (frames < media.frames) {
      const used = frames === 1 ? "the first frame is" : `the first ${frames} frames are`;
      notices.push(`of ${path} ${used} used: as many of 8k+1 as fit into ${request.numFrames}`);
    }
  }
  if (inputMediaPath === undefined) return { conditioning, notices };
  const media = await readMedia(inputMediaPath, { maxFrames: padded.frames, signal, onNotice: options.onNotice });
  check(media.frames === padded.frames, "invalid_argument", () => {
    const most = conditioningFrames(0, media.frames, media.frames);
    return (
      `[generate] ${inputMediaPath} has ${media.frames} frames, a video of ${request.numFrames} needs ${padded.frames}: ` +
      `give a longer one, or --num-frames ${most}`
    );
  });
  return { conditioning, notices, source: await prepareMedia(media, size, "source", options) };
}
