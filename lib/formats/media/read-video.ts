/** Frames of videos through ffmpeg, which is told everything that it would guess. */
import { check } from "../../errors.js";
import type { Animation } from "../images.js";
import { ffmpeg } from "./ffmpeg.js";
import type { Kind } from "./kind.js";
import { type OnNotice, warn } from "./notice.js";
import { PPM, PpmFrames } from "./ppm.js";
import { isSteady, parseTimes, parseVideoInfo, type VideoInfo, type VideoStream } from "./video-info.js";

/** Letters of ffmpeg's description of a file, all its metadata included. */
const MAX_DESCRIPTION = 2 ** 22;
/** How far apart two numbers of frames, or the sides of a pixel, may be without a word: what files round. */
const CLOSE = 0.02;
/** Pixels this much longer one way than the other are a fault in the file. */
const MAX_STRETCH = 4;

export interface ReadVideoOptions {
  maxFrames?: number;
  signal?: AbortSignal;
  onNotice?: OnNotice;
}

/**
 * Every frame of a video once, upright, with square pixels, in RGB of 8 bits.
 * @throws LtxError `file_format` where there is no picture, `unavailable` without ffmpeg, `out_of_memory`, `aborted`
 */
export async function readVideo(
  path: string,
  kind: Kind,
  { maxFrames, signal, onNotice = warn }: ReadVideoOptions = {},
): Promise<Animation> {
  const run = { what: `reading ${path}`, instead: "give a GIF, a WebP or a folder of images", signal };
  // "file:" keeps names with colons or a leading hyphen from being read as something else. The format is forced: asked to
  // find it out, ffmpeg would take a playlist for a video and open what it names.
  const input = ["-protocol_whitelist", "file,pipe", "-f", kind.format as string, "-i", `file:${path}`];
  const description = ["-v", "info", "-hide_banner", "-nostats", ...input, "-f", "ffmetadata", "pipe:1"];
  const info = parseVideoInfo(await ffmpeg(description, { ...run, keep: MAX_DESCRIPTION }));
  const stream = chosen(path, info, onNotice);
  const expected = info.seconds && stream.rate ? Math.round(info.seconds * stream.rate) : undefined;
  const frames = new PpmFrames(path, expected && Math.min(expected, maxFrames ?? expected));
  const limit = maxFrames === undefined ? [] : ["-frames:v", String(maxFrames)];
  const square = squarePixels(path, stream, onNotice);
  let times = "";
  const decode = (timing: readonly string[]) => {
    const each = ["-map", `0:${stream.index}`, ...timing, "-enc_time_base", "-1", ...limit];
    // The same frames again, as a list of their times, from a picture that costs nothing.
    const list = ["-vf", "scale=8:8", "-c:v", "rawvideo", "-f", "framecrc", "pipe:4"];
    return ffmpeg(["-autorotate", "1", ...input, ...each, ...square, ...PPM, "pipe:1", ...each, ...list], {
      ...run,
      onOutput: (chunk) => frames.push(chunk),
      onSide: (chunk) => {
        times += chunk;
      },
    });
  };
  const complaint = await decode(["-fps_mode", "passthrough"]).catch((error) => {
    // Before version 5.1 the option had another name.
    if (!/fps_mode/.test(error.message)) throw error;
    return decode(["-vsync", "passthrough"]);
  });
  const says = complaint === "" ? "" : `; ffmpeg says: ${lastLine(complaint)}`;
  check(frames.count > 0, "file_format", () => `[media] no frame of ${path} can be read${says}`);
  const at = parseTimes(times);
  // Frames at no steady rate can't be counted by the time that they fill: they are all there if they reach the end.
  const steady = isSteady(at);
  const gaps = at.slice(1).map((time, i) => time - at[i]);
  const reaches = at[at.length - 1] + Math.max(0, ...gaps) >= (info.seconds ?? 0) * (1 - CLOSE);
  const counted = steady || !reaches ? expected : undefined;
  noticeDamage(path, frames.count, { expected: counted, maxFrames, says }, onNotice);
  if (!steady) {
    onNotice(
      `the frames of ${path} do not come at a steady rate: each is read once, so that motion may change its speed`,
    );
  }
  return frames.animation();
}

/** The stream to read: the one that players show, else the largest; covers of music are none. */
function chosen(path: string, { streams }: VideoInfo, onNotice: OnNotice): VideoStream {
  const videos = streams.filter(({ type, cover }) => type === "Video" && !cover);
  check(videos.length > 0, "file_format", () => {
    const cover = streams.some((stream) => stream.cover);
    const kinds = [...new Set(streams.map(({ type }) => type.toLowerCase()))].join(", ");
    const holds = cover ? "sound with a cover picture" : streams.length > 0 ? `only ${kinds}` : "no streams";
    return `[media] ${path} holds no video: there is ${holds}`;
  });
  const [first, ...rest] = [...videos].sort((a, b) => {
    return Number(b.main) - Number(a.main) || b.width * b.height - a.width * a.height || a.index - b.index;
  });
  if (rest.length > 0) {
    const size = ({ index, width, height }: VideoStream) => `stream ${index} (${width}x${height})`;
    onNotice(`${path} has ${videos.length} videos: ${size(first)} is read, ${rest.map(size).join(", ")} left out`);
  }
  if (first.hdr) onNotice(`${path} is in HDR (${first.hdr}): its colours are read as they are and may look pale`);
  if (first.interlaced) onNotice(`${path} is interlaced: frames are read with both fields, which shows in motion`);
  return first;
}

/** Scales pixels that are not square along their longer side, so that nothing is lost. */
function squarePixels(path: string, { width, height, aspect }: VideoStream, onNotice: OnNotice): string[] {
  if (Math.abs(aspect - 1) <= CLOSE) return [];
  const stretch = Math.max(aspect, 1 / aspect);
  if (!(stretch <= MAX_STRETCH)) {
    onNotice(`${path} says that its pixels are ${aspect} times as wide as high, which is ignored`);
    return [];
  }
  onNotice(`${path} has pixels that are not square: its frames of ${width}x${height} are stretched as players do`);
  const [wide, high] = ["if(gt(sar,1),round(iw*sar),iw)", "if(lt(sar,1),round(ih/sar),ih)"];
  return ["-vf", `scale=w='${wide}':h='${high}',setsar=1`];
}

function noticeDamage(
  path: string,
  count: number,
  { expected, maxFrames, says }: { expected?: number; maxFrames?: number; says: string },
  onNotice: OnNotice,
): void {
  const wanted = Math.min(expected ?? count, maxFrames ?? Number.POSITIVE_INFINITY);
  // The number of frames is reckoned from times that files round.
  const missing = wanted - count > Math.max(1, wanted * CLOSE);
  if (!missing && says === "") return;
  const read = missing ? `${count} of about ${wanted} frames could be read` : `${count} frames were read`;
  onNotice(`${path} may be damaged or incomplete: ${read}${says}`);
}

function lastLine(complaint: string): string {
  const lines = complaint.split("\n").filter((line) => line.trim() !== "");
  return lines[lines.length - 1].replace(/^\[[^\]]* @ [^\]]*\]\s*/, "");
}
