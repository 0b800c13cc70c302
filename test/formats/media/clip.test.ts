import { describe, expect, it } from "vitest";
import { resizeBicubic } from "../../../lib/formats/media/bicubic.js";
import {
  blur,
  crop,
  firstFrames,
  type PixelClip,
  pad,
  resizeAndCrop,
  resizeBilinear,
} from "../../../lib/formats/media/clip.js";
import { prepareMedia, toSigned, toUnit } from "../../../lib/formats/media/prepare.js";
import { centerBox, conditioningFrames, paddedSize, promptWords } from "../../../lib/formats/media/sizes.js";
import { failure } from "../../support/failure.js";

/** Values that tell every frame, row, column and channel apart. */
function numbered(frames: number, height: number, width: number, channels: number): PixelClip {
  const data = Float32Array.from({ length: frames * height * width * channels }, (_, i) => i);
  return { data, frames, height, width, channels };
}

const valueAt = ({ data, height, width, channels }: PixelClip, [f, y, x, c]: number[]) =>
  data[((f * height + y) * width + x) * channels + c];

describe("frames", () => {
  it("are cut and padded where one says", () => {
    const clip = numbered(2, 5, 4, 3);
    const cut = crop(clip, { left: 1, top: 2, height: 3, width: 2 });
    expect(cut).toMatchObject({ frames: 2, height: 3, width: 2, channels: 3 });
    for (const at of [
      [0, 0, 0, 0],
      [1, 2, 1, 2],
    ]) {
      const [f, y, x, c] = at;
      expect(valueAt(cut, at)).toBe(valueAt(clip, [f, y + 2, x + 1, c]));
    }
    const padded = pad(cut, { left: 1, right: 2, top: 3, bottom: 0 });
    expect(padded).toMatchObject({ height: 6, width: 5 });
    expect(crop(padded, { left: 1, top: 3, height: 3, width: 2 }).data).toEqual(cut.data);
    const sum = (values: Float32Array) => values.reduce((a, b) => a + b, 0);
    expect(sum(padded.data)).toBe(sum(cut.data));
  });

  it("are taken from the front", async () => {
    const clip = numbered(3, 2, 2, 3);
    expect(firstFrames(clip, 2).data).toEqual(clip.data.subarray(0, 24));
    expect(await failure(() => firstFrames(clip, 4))).toMatchObject({ code: "invalid_argument" });
  });

  it("keep a constant and their mean when they are resized or blurred", () => {
    const grey: PixelClip = { ...numbered(1, 7, 5, 3), data: new Float32Array(105).fill(0.25) };
    for (const result of [blur(grey), resizeBilinear(grey, 9, 3), resizeAndCrop(grey, 4, 8)]) {
      for (const value of result.data) expect(value).toBeCloseTo(0.25, 6);
    }
    const bytes = { ...grey, data: new Uint8Array(105).fill(77) };
    expect(new Set(resizeBicubic(bytes, 13, 3).data)).toEqual(new Set([77]));
  });

  it("are interpolated between pixel centres", () => {
    const row: PixelClip = { data: Float32Array.of(0, 4), frames: 1, height: 1, width: 2, channels: 1 };
    expect([...resizeBilinear(row, 1, 4).data]).toEqual([0, 1, 3, 4]);
    expect([...resizeBilinear(row, 1, 1).data]).toEqual([2]);
    expect([...resizeBilinear(row, 2, 2).data]).toEqual([0, 4, 0, 4]);
  });

  it("are blurred by the same weights in both directions, mirrored at the edges", () => {
    const data = new Float32Array(25);
    data[12] = 1;
    const spread = blur({ data, frames: 1, height: 5, width: 5, channels: 1 });
    const side = Math.exp(-0.5) / (1 + 2 * Math.exp(-0.5));
    expect(spread.data[12]).toBeCloseTo((1 - 2 * side) ** 2, 6);
    expect(spread.data[6]).toBeCloseTo(side ** 2, 6);
    const edge = blur({ data: Float32Array.of(1, 0, 0), frames: 1, height: 1, width: 3, channels: 1 });
    expect(edge.data[1]).toBeCloseTo(side, 6);
    const mirrored = blur({ data: Float32Array.of(0, 1, 0), frames: 1, height: 1, width: 3, channels: 1 });
    expect(mirrored.data[0]).toBeCloseTo(2 * side, 6);
  });
});

