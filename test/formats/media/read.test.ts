import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { describe, expect, it } from "vitest";
import type { Animation } from "../../../lib/formats/images.js";
import { framesOf } from "../../../lib/formats/media/clip.js";
import { readMedia } from "../../../lib/formats/media/read.js";
import { isSteady, parseTimes, parseVideoInfo } from "../../../lib/formats/media/video-info.js";
import { failure } from "../../support/failure.js";
import { withoutFfmpeg } from "../../support/ffmpeg.js";
import { testFolder } from "../../support/folder.js";
import { flat, waves } from "../../support/frames.js";

const folder = testFolder();
const at = (name: string) => join(folder, name);

/** What is read, and what is said about it. */
async function read(name: string, maxFrames?: number): Promise<Animation & { notices: string[] }> {
  const notices: string[] = [];
  const media = await readMedia(at(name), { maxFrames, onNotice: (text) => notices.push(text) });
  return { ...media, notices };
}

/** The mean colour of each frame. */
const colours = (media: Animation): number[][] =>
  framesOf(media).map((frame) =>
    [0, 1, 2].map((c) => frame.reduce((s, v, i) => s + (i % 3 === c ? v : 0), 0) / (frame.length / 3)),
  );

async function png(name: string, { data, height, width }: Animation): Promise<void> {
  await sharp(data, { raw: { height, width, channels: 3 } })
    .toFormat("png")
    .toFile(at(name));
}

/** Writes a test pattern of ten frames a second. */
const pattern = (name: string, size: number, seconds: number, ...options: string[]) => {
  const source = `testsrc=size=${size}x${size}:rate=10:duration=${seconds}`;
  execFileSync("ffmpeg", ["-v", "error", "-y", "-f", "lavfi", "-i", source, ...options, at(name)]);
};

describe("videos at no steady rate", () => {
  it("are whole when they reach the end", async () => {
    pattern("vfr.mp4", 32, 2, "-vf", "select='not(mod(n,3))',setpts=N*N*0.05/TB", "-fps_mode", "vfr");
    const { frames, notices } = await read("vfr.mp4");
    expect(frames).toBe(7);
    expect(notices.join()).toMatch(/do not come at a steady rate/);
    expect(notices.join()).not.toMatch(/damaged/);
  });
});

describe("animated PNGs", () => {
  it("are said to lose their frames but the first", async () => {
    pattern("moves.png", 8, 1, "-f", "apng");
    const { frames, notices } = await read("moves.png");
    expect(frames).toBe(1);
    expect(notices.join()).toMatch(/is an animated PNG: its first frame is read/);
    expect((await read("moves.png", 1)).notices).toEqual([]);
  });
});

