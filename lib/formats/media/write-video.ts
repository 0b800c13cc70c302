/** Videos to files with ffmpeg: H.264 in MP4, MOV and Matroska, VP9 in WebM. */
import { open } from "node:fs/promises";
import { extname } from "node:path";
import { check } from "../../errors.js";
import { replaceAtomic } from "../atomic-file.js";
import { type Animation, checkPixels } from "../images.js";
import { framesOf } from "./clip.js";
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

interface Format {
  muxer: string;
  codec: string[];
  crf: number;
  maxCrf: number;
}

const h264 = { codec: ["-c:v", "libx264", "-preset", "medium"], crf: 18, maxCrf: 51 };
const FORMATS: Record<string, Format> = {
  ".mp4": { ...h264, muxer: "mp4" },
  ".mov": { ...h264, muxer: "mov" },
  ".mkv": { ...h264, muxer: "matroska" },
  ".webm": { muxer: "webm", codec: ["-c:v", "libvpx-vp9", "-b:v", "0", "-row-mt", "1"], crf: 28, maxCrf: 63 },
};

/** Extensions that {@link writeVideo} knows. */
export const VIDEO_OUTPUTS = Object.keys(FORMATS);

const MAX_FPS = 1000;

/**
 * Writes a video whose frames have exactly the clip's size. The file appears whole or not at all. Colours are BT.709;
 * with an odd side they are stored at full resolution, which some players can't show.
 * @throws LtxError `invalid_argument`, `unavailable` without ffmpeg or its encoder, `file_format`, `io`, `aborted`
 */
export async function writeVideo(path: string, video: Animation, options: WriteVideoOptions): Promise<void> {
  const { fps, comment, signal } = options;
  const format = FORMATS[extname(path).toLowerCase()];
  check(format !== undefined, "invalid_argument", () => {
    return `[save] cannot tell the format of ${path}; a video needs one of the extensions ${VIDEO_OUTPUTS.join(" ")}`;
  });
  check(Number.isFinite(fps) && fps > 0 && fps <= MAX_FPS, "invalid_argument", () => {
    return `[save] fps must be above 0 and at most ${MAX_FPS}, got ${fps}`;
  });
  const { crf = format.crf } = options;
  check(Number.isInteger(crf) && crf >= 0 && crf <= format.maxCrf, "invalid_argument", () => {
    return `[save] crf must be a whole number from 0 to ${format.maxCrf}, got ${crf}`;
  });
  checkPixels(video, video.frames);
  const { height, width, channels } = video;
  const pixels = height % 2 === 0 && width % 2 === 0 ? "yuv420p" : "yuv444p";
  const input = ["-f", "rawvideo", "-pix_fmt", channels === 1 ? "gray" : "rgb24", "-s", `${width}x${height}`];
  const colours = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"];
  const about = comment === undefined ? [] : ["-metadata", `comment=${comment}`];
  await replaceAtomic(path, async (temporary) => {
    await ffmpeg(
      [
        ...[...input, "-framerate", String(fps), "-i", "pipe:0", "-an"],
        ...["-vf", `scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,format=${pixels}`],
        ...[...format.codec, "-crf", String(crf), ...colours, ...about],
        ...["-movflags", "+faststart", "-f", format.muxer, `file:${temporary}`],
      ],
      { what: `writing ${path}`, instead: "give the file the extension .gif or .webp", input: framesOf(video), signal },
    );
    const file = await open(temporary, "r+");
    await file.sync().finally(() => file.close());
  });
}
