/** What ffmpeg says about a file before it reads it (`-v info`), for people and so in words. */

export interface VideoStream {
  /** Among all streams of the file. */
  index: number;
  /** `Video`, `Audio`, `Subtitle`, `Data`, `Attachment`. */
  type: string;
  /** A picture of the file, not its content: a cover, a thumbnail. */
  cover: boolean;
  /** The one that players show first. */
  main: boolean;
  width: number;
  height: number;
  /** Width of a pixel, as a part of its height. */
  aspect: number;
  /** Frames a second, on average. */
  rate?: number;
  /** The transfer function, where it is one of high dynamic range. */
  hdr?: "PQ" | "HLG";
  interlaced: boolean;
}

export interface VideoInfo {
  seconds?: number;
  streams: VideoStream[];
}

/** Numbers as ffmpeg shortens them: 23.98, 1k, 90k. */
const number = (text: string | undefined): number | undefined => {
  if (text === undefined) return undefined;
  const value = Number.parseFloat(text) * (text.endsWith("k") ? 1000 : 1);
  return value > 0 ? value : undefined;
};

/** Reads the description of the first input; what is not there is left out. */
export function parseVideoInfo(text: string): VideoInfo {
  const [, input = ""] = text.split(/^Input #0/m);
  const [described] = input.split(/^Output #0/m);
  const [, hours, minutes, seconds] = /^\s*Duration: (\d+):(\d+):([\d.]+)/m.exec(described) ?? [];
  const streams = [...described.matchAll(/^\s*Stream #0:(\d+)[^ ]*: (\w+): (.*)$/gm)].map(([, index, type, words]) => {
    const [, width = "0", height = "0"] = /, (\d+)x(\d+)/.exec(words) ?? [];
    // Where container and codec differ the container's comes last, and holds.
    const [, across, down] = [...words.matchAll(/SAR (\d+):(\d+)/g)].pop() ?? [];
    const aspect = Number(across) / Number(down);
    return {
      index: Number(index),
      type,
      cover: /\((attached pic|timed thumbnails|still image)\)/.test(words),
      main: words.includes("(default)"),
      width: Number(width),
      height: Number(height),
      aspect: aspect > 0 && Number.isFinite(aspect) ? aspect : 1,
      rate: number(/, ([\d.]+k?) fps/.exec(words)?.[1]),
      hdr: words.includes("smpte2084")
        ? ("PQ" as const)
        : words.includes("arib-std-b67")
          ? ("HLG" as const)
          : undefined,
      interlaced: /\b(top|bottom) (coded )?first\b/.test(words),
    };
  });
  return {
    seconds: hours === undefined ? undefined : Number(hours) * 3600 + Number(minutes) * 60 + Number(seconds),
    streams,
  };
}

/** When the frames are shown, in seconds, from the list that ffmpeg's `framecrc` makes of them. */
export function parseTimes(list: string): number[] {
  const [, numerator, denominator] = /^#tb 0: (\d+)\/(\d+)/m.exec(list) ?? [];
  const times = [...list.matchAll(/^0, *-?\d+, *(-?\d+),/gm)].map(([, time]) => Number(time));
  return times.map((time) => (time * Number(numerator)) / Number(denominator));
}

/** Part of the usual time between frames that one may be off, or the whole video: files round times. */
const JITTER = 0.25;
const DRIFT = 0.1;
/** Part of the frames that may come early or late. */
const OUTLIERS = 0.05;

/** Whether frames at these times move as they do when they are shown at one rate. */
export function isSteady(times: readonly number[]): boolean {
  const steps = times.slice(1).map((time, i) => time - times[i]);
  if (steps.length < 2) return true;
  const usual = [...steps].sort((a, b) => a - b)[Math.floor(steps.length / 2)];
  const off = steps.filter((step) => Math.abs(step - usual) > JITTER * usual).length;
  const whole = times[times.length - 1] - times[0];
  return off <= OUTLIERS * steps.length && Math.abs(whole - usual * steps.length) <= DRIFT * whole;
}