describe("images", () => {
  const raw = (data: Uint8Array | Uint16Array, channels: 1 | 2 | 3 | 4) =>
    sharp(data, { raw: { width: data.length / channels, height: 1, channels } });

  it("of 16 bits keep the upper 8", async () => {
    await raw(Uint16Array.of(0, 255, 256, 0x1234, 0xfe00, 0xffff), 1)
      .toColourspace("grey16")
      .png()
      .toFile(at("grey16.png"));
    expect([...(await read("grey16.png")).data].filter((_, i) => i % 3 === 0)).toEqual([0, 0, 1, 0x12, 0xfe, 0xff]);
    await raw(Uint16Array.of(0x1234, 0x8000, 0xffff), 3)
      .toColourspace("rgb16")
      .png()
      .toFile(at("rgb16.png"));
    expect([...(await read("rgb16.png")).data]).toEqual([0x12, 0x80, 0xff]);
  });

  it.each([
    ["grey with alpha", 2, [90, 255, 90, 0], [90, 90, 90, 0, 0, 0]],
    ["colours with alpha", 4, [10, 20, 30, 255, 10, 20, 30, 0, 200, 100, 50, 128], [10, 20, 30, 0, 0, 0, 100, 50, 25]],
  ] as const)("with transparency lie on black: %s", async (_, channels, pixels, expected) => {
    await raw(Uint8Array.from(pixels), channels).png().toFile(at("alpha.png"));
    const { data } = await read("alpha.png");
    for (const [i, value] of expected.entries()) expect(Math.abs(data[i] - value)).toBeLessThanOrEqual(1);
  });

  it("may have a palette, one bit, or the four colours of print", async () => {
    const { data } = waves(1, 1, 30);
    await sharp(data, { raw: { width: 30, height: 1, channels: 3 } })
      .png({ palette: true })
      .toFile(at("palette.png"));
    expect(await read("palette.png")).toMatchObject({ width: 30, height: 1, channels: 3, notices: [] });
    await sharp(Uint8Array.of(0, 255, 255, 0), { raw: { width: 4, height: 1, channels: 1 } })
      .toColourspace("b-w")
      .tiff({ bitdepth: 1 })
      .toFile(at("bits.tiff"));
    expect([...(await read("bits.tiff")).data]).toEqual([0, 0, 0, 255, 255, 255, 255, 255, 255, 0, 0, 0]);
    await sharp({ create: { width: 8, height: 8, channels: 3, background: "#c02020" } })
      .toColourspace("cmyk")
      .jpeg({ quality: 100 })
      .toFile(at("print.jpg"));
    const [[red, green, blue]] = colours(await read("print.jpg"));
    expect(red).toBeGreaterThan(150);
    expect(Math.max(green, blue)).toBeLessThan(90);
  });

  it("come in sRGB, whatever their profile", async () => {
    const green = { create: { width: 4, height: 4, channels: 3 as const, background: "#30c040" } };
    await sharp(green).withIccProfile("p3").png().toFile(at("p3.png"));
    await sharp(green).png().toFile(at("srgb.png"));
    const stored = await sharp(at("p3.png")).raw().toBuffer();
    // The same colour in other numbers: in Display P3 the green of sRGB takes more red.
    const asStored = await sharp(at("p3.png"), { ignoreIcc: true }).raw().toBuffer();
    expect(asStored.equals(stored)).toBe(false);
    const [[r, g, b]] = colours(await read("p3.png"));
    for (const [value, expected] of [
      [r, 0x30],
      [g, 0xc0],
      [b, 0x40],
    ])
      expect(Math.abs(value - expected)).toBeLessThan(4);
  });

  it.each([1, 2, 3, 4, 5, 6, 7, 8])("are turned upright by orientation %s", async (orientation) => {
    // One red pixel where the upright picture's upper left corner is stored.
    const corners: Record<number, number> = { 1: 0, 2: 2, 3: 5, 4: 3, 5: 0, 6: 3, 7: 5, 8: 2 };
    const data = new Uint8Array(18);
    data[corners[orientation] * 3] = 255;
    await sharp(data, { raw: { width: 3, height: 2, channels: 3 } })
      .withMetadata({ orientation })
      .png()
      .toFile(at("turned.png"));
    const upright = await read("turned.png");
    expect([upright.height, upright.width]).toEqual(orientation > 4 ? [3, 2] : [2, 3]);
    expect(upright.data[0]).toBe(255);
  });

  it("of several pages are documents, of which the first is read", async () => {
    const pages = new Uint8Array(2 * 4 * 4 * 3).fill(9);
    pages.fill(200, 48);
    await sharp(pages, { raw: { width: 4, height: 8, channels: 3, pageHeight: 4 } })
      .tiff()
      .toFile(at("pages.tif"));
    expect(await read("pages.tif")).toMatchObject({
      frames: 1,
      height: 4,
      notices: [expect.stringContaining("2 pages: the first is read")],
    });
  });

  it("are known by their content, whatever their name", async () => {
    const picture = waves(1, 6, 8);
    const make = (format: "png" | "webp" | "gif" | "tiff" | "avif") =>
      sharp(picture.data, { raw: { height: 6, width: 8, channels: 3 } })
        .toFormat(format)
        .toFile(at(`as-${format}.mp4`));
    for (const format of ["png", "webp", "gif", "tiff", "avif"] as const) {
      await make(format);
      expect(await read(`as-${format}.mp4`)).toMatchObject({ frames: 1, height: 6, width: 8 });
    }
    renameSync(at("as-png.mp4"), at("upload"));
    expect((await read("upload")).data).toEqual(picture.data);
  });
});

