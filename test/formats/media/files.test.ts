import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import sharp from "sharp";
import { describe, expect, it } from "vitest";
import type { LtxError } from "../../../lib/errors.js";
import { commentJson } from "../../../lib/formats/comment.js";
import type { Animation } from "../../../lib/formats/images.js";
import { PpmFrames } from "../../../lib/formats/media/ppm.js";
import { readMedia } from "../../../lib/formats/media/read.js";
import { writeVideo } from "../../../lib/formats/media/write-video.js";
import { Video } from "../../../lib/pipelines/video.js";
import { failure } from "../../support/failure.js";
import { probe, withEnv, withoutFfmpeg } from "../../support/ffmpeg.js";
import { testFolder } from "../../support/folder.js";
import { distance, waves } from "../../support/frames.js";

const folder = testFolder();
const at = (name: string) => join(folder, name);

async function png(name: string, { data, height, width }: Animation): Promise<string> {
  await sharp(data, { raw: { height, width, channels: 3 } })
    .png()
    .toFile(at(name));
  return at(name);
}

describe("PPM", () => {
  const image = (height: number, width: number, data: Uint8Array) =>
    Buffer.concat([Buffer.from(`P6\n${width} ${height}\n255\n`), data]);

  it("is read whole however it is cut", () => {
    const { data } = waves(3, 4, 5);
    const stream = Buffer.concat([0, 1, 2].map((i) => image(4, 5, data.subarray(i * 60, (i + 1) * 60))));
    const cuts = fc.array(fc.integer({ min: 1, max: 90 }), { maxLength: 30 });
    fc.assert(
      fc.property(cuts, (sizes) => {
        const frames = new PpmFrames();
        let from = 0;
        for (const size of [...sizes, stream.length]) {
          frames.push(stream.subarray(from, from + size));
          from += size;
        }
        expect(frames.animation()).toEqual({ data, frames: 3, height: 4, width: 5, channels: 3 });
      }),
    );
  });

  it("is refused when it is something else, or changes its size", async () => {
    expect(await failure(() => new PpmFrames().push(Buffer.alloc(100)))).toMatchObject({ code: "file_format" });
    const frames = new PpmFrames();
    frames.push(image(2, 2, new Uint8Array(12)));
    const error = await failure(() => frames.push(image(2, 3, new Uint8Array(18))));
    expect(error.message).toContain("from 2x2 to 3x2");
  });
});

describe("images", () => {
  it("come in RGB, upright, transparency on black", async () => {
    const colour = waves(1, 4, 6);
    expect(await readMedia(await png("colour.png", colour))).toEqual(colour);
    const grey = Uint8Array.from({ length: 24 }, (_, i) => i * 10);
    await sharp(grey, { raw: { height: 4, width: 6, channels: 1 } })
      .png()
      .toFile(at("grey.png"));
    expect((await readMedia(at("grey.png"))).data.filter((_, i) => i % 3 === 0)).toEqual(grey);
    const clear = new Uint8Array(8).fill(200).map((value, i) => (i === 3 ? 0 : i === 7 ? 255 : value));
    await sharp(clear, { raw: { height: 1, width: 2, channels: 4 } })
      .png()
      .toFile(at("clear.png"));
    expect([...(await readMedia(at("clear.png"))).data]).toEqual([0, 0, 0, 200, 200, 200]);
    await sharp(colour.data, { raw: { height: 4, width: 6, channels: 3 } })
      .withMetadata({ orientation: 6 })
      .png()
      .toFile(at("turned.png"));
    expect(await readMedia(at("turned.png"))).toMatchObject({ height: 6, width: 4 });
  });

  it("may be animated, or the frames of a folder", async () => {
    const clip = waves(4, 8, 10);
    await new Video([clip.data], 4, 8, 10, 3).save(at("clip.webp"), { quality: 100 });
    expect(await readMedia(at("clip.webp"))).toEqual(clip);
    expect(await readMedia(at("clip.webp"), { maxFrames: 2 })).toMatchObject({ frames: 2 });
    mkdirSync(at("frames"));
    for (let i = 0; i < 12; i++) await png(`frames/f${i}.png`, { ...waves(1, 2, 2), data: new Uint8Array(12).fill(i) });
    const read = await readMedia(at("frames"), { maxFrames: 11 });
    expect(read.frames).toBe(11);
    expect(read.data.filter((_, i) => i % 12 === 0)).toEqual(Uint8Array.from({ length: 11 }, (_, i) => i));
    await png("frames/f12.png", waves(1, 3, 2));
    expect(await failure(() => readMedia(at("frames")))).toMatchObject({
      code: "shape_mismatch",
      message: expect.stringContaining("f12.png 2x3"),
    });
  });

  it("keep a comment, whatever its letters", async () => {
    const text = commentJson({ prompt: 'ünï "数" \n' });
    expect(text).toMatch(/^[ -~]*$/);
    const clip = waves(2, 8, 8);
    for (const name of ["a.gif", "a.webp", "a.png"]) {
      await new Video([clip.data], 2, 8, 8, 3).save(at(name), { comment: text });
      expect(readFileSync(at(name)).toString("latin1")).toContain(name === "a.gif" ? text.slice(0, 200) : text);
      expect((await sharp(at(name)).metadata()).pages ?? 1).toBe(name === "a.png" ? 1 : 2);
      expect((await readMedia(at(name))).frames).toBe(name === "a.png" ? 1 : 2);
    }
    const webp = readFileSync(at("a.webp"));
    const [exif, size] = [webp.indexOf("EXIF"), webp.readUInt32LE(4)];
    expect(size + 8).toBe(webp.length);
    // The TIFF header itself, of either order of bytes, and its chunk ends where the file or another chunk does.
    expect(["II*\0", "MM\0*"]).toContain(webp.toString("latin1", exif + 8, exif + 12));
    const gif = readFileSync(at("a.gif")).toString("latin1");
    // Before the first frame's graphic control, behind the extension that makes the animation loop.
    expect(gif.indexOf("\x21\xfe")).toBeGreaterThan(gif.indexOf("NETSCAPE2.0"));
    expect(gif.indexOf("\x21\xfe")).toBeLessThan(gif.indexOf("\x21\xf9"));
    expect((await sharp(at("a.gif")).metadata()).loop).toBe(0);
    const long = "x".repeat(1000);
    await new Video([clip.data], 2, 8, 8, 3).save(at("b.gif"), { comment: long });
    expect(await readMedia(at("b.gif"))).toEqual(await readMedia(at("a.gif")));
  });
});

