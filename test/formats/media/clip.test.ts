import { describe, expect, it } from "vitest";
import { resizeBicubic } from "../../../lib/formats/media/bicubic.js";
import { blur } from "../../../lib/formats/media/blur.js";
import { crop, firstFrames, type PixelClip, resizeAndCrop, resizeBilinear } from "../../../lib/formats/media/clip.js";
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
  it("are cut where one says", () => {
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
  });

  it("are taken from the front", async () => {
    const clip = numbered(3, 2, 2, 3);
    expect(firstFrames(clip, 2).data).toEqual(clip.data.subarray(0, 24));
    expect(await failure(() => firstFrames(clip, 4))).toMatchObject({ code: "invalid_argument" });
  });

  it("are refused where a clip's buffer was transferred", async () => {
    const clip = numbered(3, 2, 2, 3);
    const buffer = clip.data.buffer as ArrayBuffer;
    structuredClone(buffer, { transfer: [buffer] });
    expect(await failure(() => firstFrames(clip, 2))).toMatchObject({
      code: "invalid_argument",
      message: "[media] the clip's data hold no values",
    });
  });

  it("keep a constant when they are resized or blurred", async () => {
    const grey: PixelClip = { ...numbered(1, 7, 5, 3), data: new Float32Array(105).fill(0.25) };
    for (const { data } of [await resizeBilinear(grey, 9, 3), await resizeAndCrop(grey, 4, 8)]) {
      for (const value of data) expect(value).toBeCloseTo(0.25, 6);
    }
    const bytes = { ...grey, data: new Uint8Array(105).fill(77) };
    for (const value of await blur(bytes)) expect(value).toBeCloseTo(77 / 255, 6);
    expect(new Set((await resizeBicubic(bytes, 13, 3)).data)).toEqual(new Set([77]));
  });

  it("are resized between pixel centres", async () => {
    const row: PixelClip = { data: Float32Array.of(0, 4), frames: 1, height: 1, width: 2, channels: 1 };
    expect([...(await resizeBilinear(row, 1, 4)).data]).toEqual([0, 1, 3, 4]);
    expect([...(await resizeBilinear(row, 1, 1)).data]).toEqual([2]);
    expect([...(await resizeBilinear(row, 2, 2)).data]).toEqual([0, 4, 0, 4]);
  });

  it("are blurred by the same weights in both directions, mirrored at the edges", async () => {
    const side = Math.exp(-0.5) / (1 + 2 * Math.exp(-0.5));
    const [middle, edge] = [1 - 2 * side, 2 * side];
    const dot = (y: number, x: number) => Uint8Array.from({ length: 25 }, (_, i) => (i === y * 5 + x ? 255 : 0));
    const blurred = async (y: number, x: number) => {
      return [...(await blur({ data: dot(y, x), height: 5, width: 5, channels: 1 }))];
    };
    /** The share of a dot at `from` that arrives at `at`: neighbours of an edge get what would lie beyond it as well. */
    const share = (at: number, from: number) => {
      if (at === from) return middle;
      if (Math.abs(at - from) > 1) return 0;
      return at === 0 || at === 4 ? edge : side;
    };
    for (const [y, x] of [
      [2, 2],
      [0, 0],
      [1, 3],
      [4, 2],
    ]) {
      const found = await blurred(y, x);
      for (let i = 0; i < 25; i++) expect(found[i]).toBeCloseTo(share(Math.floor(i / 5), y) * share(i % 5, x), 6);
    }
  });

  it("may be a single pixel high or wide when they are blurred", async () => {
    const data = Uint8Array.of(255, 0, 0);
    const side = Math.exp(-0.5) / (1 + 2 * Math.exp(-0.5));
    for (const size of [
      { height: 1, width: 3 },
      { height: 3, width: 1 },
    ]) {
      const [first, second, third] = await blur({ data, ...size, channels: 1 });
      expect(first).toBeCloseTo(1 - 2 * side, 6);
      expect(second).toBeCloseTo(side, 6);
      expect(third).toBe(0);
    }
    expect([...(await blur({ data: Uint8Array.of(51), height: 1, width: 1, channels: 1 }))]).toEqual([
      Math.fround(0.2),
    ]);
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
    // Letter by letter: a sigma at the end stays one, and what İ leaves above its i is kept.
    expect(promptWords("ΟΔΟΣ İstanbul")).toBe("οδοσ-i\u0307stanbul");
    expect(promptWords("𝒜𝒷 ab", 4)).toBe("𝒜𝒷-ab");
  });
});
