/**
 * The encoders that this machine's ffmpeg has. Builds differ: Fedora's and conda's come without libx264. An encoder counts
 * as there when it has encoded a frame of the video's size: names in a list say less.
 */
import { LtxError } from "../../errors.js";
import { ffmpeg, INSTALL } from "./ffmpeg.js";

export interface VideoSize {
  height: number;
  width: number;
  channels: number;
  fps: number;
}

/** A way to encode, with its arguments for one rate factor. */
export interface Encoder {
  /** ffmpeg's name. */
  name: string;
  args: readonly string[];
  /** The pixel format that it is given. */
  pixels: string;
}

interface Candidate {
  name: string;
  /** Rate factors go from 0 to this; others are mapped to what the encoder has. */
  maxCrf: number;
  /** Whether 0 keeps every pixel. */
  lossless: boolean;
  args(crf: number, size: VideoSize): string[];
  pixels(size: VideoSize): string;
}

const even = ({ height, width }: VideoSize): boolean => height % 2 === 0 && width % 2 === 0;
const subsampled = (): string => "yuv420p";
/** A sixth of the pixels' bytes: more than is ever needed, as a limit for encoders that want one. */
const bitRate = ({ height, width, fps }: VideoSize): string => String(Math.ceil(height * width * fps * 4));
/** A rate factor of H.264 as a quantiser from 1 (best) to 31. */
const quantiser = (crf: number): string => String(Math.max(1, Math.min(31, Math.round(2 + ((crf - 18) * 29) / 33))));

const X264: Candidate = {
  name: "libx264",
  maxCrf: 51,
  lossless: true,
  args: (crf) => ["-c:v", "libx264", "-preset", "medium", "-crf", String(crf)],
  pixels: (size) => (even(size) ? "yuv420p" : "yuv444p"),
};
const OPENH264: Candidate = {
  name: "libopenh264",
  maxCrf: 51,
  lossless: false,
  args: (crf, size) => ["-c:v", "libopenh264", "-qmin", String(crf), "-qmax", String(crf), "-b:v", bitRate(size)],
  pixels: subsampled,
};
const MPEG4: Candidate = {
  name: "mpeg4",
  maxCrf: 51,
  lossless: false,
  args: (crf) => ["-c:v", "mpeg4", "-q:v", quantiser(crf)],
  pixels: subsampled,
};
const VP9: Candidate = {
  name: "libvpx-vp9",
  maxCrf: 63,
  lossless: true,
  args: (crf) => ["-c:v", "libvpx-vp9", "-b:v", "0", "-row-mt", "1", "-crf", String(crf)],
  pixels: (size) => (even(size) ? "yuv420p" : "yuv444p"),
};
const VP8: Candidate = {
  name: "libvpx",
  maxCrf: 63,
  lossless: false,
  args: (crf, size) => ["-c:v", "libvpx", "-b:v", bitRate(size), "-crf", String(Math.max(4, crf))],
  pixels: subsampled,
};

export interface Container {
  muxer: string;
  crf: number;
  maxCrf: number;
  /** In the order of preference: the later ones make larger files. */
  encoders: readonly Candidate[];
}

const h264 = { crf: 18, maxCrf: 51, encoders: [X264, OPENH264, MPEG4] };
export const CONTAINERS: ReadonlyMap<string, Container> = new Map([
  [".mp4", { ...h264, muxer: "mp4" }],
  [".mov", { ...h264, muxer: "mov" }],
  [".mkv", { ...h264, muxer: "matroska" }],
  [".webm", { muxer: "webm", crf: 28, maxCrf: 63, encoders: [VP9, VP8] }],
]);

/** How frames of bytes are given to ffmpeg. */
export const rawInput = ({ height, width, channels, fps }: VideoSize): string[] => [
  ...["-f", "rawvideo", "-pix_fmt", channels === 1 ? "gray" : "rgb24", "-s", `${width}x${height}`],
  ...["-framerate", String(fps), "-i", "pipe:0"],
];

/**
 * The first of a container's encoders that works for frames of this size.
 * @param crf constant rate factor; 0 takes encoders without loss only
 * @throws LtxError `unavailable` without ffmpeg, or with what each of its encoders said; `aborted`
 */
export async function findEncoder(
  { muxer, encoders }: Container,
  crf: number,
  size: VideoSize,
  { what, instead, signal }: { what: string; instead: string; signal?: AbortSignal },
): Promise<Encoder> {
  const complaints: string[] = [];
  for (const candidate of encoders) {
    if (crf === 0 && !candidate.lossless) continue;
    const encoder = { name: candidate.name, args: candidate.args(crf, size), pixels: candidate.pixels(size) };
    try {
      await encodeNothing(encoder, muxer, size, { what, instead, signal });
      return encoder;
    } catch (error) {
      // Without any ffmpeg the next encoder is not there either.
      if (!(error instanceof LtxError) || ["aborted", "unavailable"].includes(error.code)) throw error;
      complaints.push(`${candidate.name}: ${error.message.replace(/^.* failed: /, "")}`);
    }
  }
  const lossless = crf === 0 ? " without loss (crf 0)" : "";
  throw new LtxError(
    "unavailable",
    `[ffmpeg] ${what}: this ffmpeg can't encode ${size.width}x${size.height}${lossless} (${complaints.join("; ")}): ` +
      `${INSTALL}, or ${instead}`,
  );
}

/** Whether this machine's ffmpeg has libx264, with which frames that condition a video are compressed. */
export function hasX264(signal?: AbortSignal): Promise<boolean> {
  const size = { height: 16, width: 16, channels: 3, fps: 1 };
  const encoder = { name: X264.name, args: X264.args(29, size), pixels: "yuv420p" };
  return encodeNothing(encoder, "h264", size, { what: "trying libx264", signal }).then(
    () => true,
    (error: LtxError) => {
      if (error.code === "aborted") throw error;
      return false;
    },
  );
}

/** Encodes a black frame and throws it away. */
async function encodeNothing(
  { args, pixels }: Encoder,
  muxer: string,
  size: VideoSize,
  run: { what: string; instead?: string; signal?: AbortSignal },
): Promise<void> {
  const frame = new Uint8Array(size.height * size.width * size.channels);
  // Into a pipe, where MP4 and MOV need their parts in the order of time.
  const parts = muxer === "mp4" || muxer === "mov" ? ["-movflags", "+frag_keyframe+empty_moov"] : [];
  await ffmpeg([...rawInput(size), "-vf", `format=${pixels}`, ...args, ...parts, "-f", muxer, "pipe:1"], {
    ...run,
    input: [frame],
    failure: "io",
  });
}
