/** Videos to files with ffmpeg: H.264 in MP4, MOV and Matroska, VP9 in WebM, or what this ffmpeg has in their place. */

import { open } from "node:fs/promises";
import { extname } from "node:path";
import { path as checkPath, object, show, text } from "../../arguments.js";
import { check } from "../../errors.js";
import { replaceAtomic } from "../atomic-file.js";
import { type Animation, checkPixels } from "../images.js";
import { framesOf } from "./clip.js";
import { CONTAINERS, type Container, type Encoder, findEncoder, rawInput, type VideoSize } from "./encoders.js";
import { ffmpeg } from "./ffmpeg.js";

export interface WriteVideoOptions {
  /** Frames per second. */
  fps: number;
  /** Constant rate factor: 0 is lossless, more is smaller and worse; default 18 for H.264, 28 for VP9. */
  crf?: number;
  /** Kept in the file as its `comment`. */
  comment?: string;
  signal?: AbortSignal;
}

/** Extensions that {@link writeVideo} knows. */
export const VIDEO_OUTPUTS = [...CONTAINERS.keys()];

/** The encoder that each container is made for; others make larger files. */
export const usualEncoder = (type: string): string | undefined => CONTAINERS.get(type)?.encoders[0].name;

/** The highest frame rate of a video. */
export const MAX_FPS = 1000;

/**
 * The encoder that {@link writeVideo} would take for frames of this size; finding it encodes a black one.
 * @param instead what does without ffmpeg, for messages
 * @throws LtxError as {@link writeVideo}
 */
export async function videoEncoder(
  path: string,
  size: Omit<VideoSize, "fps">,
  options: WriteVideoOptions,
  instead = "give the file the extension .gif or .webp",
): Promise<Encoder> {
  const { container, crf, fps } = checkOptions(path, options);
  return findEncoder(container, crf, { ...size, fps }, { what: `writing ${path}`, instead, signal: options.signal });
}

function checkOptions(path: string, options: WriteVideoOptions): { container: Container; crf: number; fps: number } {
  checkPath("save", "the file", path);
  const { fps } = object("save", "options", options);
  const container = CONTAINERS.get(extname(path).toLowerCase());
  check(container, "invalid_argument", () => {
    return `[save] cannot tell the format of ${path}; a video needs one of the extensions ${VIDEO_OUTPUTS.join(" ")}`;
  });
  check(Number.isFinite(fps) && fps > 0 && fps <= MAX_FPS, "invalid_argument", () => {
    return `[save] fps must be above 0 and at most ${MAX_FPS}, got ${show(fps)}`;
  });
  const { crf = container.crf } = options;
  check(Number.isInteger(crf) && crf >= 0 && crf <= container.maxCrf, "invalid_argument", () => {
    return `[save] crf must be a whole number from 0 to ${container.maxCrf}, got ${show(crf)}`;
  });
  return { container, crf, fps };
}

/**
 * Writes a video whose frames have exactly the clip's size. The file appears whole or not at all. Colours are BT.709;
 * with an odd side they are stored at full resolution where the encoder can, which some players can't show.
 * @throws LtxError `invalid_argument`, `unavailable` without ffmpeg or an encoder, `io`, `aborted`
 */
export async function writeVideo(path: string, video: Animation, options: WriteVideoOptions): Promise<void> {
  const { container } = checkOptions(path, options);
  const { fps, comment, signal } = options;
  if (comment !== undefined) text("save", "comment", comment);
  object("save", "video", video);
  checkPixels(video, video.frames);
  const { args, pixels } = await videoEncoder(path, video, options);
  const colours = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"];
  // A prompt may be longer than a program's argument may be.
  const about = comment === undefined ? [] : ["-f", "ffmetadata", "-i", "pipe:3", "-map", "0:v", "-map_metadata", "1"];
  // QuickTime's own comment has a length of 16 bits; longer ones get a tag of another kind.
  const longMov = container.muxer === "mov" && Buffer.byteLength(comment ?? "") > 0xffff;
  const flags = longMov ? "+faststart+use_metadata_tags" : "+faststart";
  await replaceAtomic(path, async (temporary) => {
    await ffmpeg(
      [
        ...[...rawInput({ ...video, fps }), ...about, "-an"],
        ...["-vf", `scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,format=${pixels}`],
        ...[...args, ...colours, "-movflags", flags, "-f", container.muxer, `file:${temporary}`],
      ],
      {
        what: `writing ${path}`,
        input: framesOf(video),
        extra: comment === undefined ? undefined : ffmetadata({ comment }),
        signal,
        failure: "io",
      },
    );
    const file = await open(temporary, "r+");
    await file.sync().finally(() => file.close());
  });
}

/** Tags in ffmpeg's own text format. */
function ffmetadata(tags: Record<string, string>): Buffer {
  const escaped = (text: string) => text.replaceAll("\0", " ").replace(/[=;#\\\n]/g, "\\$&");
  const lines = Object.entries(tags).map(([name, value]) => `${escaped(name)}=${escaped(value)}\n`);
  return Buffer.from(`;FFMETADATA1\n${lines.join("")}`);
}
