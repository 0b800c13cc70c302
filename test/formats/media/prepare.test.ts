import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import type { Animation } from "../../../lib/formats/images.js";
import { resizeBicubic } from "../../../lib/formats/media/bicubic.js";
import { blur } from "../../../lib/formats/media/blur.js";
import { crop, firstFrames, framesOf, type PixelClip } from "../../../lib/formats/media/clip.js";
import { compressFrame } from "../../../lib/formats/media/compress.js";
import { prepareMedia } from "../../../lib/formats/media/prepare.js";
import { paddedSize } from "../../../lib/formats/media/sizes.js";
import { failure } from "../../support/failure.js";
import { withEnv, withoutFfmpeg } from "../../support/ffmpeg.js";
import { distance, flat, waves } from "../../support/frames.js";

const bytes = (frames: number, height: number, width: number): Animation => ({
  ...flat(frames, height, width, 0),
  data: Uint8Array.from({ length: frames * height * width * 3 }, (_, i) => (i * 37) % 256),
});

/** A frame blurred, in [-1, 1]. */
const softSigned = async (frame: Animation) => Float32Array.from(await blur(frame), (v) => (v * 255) / 127.5 - 1);
/** What bytes are in [-1, 1]. */
const signed = (data: Uint8Array) => Float32Array.from(data, (v) => (Math.fround(v / 255) * 255) / 127.5 - 1);
/** Bytes of a clip in [-1, 1]. */
const unsigned = ({ data }: PixelClip) => Uint8Array.from(data, (v) => Math.round((v + 1) * 127.5));

describe("media for a model", () => {
  const media = bytes(2, 6, 8);
  const size = { height: 3, width: 4 };

  it.each([1, 2])("that condition stay as large as they are, %s frames, and go to [-1, 1]", async (frames) => {
    const part = firstFrames(media, frames);
    const item = await prepareMedia(part, size, "conditioning", { crf: 0 });
    expect(item).toMatchObject({ frames, height: 6, width: 8, channels: 3 });
    for (const [i, data] of framesOf(part).entries()) {
      expect(item.data.subarray(i * 144, (i + 1) * 144)).toEqual(await softSigned({ ...part, frames: 1, data }));
    }
  });

  it("that condition are cut to the proportions first", async () => {
    const tall = await prepareMedia(media, { height: 6, width: 3 }, "conditioning", { crf: 0 });
    expect(tall).toMatchObject({ height: 6, width: 3 });
    const cut = crop(firstFrames(media, 1), { left: 2, top: 0, height: 6, width: 3 });
    expect(tall.data.subarray(0, 54)).toEqual(await softSigned(cut));
  });

  it("that are a source are scaled as PIL does it", async () => {
    const source = await prepareMedia(media, size, "source", { crf: 0 });
    expect(source).toMatchObject({ frames: 2, height: 3, width: 4 });
    const [first] = framesOf(media);
    const small = await resizeBicubic({ ...media, data: first }, 3, 4);
    expect(source.data.subarray(0, 36)).toEqual(await softSigned({ ...small, frames: 1 }));
  });

  it("lie exactly inside of their padding", async () => {
    const { height, width, padding } = paddedSize({ height: 3, width: 5, frames: 2 }, { space: 4 });
    const item = await prepareMedia(media, { height: 3, width: 5, padding }, "conditioning", { crf: 0 });
    expect(item).toMatchObject({ height, width });
    const inner = crop(item, { left: padding.left, top: padding.top, height: 3, width: 5 });
    const alone = await prepareMedia(media, { height: 3, width: 5 }, "source", { crf: 0 });
    expect(inner.data).toEqual(alone.data);
    const zeros = item.data.filter((value) => value === 0).length;
    expect(zeros).toBe(item.data.length - inner.data.length + inner.data.filter((value) => value === 0).length);
  });

  it.each<[string, () => Promise<unknown>, string, string]>([
    ["grey frames", () => prepareMedia({ ...media, channels: 1 }, size, "source"), "shape_mismatch", "got 1"],
    ["too few bytes", () => prepareMedia({ ...media, frames: 3 }, size, "source"), "shape_mismatch", "need 432 bytes"],
    ["a height of 0", () => prepareMedia(media, { height: 0, width: 4 }, "source"), "invalid_argument", "height"],
    ["half a pixel", () => prepareMedia(media, { height: 3, width: 0.5 }, "source"), "invalid_argument", "got 0.5"],
    [
      "negative padding",
      () => prepareMedia(media, { ...size, padding: { left: -1, right: 0, top: 0, bottom: 0 } }, "source"),
      "invalid_argument",
      "left must be a whole number from 0, got -1",
    ],
    ["an unknown rate factor", () => prepareMedia(media, size, "source", { crf: 52 }), "invalid_argument", "got 52"],
  ])("are refused with %s", async (_, run, code, reason) => {
    expect(await failure(run)).toMatchObject({ code, message: expect.stringContaining(reason) });
  });

  it("of 50 megapixels are prepared while timers run", async () => {
    const photo = flat(1, 6120, 8160, 100);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    const clip = await prepareMedia(photo, { height: 704, width: 939 }, "conditioning", { crf: 0 });
    clearInterval(timer);
    // No matcher for objects here: they copy all values into a list.
    expect([clip.height, clip.width, clip.data.length]).toEqual([6117, 8160, 6117 * 8160 * 3]);
    for (const at of [0, 77_777_777, clip.data.length - 1]) expect(clip.data[at]).toBeCloseTo(100 / 127.5 - 1, 5);
    expect(ticks).toBeGreaterThan(10);
  }, 120_000);

  it("stop in the middle of a picture", async () => {
    const stop = new AbortController();
    setTimeout(() => stop.abort(), 5);
    const work = prepareMedia(flat(1, 3000, 4000, 1), { height: 300, width: 400 }, "source", {
      crf: 0,
      signal: stop.signal,
    });
    expect(await failure(() => work)).toMatchObject({ code: "aborted" });
  });

  it("too many to keep at their own resolution are scaled at once, with a notice", async () => {
    // Zeros that are never written take no memory.
    const video = flat(180, 1080, 1920, 0);
    const notices: string[] = [];
    const stop = new AbortController();
    const work = prepareMedia(video, { height: 96, width: 160 }, "conditioning", {
      crf: 0,
      signal: stop.signal,
      onNotice: (text) => {
        notices.push(text);
        stop.abort();
      },
    });
    expect(await failure(() => work)).toMatchObject({ code: "aborted" });
    expect(notices).toEqual([expect.stringMatching(/180 frames of 1800x1080 are scaled to 160x96 .* 3\.9 GiB/)]);
  });
});

