import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, describe, expect, it } from "vitest";
import { MovingMnist } from "../../lib/data/moving-mnist.js";
import { LtxError } from "../../lib/errors.js";
import { type Animation, enlarge, saveAnimation, savePng } from "../../lib/formats/images.js";

const folder = mkdtempSync(join(tmpdir(), "ltx-images-"));
afterAll(() => rmSync(folder, { recursive: true }));
const at = (name: string) => join(folder, name);

const clip = new MovingMnist({ seed: 1, frames: 12, height: 32, width: 40, digitSize: 14 }).clip(0);
const grey: Animation = { ...clip, data: clip.video };

/** Few colours, so that GIF can hold them exactly. */
function colored(frames: number, height: number, width: number): Animation {
  const data = Uint8Array.from({ length: frames * height * width * 3 }, (_, i) => ((i * 7919) % 5) * 60);
  return { data, frames, height, width, channels: 3 };
}

async function read(path: string, channels: number): Promise<Uint8Array> {
  const image = sharp(path, { pages: -1 }).removeAlpha();
  const raw = channels === 1 ? image.toColourspace("b-w") : image.toColourspace("srgb");
  return new Uint8Array(await raw.raw().toBuffer());
}

describe("saveAnimation", () => {
  it.each([
    ["grey.gif", grey],
    ["grey.webp", grey],
    ["color.webp", colored(5, 9, 6)],
    ["COLOR.GIF", colored(5, 9, 6)],
  ])("writes %s with the very pixels", async (name, video) => {
    await saveAnimation(at(name), video, { quality: 100 });
    const { pages, pageHeight, width, loop } = await sharp(at(name), { pages: -1 }).metadata();
    expect([pages, pageHeight, width, loop]).toEqual([video.frames, video.height, video.width, 0]);
    expect(await read(at(name), video.channels)).toEqual(video.data);
  });

  it("keeps time: the delays add up although GIF counts in hundredths", async () => {
    await saveAnimation(at("24.gif"), grey, { fps: 24 });
    const gif = (await sharp(at("24.gif"), { pages: -1 }).metadata()).delay as number[];
    expect(gif.reduce((a, b) => a + b)).toBe(500);
    expect(new Set(gif)).toEqual(new Set([40, 50]));
    await saveAnimation(at("24.webp"), grey, { fps: 24 });
    expect((await sharp(at("24.webp"), { pages: -1 }).metadata()).delay?.slice(0, 3)).toEqual([42, 41, 42]);
  });

  it("writes one frame, and keeps equal frames apart in GIF", async () => {
    await saveAnimation(at("one.gif"), { ...grey, frames: 1, data: grey.data.subarray(0, 1280) });
    expect((await sharp(at("one.gif"), { pages: -1 }).metadata()).pages).toBe(1);
    await saveAnimation(at("flat.gif"), { ...grey, data: new Uint8Array(grey.data.length) });
    expect((await sharp(at("flat.gif"), { pages: -1 }).metadata()).pages).toBe(12);
  });

  it("enlarges without blur", async () => {
    await saveAnimation(at("big.gif"), grey, { scale: 3 });
    expect(await read(at("big.gif"), 1)).toEqual((await enlarge(grey, 3)).data);
  });

  it.each<[string, Animation, object, string]>([
    ["x.avi", grey, {}, "needs the extension .gif or .webp"],
    ["x.gif", grey, { fps: 60 }, "fps must be from 0.02 to 50 for .gif, got 60"],
    ["x.webp", grey, { fps: 0 }, "fps must be from 0.02"],
    ["x.webp", grey, { fps: 0.001 }, "fps must be from 0.02 to 1000 for .webp, got 0.001"],
    ["x.webp", grey, { quality: 101 }, "quality must be a whole number from 1 to 100, got 101"],
    ["x.gif", grey, { scale: 1.5 }, "scale must be a positive whole number, got 1.5"],
    ["x.gif", { ...grey, frames: 13 }, {}, "[13,32,40,1] pixels need 16640 bytes, got 15360"],
    ["x.gif", { ...grey, channels: 2 }, {}, "channels must be 1 (grey) or 3 (RGB), got 2"],
    ["x.gif", { ...grey, height: 0 }, {}, "height must be a positive whole number, got 0"],
    ["x.webp", { ...grey }, { scale: 500 }, "40x32 pixels at scale 500 are too many for .webp"],
  ])("refuses %s", async (name, video, options, message) => {
    const error = await saveAnimation(at(name), video, options).catch((e) => e);
    expect(error).toBeInstanceOf(LtxError);
    expect(error.message).toContain(message);
  });

  it("leaves nothing behind and names the file when it cannot write", async () => {
    const path = join(folder, "nowhere", "x.gif");
    const error = await saveAnimation(path, grey).catch((e) => e);
    expect([error.code, error.message.includes(path)]).toEqual(["io", true]);
    writeFileSync(at("old.gif"), "old");
    await saveAnimation(at("old.gif"), { ...grey, channels: 3 }).catch(() => {});
    expect(readFileSync(at("old.gif"), "utf8")).toBe("old");
    expect(readdirSync(folder).filter((name) => name.endsWith(".tmp"))).toEqual([]);
  });
});

describe("savePng", () => {
  it.each([
    ["grey.png", 1],
    ["color.png", 3],
  ])("writes %s with the very pixels", async (name, channels) => {
    const picture = {
      data: colored(1, 6, 4 * channels).data.subarray(0, 24 * channels),
      height: 6,
      width: 4,
      channels,
    };
    await savePng(at(name), picture);
    expect(await read(at(name), channels)).toEqual(new Uint8Array(picture.data));
    await savePng(at(name), picture, { scale: 2, comment: "" });
    expect(await read(at(name), channels)).toEqual((await enlarge({ ...picture, frames: 1 }, 2)).data);
  });

  it("refuses other extensions", async () => {
    await expect(savePng(at("x.jpg"), grey)).rejects.toThrow("the extension .png");
  });
});

describe("enlarge", () => {
  it("repeats each pixel along both sides", async () => {
    const video = { data: Uint8Array.of(1, 2, 3, 4), frames: 2, height: 1, width: 2, channels: 1 };
    expect(await enlarge(video, 2)).toEqual({
      data: Uint8Array.of(1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4),
      frames: 2,
      height: 2,
      width: 4,
      channels: 1,
    });
  });
});