describe("sizes", () => {
  it("grow to what the models take, with what was asked for in the middle", () => {
    expect(paddedSize({ height: 500, width: 700, frames: 60 })).toEqual({
      height: 512,
      width: 704,
      frames: 65,
      padding: { left: 2, right: 2, top: 6, bottom: 6 },
    });
    expect(paddedSize({ height: 12, width: 8, frames: 5 }, { space: 8, time: 4 })).toMatchObject({
      height: 16,
      width: 8,
      frames: 5,
    });
  });

  it("give conditioning frames as many as fit", () => {
    expect(conditioningFrames(0, 30, 121)).toBe(25);
    expect(conditioningFrames(120, 30, 121)).toBe(1);
    expect(conditioningFrames(121, 1, 121)).toBeLessThan(1);
  });

  it("cut the largest box of the proportions", () => {
    expect(centerBox({ height: 40, width: 60 }, { height: 32, width: 64 })).toEqual({
      left: 0,
      top: 5,
      height: 30,
      width: 60,
    });
    expect(centerBox({ height: 1, width: 500 }, { height: 64, width: 32 })).toMatchObject({ height: 1, width: 1 });
  });

  it("name files by a prompt's letters", () => {
    expect(promptWords("A cat, sitting on the 2nd window-sill!")).toBe("a-cat-sitting-on-the-nd-windowsill");
    expect(promptWords("../../etc/passwd\n\0x")).toBe("etcpasswd-x");
    expect(promptWords("Ünïcode 数字")).toBe("ünïcode-数字");
  });
});

describe("media for a model", () => {
  const media = { ...numbered(2, 6, 8, 3), data: Uint8Array.from({ length: 288 }, (_, i) => (i * 37) % 256) };

  it("goes to [-1, 1]; an image that conditions stays as large as it is", async () => {
    const size = { height: 3, width: 4, padding: { left: 0, right: 0, top: 0, bottom: 0 } };
    const image = firstFrames(media, 1);
    const item = await prepareMedia(image, size, "conditioning", { crf: 0 });
    expect(item).toMatchObject({ frames: 1, height: 6, width: 8 });
    expect(item.data).toEqual(toSigned(blur(toUnit(image))).data);
    expect(await prepareMedia(media, size, "conditioning", { crf: 0 })).toMatchObject({
      frames: 2,
      height: 3,
      width: 4,
    });
    expect(Math.min(...item.data)).toBeGreaterThanOrEqual(-1);
    expect(Math.max(...item.data)).toBeLessThanOrEqual(1);
    expect(await prepareMedia(media, size, "source", { crf: 0 })).toMatchObject({ height: 3, width: 4 });
  });

  it("lies exactly inside of its padding", async () => {
    const { height, width, padding } = paddedSize({ height: 3, width: 5, frames: 2 }, { space: 4 });
    const item = await prepareMedia(media, { height: 3, width: 5, padding }, "conditioning", { crf: 0 });
    expect(item).toMatchObject({ height, width });
    const inner = crop(item, { left: padding.left, top: padding.top, height: 3, width: 5 });
    const alone = await prepareMedia(media, { height: 3, width: 5, padding }, "source", { crf: 0 });
    expect(inner.data).toEqual(crop(alone, { left: padding.left, top: padding.top, height: 3, width: 5 }).data);
    expect(item.data.slice(0, 3)).toEqual(Float32Array.of(...(padding.left + padding.top > 0 ? [0, 0, 0] : [])));
  });

  it("must be in colour", async () => {
    const grey = { data: new Uint8Array(4), frames: 1, height: 2, width: 2, channels: 1 };
    const size = { height: 2, width: 2, padding: { left: 0, right: 0, top: 0, bottom: 0 } };
    const error = await failure(() => prepareMedia(grey, size, "source"));
    expect(error).toMatchObject({
      code: "shape_mismatch",
      message: expect.stringContaining("RGB (3 channels), got 1"),
    });
  });
});