describe.skipIf(withoutFfmpeg)("frames through H.264", () => {
  /** What ffmpeg itself makes of a frame at a rate. */
  function byHand({ data, height, width }: Animation, rate: number): Uint8Array {
    const raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", `${width}x${height}`];
    const codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "29", "-pix_fmt", "yuv420p", "-threads", "1"];
    const run = (args: string[], input: Uint8Array) =>
      execFileSync("ffmpeg", ["-v", "error", ...args, "pipe:1"], { input, maxBuffer: 2 ** 30 });
    const stream = run([...raw, "-framerate", String(rate), "-i", "pipe:0", ...codec, "-f", "h264"], data);
    return run(["-f", "h264", "-i", "pipe:0", "-f", "rawvideo", "-pix_fmt", "rgb24"], stream);
  }

  const grain = { ...waves(1, 144, 176) };
  grain.data.forEach((value, i) => {
    grain.data[i] = value + ((i * 7919) % 41) - 20;
  });

  it("are compressed as a video of one frame a second, as officially", async () => {
    const { data } = await compressFrame(grain);
    expect(distance(data, byHand(grain, 1))).toBe(0);
    expect(distance(data, grain.data)).toBeLessThan(0.8 * distance(byHand(grain, 25), grain.data));
  });

  it("lose more at a higher rate factor", async () => {
    const at = async (crf: number) => distance((await compressFrame(grain, { crf })).data, grain.data);
    expect(await at(10)).toBeLessThan(await at(29));
    expect(await at(29)).toBeLessThan(await at(51));
  });

  it("are blurred, and cut off below, before it", async () => {
    const clip = waves(3, 33, 47);
    const item = await prepareMedia(clip, { height: 33, width: 47 }, "conditioning");
    expect(item).toMatchObject({ frames: 3, height: 32, width: 46 });
    for (const [i, data] of framesOf(clip).entries()) {
      const soft = Uint8Array.from(await blur({ ...clip, data }), (v) => Math.floor(Math.fround(v * 255)));
      const even = crop({ ...clip, frames: 1, data: soft }, { left: 0, top: 0, height: 32, width: 46 });
      const { data: expected } = await compressFrame(even);
      expect(item.data.subarray(i * expected.length, (i + 1) * expected.length)).toEqual(signed(expected));
    }
  });

  it("keep odd sizes where they are scaled", async () => {
    const source = await prepareMedia(waves(1, 40, 60), { height: 33, width: 47 }, "source");
    expect(source).toMatchObject({ height: 33, width: 47 });
    const plain = await prepareMedia(waves(1, 40, 60), { height: 33, width: 47 }, "source", { crf: 0 });
    expect(distance(unsigned(source), unsigned(plain))).toBeLessThan(6);
  });

  it("may be a single pixel", async () => {
    const dot = await prepareMedia(flat(1, 1, 1, 90), { height: 1, width: 1 }, "conditioning");
    expect(dot).toMatchObject({ height: 2, width: 2 });
    expect(distance(unsigned(dot), new Uint8Array(12).fill(90))).toBeLessThan(4);
  });
});

describe("without ffmpeg", () => {
  it("frames are not compressed, and the error names it", async () => {
    await withEnv({ LTX_FFMPEG: "/no/such/program" }, async () => {
      const error = await failure(() => prepareMedia(waves(1, 8, 8), { height: 8, width: 8 }, "source"));
      expect(error).toMatchObject({ code: "unavailable", message: expect.stringContaining("/no/such/program") });
    });
  });
});
