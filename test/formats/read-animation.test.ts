import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { describe, expect, it } from "vitest";
import { readAnimation } from "../../lib/formats/read-animation.js";
import { failure } from "../support/failure.js";
import { withoutFfmpeg } from "../support/ffmpeg.js";
import { testFolder } from "../support/folder.js";
import { npyBytes } from "../support/npy.js";

const folder = testFolder();
const at = (name: string) => join(folder, name);
const grey = { height: 8, width: 8, channels: 1 };

describe("readAnimation", () => {
  it("gives grey frames exactly, from images and arrays", async () => {
    const values = Uint8Array.from({ length: 256 }, (_, i) => i);
    await sharp(values, { raw: { height: 16, width: 16, channels: 1 } })
      .png()
      .toFile(at("grey.png"));
    writeFileSync(at("grey.npy"), npyBytes("|u1", [1, 16, 16], values));
    for (const name of ["grey.png", "grey.npy"]) {
      const { data, frames } = await readAnimation(at(name), { height: 16, width: 16, channels: 1 });
      expect(frames).toBe(1);
      expect([...data]).toEqual([...values]);
    }
  });

  it("reads folders of TIFF, without hidden files", async () => {
    mkdirSync(at("tiffs"));
    for (const i of [1, 2, 10]) {
      await sharp({ create: { width: 16, height: 16, channels: 3, background: { r: i, g: i, b: i } } })
        .tiff()
        .toFile(at(`tiffs/${i}.tiff`));
    }
    writeFileSync(at("tiffs/._1.tiff"), "x");
    const { data, frames } = await readAnimation(at("tiffs"), grey);
    expect(frames).toBe(3);
    expect([...data].filter((_, i) => i % 64 === 0)).toEqual([1, 2, 10]);
  });

  it.skipIf(withoutFfmpeg)("reads videos", async () => {
    const source = ["-f", "lavfi", "-i", "color=white:s=32x32:r=5:d=0.6"];
    execFileSync("ffmpeg", ["-v", "error", ...source, "-c:v", "ffv1", at("clip.mkv")]);
    const clip = await readAnimation(at("clip.mkv"), { height: 16, width: 16, channels: 3 });
    expect([clip.frames, clip.data.length, Math.min(...clip.data)]).toEqual([3, 3 * 768, 255]);
  });

  it("refuses other proportions, and arrays that are no frames", async () => {
    await sharp({ create: { width: 16, height: 8, channels: 3, background: "#fff" } })
      .png()
      .toFile(at("wide.png"));
    expect(await failure(() => readAnimation(at("wide.png"), grey))).toMatchObject({
      code: "shape_mismatch",
      message: expect.stringContaining("16x8"),
    });
    writeFileSync(at("floats.npy"), npyBytes("<f4", [1, 8, 8], new Float32Array(64)));
    expect(await failure(() => readAnimation(at("floats.npy"), grey))).toMatchObject({ code: "file_format" });
  });
});