describe.skipIf(withoutFfmpeg)("videos", () => {
  it.each([
    ["a.mp4", "h264", 24],
    ["a.mov", "h264", 12.5],
    ["a.mkv", "h264", 30],
    ["a.webm", "vp9", 25],
  ])("%s has the size, the rate, the frames and the comment", async (name, codec, fps) => {
    const clip = waves(9, 48, 64);
    const comment = commentJson({ prompt: "a=b; c", seed: 3 });
    await writeVideo(at(name), clip, { fps, comment });
    const { stream, tags } = probe(at(name));
    expect(stream).toMatchObject({
      codec_name: codec,
      width: 64,
      height: 48,
      nb_read_frames: "9",
      color_space: "bt709",
    });
    const [n, d] = stream.avg_frame_rate.split("/").map(Number);
    expect(n / d).toBeCloseTo(fps, 1);
    expect(tags.comment ?? tags.COMMENT).toBe(comment);
    const read = await readMedia(at(name));
    expect(read).toMatchObject({ frames: 9, height: 48, width: 64 });
    expect(distance(read.data, clip.data)).toBeLessThan(6);
    expect(await readMedia(at(name), { maxFrames: 3 })).toEqual({
      ...read,
      frames: 3,
      data: read.data.slice(0, 3 * 9216),
    });
    expect(readdirSync(folder).filter((file) => file.endsWith(".tmp"))).toEqual([]);
  });

  it("keep odd sizes and grey ones", async () => {
    const clip = waves(2, 31, 33);
    await writeVideo(at("odd.mp4"), clip, { fps: 10, crf: 0 });
    expect(probe(at("odd.mp4")).stream).toMatchObject({ width: 33, height: 31, pix_fmt: "yuv444p" });
    expect(distance((await readMedia(at("odd.mp4"))).data, clip.data)).toBeLessThan(2);
    const grey = { ...waves(2, 16, 16), channels: 1, data: waves(2, 16, 16).data.filter((_, i) => i % 3 === 0) };
    await new Video([grey.data], 2, 16, 16, 1, ["a prompt"], 7).save(at("grey.mp4"));
    expect(probe(at("grey.mp4")).stream).toMatchObject({ width: 16, height: 16, avg_frame_rate: "7/1" });
  });

  it("leave nothing behind when they fail or are stopped", async () => {
    const stop = new AbortController();
    const clip = waves(60, 256, 256);
    const writing = writeVideo(at("stopped.mp4"), clip, { fps: 10, signal: stop.signal }).catch((error) => error);
    setTimeout(() => stop.abort(), 20);
    expect((await writing) as LtxError).toMatchObject({ code: "aborted" });
    expect(await failure(() => writeVideo(at("none/a.mp4"), clip, { fps: 10 }))).toMatchObject({ code: "io" });
    expect(readdirSync(folder).filter((name) => name.includes("stopped"))).toEqual([]);
    const gone = await failure(() => readMedia(at("a.mp4"), { signal: AbortSignal.abort() }));
    expect(gone.code).toBe("aborted");
  });

  it("say what is wrong with them", async () => {
    const clip = waves(1, 8, 8);
    const codeOf = async (name: string, options: { fps: number; crf?: number }) =>
      (await failure(() => writeVideo(at(name), clip, options))).code;
    expect(await codeOf("a.avi", { fps: 10 })).toBe("invalid_argument");
    expect(await codeOf("a.mp4", { fps: 0 })).toBe("invalid_argument");
    expect(await codeOf("a.mp4", { fps: Number.NaN })).toBe("invalid_argument");
    expect(await codeOf("a.mp4", { fps: 10, crf: 52 })).toBe("invalid_argument");
  });
});

describe("without ffmpeg", () => {
  it("videos name it, how to get it, and what does without", async () => {
    await withEnv({ LTX_FFMPEG: at("no-such-program") }, async () => {
      const clip = waves(1, 8, 8);
      const writing = await failure(() => writeVideo(at("missing.mp4"), clip, { fps: 10 }));
      expect(writing.code).toBe("unavailable");
      for (const part of ["missing.mp4", "no-such-program", "apt-get install ffmpeg", ".gif or .webp"]) {
        expect(writing.message).toContain(part);
      }
      writeFileSync(at("there.mp4"), Buffer.from("\0\0\0\x10ftypisom\0\0\0\0", "latin1"));
      expect(await failure(() => readMedia(at("there.mp4")))).toMatchObject({ code: "unavailable" });
      await new Video([clip.data], 1, 8, 8, 3).save(at("fine.gif"));
    });
  });
});