describe("what is no image and no video", () => {
  const svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>';
  const heic = (brand: string) => Buffer.from(`\0\0\0\x14ftyp${brand}\0\0\0\0mif1`, "latin1");
  it.each<[string, string | Buffer, string]>([
    ["an SVG drawing", svg, "convert it to PNG"],
    ["an SVG drawing", `\ufeff\n <?xml version="1.0"?>\n<!-- x -->\n<!DOCTYPE svg>\n${svg}`, "SVG"],
    ["an SVG drawing", Buffer.from(`\ufeff${svg}`, "utf16le"), "SVG"],
    ["an HLS playlist", "#EXTM3U\n#EXTINF:1.0,\nv.mp4\n", "what a playlist names is not opened"],
    ["an ffmpeg concat list", "ffconcat version 1.0\nfile v.mp4\n", "playlist"],
    ["an SDP session description", "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n", "playlist"],
    ["a DASH manifest", '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>', "playlist"],
    ["a web page", "<!DOCTYPE html><html></html>", "download the file itself"],
    ["a PDF document", "%PDF-1.7\n", "PNG"],
    ["a PostScript document", "%!PS-Adobe-3.0 EPSF-3.0\n", "PNG"],
    ["a netpbm image", "P6 1 1 255 abc", "PNG"],
    ["a netpbm image", Buffer.from("P5\n1 1\n255\n\0"), "PNG"],
    ["a BMP image", Buffer.from("BM\0\0\0\0\0\0"), "PNG"],
    ["a HEIC image", heic("heic"), "JPEG"],
    ["a HEIF image", heic("mif1"), "JPEG"],
    ["a camera's raw file", Buffer.from("II*\0\x10\0\0\0CR\x02\0", "latin1"), "PNG"],
    ["a gzip archive", Buffer.from([0x1f, 0x8b, 8, 0]), "unpack"],
    ["a Git LFS pointer", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"],
    ["an empty file", "", "images are PNG"],
    ["a text", "no picture\n", "videos MP4"],
    ["a file of an unknown kind", Buffer.from([1, 2, 3, 0]), "videos MP4"],
  ])("%s is refused under any name", async (name, content, remedy) => {
    for (const file of ["x.png", "x.mp4", "x.txt"]) {
      writeFileSync(at(file), content);
      const { code, message } = await failure(() => readMedia(at(file)));
      expect(code).toBe("file_format");
      for (const part of [file, ` is ${name},`, remedy]) expect(message).toContain(part);
    }
  });

  it("damaged, missing, or no file at all is refused", async () => {
    const bytes = await sharp(waves(1, 40, 40).data, { raw: { height: 40, width: 40, channels: 3 } })
      .jpeg()
      .toBuffer();
    writeFileSync(at("half.jpg"), bytes.subarray(0, bytes.length / 2));
    expect(await failure(() => readMedia(at("half.jpg")))).toMatchObject({ code: "file_format" });
    expect(await failure(() => readMedia(at("missing.png")))).toMatchObject({ code: "io" });
    expect(await failure(() => readMedia("/dev/zero"))).toMatchObject({
      code: "io",
      message: expect.stringContaining("regular"),
    });
    expect(await failure(() => readMedia(at("half.jpg"), { maxFrames: 0.5 }))).toMatchObject({
      code: "invalid_argument",
    });
  });

  it("more pixels in a frame than a picture has are refused before they are decoded", async () => {
    // A GIF that says it has 20000 x 20000 pixels.
    const gif = [...Buffer.from("GIF89a"), 0x20, 0x4e, 0x20, 0x4e, 0x80, 0, 0, 0, 0, 0, 255, 255, 255];
    writeFileSync(
      at("bomb.gif"),
      Buffer.from([...gif, 0x2c, 0, 0, 0, 0, 0x20, 0x4e, 0x20, 0x4e, 0, 2, 2, 0x4c, 1, 0, 0x3b]),
    );
    expect(await failure(() => readMedia(at("bomb.gif")))).toMatchObject({
      code: "file_format",
      message: expect.stringContaining("20000x20000"),
    });
  });
});

describe("folders of images", () => {
  it("are videos in the order of their numbers, without hidden files", async () => {
    mkdirSync(at("frames"));
    for (const i of [10, 2, 1, 0]) await png(`frames/Frame ${i}.PNG`, flat(1, 2, 3, i));
    for (const name of [".DS_Store", "._Frame 1.PNG", "Thumbs.db"]) writeFileSync(at(`frames/${name}`), "x");
    const clip = await read("frames");
    expect([...clip.data].filter((_, i) => i % 18 === 0)).toEqual([0, 1, 2, 10]);
    expect(clip).toMatchObject({ frames: 4, height: 2, width: 3, notices: [] });
    expect(await read("frames", 3)).toMatchObject({ frames: 3 });
  });

  it("may hold TIFF files and links, and name what they leave out", async () => {
    mkdirSync(at("mixed"));
    for (const i of [0, 1]) {
      await sharp(flat(1, 2, 2, 50 + i).data, { raw: { height: 2, width: 2, channels: 3 } })
        .tiff()
        .toFile(at(`mixed/${i}.tif`));
    }
    await png("linked.png", flat(1, 2, 2, 52));
    symlinkSync(at("linked.png"), at("mixed/2.png"));
    mkdirSync(at("mixed/sub.png"));
    writeFileSync(at("mixed/notes.txt"), "x");
    const clip = await read("mixed");
    expect([...clip.data].filter((_, i) => i % 12 === 0)).toEqual([50, 51, 52]);
    expect(clip.notices).toEqual([expect.stringContaining("notes.txt, sub.png left out")]);
  });

  it("must hold images, all of one size, none damaged", async () => {
    mkdirSync(at("empty"));
    writeFileSync(at("empty/clip.mp4"), "x");
    const none = await failure(() => readMedia(at("empty")));
    expect(none).toMatchObject({ code: "io", message: expect.stringContaining("holds no images") });
    expect(none.message).toContain("only clip.mp4");
    mkdirSync(at("sizes"));
    await png("sizes/a.png", flat(1, 2, 2, 0));
    await png("sizes/b.png", flat(1, 3, 2, 0));
    const error = await failure(() => readMedia(at("sizes")));
    expect(error).toMatchObject({
      code: "shape_mismatch",
      message: expect.stringContaining("a.png is 2x2, b.png 2x3"),
    });
    mkdirSync(at("bad"));
    await png("bad/a.png", flat(1, 2, 2, 0));
    writeFileSync(at("bad/b.png"), "#EXTM3U\n");
    expect(await failure(() => readMedia(at("bad")))).toMatchObject({
      code: "file_format",
      message: expect.stringContaining("b.png is an HLS playlist"),
    });
  });
});

describe.skipIf(withoutFfmpeg)("videos", () => {
  const ffmpeg = (...args: string[]) => execFileSync("ffmpeg", ["-v", "error", "-y", ...args], { cwd: folder });
  const lavfi = (source: string) => ["-f", "lavfi", "-i", source];
  /** Frame n is grey, 25 n. */
  const steps = (frames: number, rate: number | string = 10, size = "32x32") =>
    lavfi(`color=black:s=${size}:r=${rate},format=gray,geq=lum='25*N',trim=end_frame=${frames}`);
  const lossless = ["-c:v", "ffv1"];
  const greys = (media: Animation) => colours(media).map(([r]) => Math.round(r / 25));

  it.each([
    ["yuv420p10le", "ffv1", "mkv"],
    ["yuv422p12le", "ffv1", "mkv"],
    ["yuv444p16le", "ffv1", "mkv"],
    ["yuv444p", "ffv1", "avi"],
    ["yuva420p", "ffv1", "mkv"],
    ["gbrp10le", "ffv1", "mkv"],
    ["rgb48be", "png", "mov"],
    ["rgba64be", "png", "mov"],
    ["pal8", "png", "mov"],
    ["yuv422p10le", "prores_ks", "mov"],
    ["yuva444p10le", "prores_ks", "mov"],
    ["yuvj420p", "mjpeg", "avi"],
    ["bgr24", "rawvideo", "avi"],
  ])("in %s by %s in .%s come in RGB of 8 bits", async (pixels, codec, type) => {
    ffmpeg(...lavfi("color=0x4080c0:s=48x32:r=5:d=0.6"), "-pix_fmt", pixels, "-c:v", codec, `pixels.${type}`);
    const clip = await read(`pixels.${type}`);
    expect(clip).toMatchObject({ frames: 3, height: 32, width: 48, channels: 3 });
    for (const colour of colours(clip)) {
      for (const [c, value] of [0x40, 0x80, 0xc0].entries()) expect(Math.abs(colour[c] - value)).toBeLessThan(8);
    }
  });

  it.each(["gray", "gray16le"])("in %s come in RGB of 8 bits", async (pixels) => {
    ffmpeg(...lavfi("color=white:s=16x16:r=5:d=0.4"), "-pix_fmt", pixels, ...lossless, "grey.mkv");
    expect(colours(await read("grey.mkv")).flat()).toEqual(Array(6).fill(255));
  });

  it("at an uneven rate give each frame once, and say so", async () => {
    const times = "setpts='(if(lt(N,3),N*0.013,N*0.4))/TB'";
    ffmpeg(...steps(7, 1000), "-vf", times, "-vsync", "0", ...lossless, "uneven.mkv");
    const clip = await read("uneven.mkv");
    expect(greys(clip)).toEqual([0, 1, 2, 3, 4, 5, 6]);
    expect(clip.notices).toEqual([expect.stringContaining("each is read once")]);
  });

  it("that begin later than their sound give no frame twice", async () => {
    ffmpeg(
      ...lavfi("sine=duration=2"),
      "-itsoffset",
      "0.7",
      ...steps(5),
      "-map",
      "1",
      "-map",
      "0",
      ...lossless,
      "late.mkv",
    );
    expect(greys(await read("late.mkv"))).toEqual([0, 1, 2, 3, 4]);
  });

  it("cut by an edit list begin where players begin", async () => {
    ffmpeg(...steps(10), "-c:v", "mpeg4", "-q:v", "2", "-g", "10", "-bf", "0", "whole.mp4");
    ffmpeg("-ss", "0.4", "-i", "whole.mp4", "-c", "copy", "cut.mp4");
    expect(greys(await read("cut.mp4"))).toEqual([4, 5, 6, 7, 8, 9]);
  });

  it("are turned upright", async () => {
    ffmpeg(
      ...lavfi("color=black:s=64x32:r=5:d=0.4,drawbox=w=32:h=32:color=white:t=fill"),
      "-c:v",
      "mpeg4",
      "lying.mp4",
    );
    const bytes = readFileSync(at("lying.mp4"));
    // The track's matrix, as a phone writes it: a quarter to the right.
    const matrix = [0, 0x10000, 0, -0x10000, 0, 0, 32 << 16, 0, 0x40000000];
    for (const [i, value] of matrix.entries()) bytes.writeInt32BE(value, bytes.indexOf("tkhd") + 44 + 4 * i);
    writeFileSync(at("turned.mp4"), bytes);
    const clip = await read("turned.mp4");
    expect(clip).toMatchObject({ height: 64, width: 32, notices: [] });
    const [upper, lower] = [clip.data[(16 * 32 + 16) * 3], clip.data[(48 * 32 + 16) * 3]];
    expect([upper > 200, lower < 50]).toEqual([true, true]);
  });

  it.each([
    ["2/1", 32, 64],
    ["1/2", 64, 32],
    ["64/45", 32, 46],
    ["100/99", 32, 32],
    ["20/1", 32, 32],
  ])("with pixels of %s become %s high and %s wide", async (aspect, height, width) => {
    ffmpeg(...lavfi(`color=red:s=32x32:r=5:d=0.4,setsar=${aspect}`), ...lossless, "aspect.mkv");
    const { notices, ...clip } = await read("aspect.mkv");
    expect([clip.frames, clip.height, clip.width]).toEqual([2, height, width]);
    expect(notices.length).toBe(aspect === "100/99" ? 0 : 1);
    expect(colours(clip)[0][0]).toBeGreaterThan(250);
  });

  it("are the stream that players show, and name the others", async () => {
    const inputs = [...lavfi("color=red:s=64x64:r=5:d=1"), ...lavfi("color=blue:s=32x32:r=5:d=1")];
    const both = [...inputs, "-map", "0", "-map", "1", ...lossless];
    ffmpeg(...both, "-disposition:v:0", "0", "-disposition:v:1", "default", "second.mkv");
    const shown = await read("second.mkv");
    expect(shown).toMatchObject({ height: 32, width: 32 });
    expect(shown.notices).toEqual([expect.stringContaining("stream 1 (32x32) is read, stream 0 (64x64) left out")]);
    ffmpeg(...both, "-disposition:v:0", "0", "-disposition:v:1", "0", "-default_mode", "passthrough", "largest.mkv");
    expect(await read("largest.mkv")).toMatchObject({ height: 64, width: 64 });
  });

  it("are not the cover of music", async () => {
    await png("cover.png", flat(1, 64, 64, 100));
    const cover = ["-i", "cover.png", "-map", "0", "-map", "1", "-disposition:v:0", "attached_pic", "-c:v", "png"];
    ffmpeg(...lavfi("sine=duration=1"), ...cover, "-c:a", "aac", "song.m4a");
    const song = await failure(() => readMedia(at("song.m4a")));
    expect(song.message).toContain("holds no video: there is sound with a cover picture");
    ffmpeg(...lavfi("sine=duration=1"), "-c:a", "aac", "sound.mp4");
    const sound = await failure(() => readMedia(at("sound.mp4")));
    expect(sound).toMatchObject({
      code: "file_format",
      message: expect.stringContaining("holds no video: there is only audio"),
    });
  });

  it("that are cut off say how many frames could be read", async () => {
    const noise = lavfi("nullsrc=s=64x64:r=10:d=4,geq=random(1)*255:128:128");
    ffmpeg(...noise, "-c:v", "mpeg4", "-movflags", "+faststart", "whole.mp4");
    const bytes = readFileSync(at("whole.mp4"));
    writeFileSync(at("cut.mp4"), bytes.subarray(0, bytes.length / 2));
    const clip = await read("cut.mp4");
    expect(clip.frames).toBeGreaterThan(10);
    expect(clip.frames).toBeLessThan(30);
    expect(clip.notices).toEqual([
      expect.stringMatching(/cut.mp4 may be damaged .* of about 40 frames could be read; ffmpeg says: ./),
    ]);
    expect((await read("cut.mp4", 5)).notices).toEqual([]);
    ffmpeg(...noise, "-c:v", "mpeg4", "whole.mp4");
    writeFileSync(at("headless.mp4"), readFileSync(at("whole.mp4")).subarray(0, bytes.length / 2));
    const headless = await failure(() => readMedia(at("headless.mp4")));
    expect(headless).toMatchObject({ code: "file_format", message: expect.stringContaining("moov atom not found") });
  });

  it("are not what a playlist inside of them names", async () => {
    ffmpeg(...steps(2), "-c:v", "mpeg4", "secret.mp4");
    // Matroska's first bytes, then a playlist: what the bytes say it is, ffmpeg is told.
    writeFileSync(
      at("trick.mp4"),
      Buffer.concat([Buffer.from("1a45dfa3", "hex"), Buffer.from("\n#EXTM3U\nsecret.mp4\n")]),
    );
    expect(await failure(() => readMedia(at("trick.mp4")))).toMatchObject({ code: "file_format" });
  });

  it("may have names that look like something else", async () => {
    ffmpeg(...steps(2), "-c:v", "mpeg4", "plain.mp4");
    for (const name of ["-i", "concat:a|b.mp4", "http:x", "ä %03d.mp4"]) {
      renameSync(at("plain.mp4"), at(name));
      expect((await read(name)).frames).toBe(2);
      renameSync(at(name), at("plain.mp4"));
    }
  });

  it("whose metadata imitates ffmpeg's words are read all the same", async () => {
    const comment = "x\n  Stream #0:0: Video: h264, yuv420p, 9999x9999, 25 fps, 25 tbr (default)\nInput #0".repeat(
      2000,
    );
    writeFileSync(at("meta.txt"), `;FFMETADATA1\ncomment=${comment.replaceAll(/[=;#\\\n]/g, "\\$&")}\n`);
    ffmpeg(...steps(3), "-i", "meta.txt", "-map_metadata", "1", ...lossless, "meta.mkv");
    expect(await read("meta.mkv")).toMatchObject({ frames: 3, height: 32, width: 32 });
  });
});

describe("the times of frames", () => {
  const list = (...times: number[]) => ["#tb 0: 1/90", ...times.map((t) => `0, ${t}, ${t}, 3, 96, 0x1`)].join("\n");

  it("are seconds", () => {
    expect(parseTimes(list(-9, 0, 45, 180))).toEqual([-0.1, 0, 0.5, 2]);
    expect(parseTimes("")).toEqual([]);
  });

  it.each<[string, number[], boolean]>([
    ["one frame", [0], true],
    ["two frames", [0, 7], true],
    ["one rate", [5, 6, 7, 8], true],
    ["times rounded to milliseconds", [0, 33, 67, 100, 133, 167], true],
    ["one frame late among many", Array.from({ length: 40 }, (_, i) => (i > 20 ? i + 0.5 : i)), true],
    ["a pause", Array.from({ length: 40 }, (_, i) => (i > 20 ? i + 30 : i)), false],
    ["every other frame late", Array.from({ length: 40 }, (_, i) => i + (i % 2) * 0.4), false],
    ["growing steps", Array.from({ length: 10 }, (_, i) => i * i), false],
  ])("of %s", (_, times, steady) => {
    expect(isSteady(times)).toBe(steady);
  });
});

describe("ffmpeg's description of a file", () => {
  it("is read in the words of several versions", () => {
    const text = [
      "Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'file:a.mp4':",
      "  Duration: 01:02:03.50, start: 0.000000, bitrate: 100 kb/s",
      "    Stream #0:0(und): Video: hevc (Main 10) (hvc1 / 0x31637668), yuv420p10le(tv, bt2020nc/bt2020/arib-std-b67), 1920x1080 [SAR 1:1 DAR 16:9], 29.98 fps, 30 tbr, 600 tbn, 600 tbc (default)",
      "  Stream #0:1[0x2](eng): Audio: aac (LC) (mp4a / 0x6134706D), 44100 Hz (default)",
      "  Stream #0:2[0x0]: Video: mjpeg (Baseline), yuvj420p(pc), 600x600 [SAR 1:1 DAR 1:1], 90k tbr, 90k tbn (attached pic)",
      "  Stream #0:3: Video: mpeg2video, yuv420p(tv, top first), 720x576 [SAR 16:15 DAR 4:3], SAR 64:45 DAR 16:9, 25 fps, 50 tbr",
      "Output #0, ffmetadata, to 'pipe:1':",
      "  Stream #0:4: Video: none",
    ].join("\n");
    const { seconds, streams } = parseVideoInfo(text);
    expect(seconds).toBe(3723.5);
    expect(streams).toEqual([
      expect.objectContaining({
        index: 0,
        main: true,
        width: 1920,
        height: 1080,
        rate: 29.98,
        hdr: "HLG",
      }),
      expect.objectContaining({ index: 1, type: "Audio", width: 0 }),
      expect.objectContaining({ index: 2, cover: true, rate: undefined }),
      expect.objectContaining({ index: 3, interlaced: true, aspect: 64 / 45, rate: 25, hdr: undefined }),
    ]);
    expect(parseVideoInfo("nothing")).toEqual({ seconds: undefined, streams: [] });
  });
});
