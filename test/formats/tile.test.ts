import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, describe, expect, it } from "vitest";
import { LtxError } from "../../lib/errors.js";
import type { Animation } from "../../lib/formats/images.js";
import { escapeXml, wrapText } from "../../lib/formats/text.js";
import { saveGrid, tileVideos } from "../../lib/formats/tile.js";

// A machine without fonts: fontconfig reads this when the first text is drawn, after the imports.
process.env.FONTCONFIG_FILE = join(__dirname, "..", "..", "assets", "fonts.conf");

const folder = mkdtempSync(join(tmpdir(), "ltx-tile-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** Frame f of the video is flat with value `first + f`. */
function flat(first: number, channels = 1): Animation {
  const data = Uint8Array.from({ length: 3 * 8 * 10 * channels }, (_, i) => first + Math.floor(i / (80 * channels)));
  return { data, frames: 3, height: 8, width: 10, channels };
}

const pixel = ({ data, height, width }: Animation, frame: number, y: number, x: number) => [
  ...data.subarray(((frame * height + y) * width + x) * 3, ((frame * height + y) * width + x) * 3 + 3),
];

/** The dark part of a tiled image, row by row, as text: where letters are. */
const ink = ({ data }: Animation) => Array.from(data, (value) => (value < 128 ? 1 : 0)).join("");

describe("tileVideos", () => {
  it("lays the tiles out row by row on the background", async () => {
    const tiled = await tileVideos([flat(10), flat(20), flat(30, 3)], {
      columns: 2,
      padding: 4,
      background: "#804020",
    });
    expect([tiled.frames, tiled.height, tiled.width, tiled.channels]).toEqual([3, 4 + 2 * 12, 4 + 2 * 14, 3]);
    expect(pixel(tiled, 0, 4, 4)).toEqual([10, 10, 10]);
    expect(pixel(tiled, 1, 11, 13)).toEqual([11, 11, 11]);
    expect(pixel(tiled, 0, 4, 18)).toEqual([20, 20, 20]);
    expect(pixel(tiled, 2, 16, 4)).toEqual([32, 32, 32]);
    for (const [y, x] of [
      [3, 4],
      [4, 14],
      [12, 4],
      [16, 18],
    ]) {
      expect(pixel(tiled, 1, y, x)).toEqual([0x80, 0x40, 0x20]);
    }
  });

  it("enlarges tiles and chooses a nearly square layout", async () => {
    const tiled = await tileVideos(Array(5).fill(flat(9)), { scale: 3, padding: 0 });
    expect([tiled.height, tiled.width]).toEqual([2 * 24, 3 * 30]);
  });

  it("writes each label legibly, without any font on the system", async () => {
    const write = async (label: string) =>
      tileVideos([{ ...flat(200), frames: 1, data: new Uint8Array(80).fill(200) }], { labels: [label] });
    const [ones, eights, again] = [await write("iii"), await write("888"), await write("iii")];
    expect(ones.height).toBe(6 + 8 + 16 + 6);
    expect(ink(ones)).toContain("1");
    expect(ink(again)).toBe(ink(ones));
    // Where a font is missing every character is drawn as the same box.
    expect(ink(eights)).not.toBe(ink(ones));
    expect(ink(await write("..."))).not.toBe(ink(ones));
    expect(ink(await write("a<b&c"))).not.toBe(ink(await write("a b c")));
  });

  it("widens the cells for labels and breaks long ones", async () => {
    const short = await tileVideos([flat(0), flat(0)], { columns: 2, labels: ["three and seven", "1"] });
    expect(short.width).toBeGreaterThan(2 * 15 * 7.8);
    const long = await tileVideos([flat(0)], { labels: ["word ".repeat(50)] });
    expect(long.height).toBe(6 + 8 + 3 * 16 + 6);
  });

  it.each<[string, Animation[], object, string]>([
    ["nothing", [], {}, "there are no videos to tile"],
    [
      "videos of two sizes",
      [flat(0), { ...flat(0), frames: 1, height: 24 }],
      {},
      "the first has 3 frames of 10x8, number 1 has 1 frames of 10x24",
    ],
    ["too few labels", [flat(0), flat(0)], { labels: ["a"] }, "a label for each of the 2 videos or none, got 1"],
    ["no columns", [flat(0)], { columns: 0 }, "columns must be a positive whole number, got 0"],
    ["a negative padding", [flat(0)], { padding: -1 }, "padding must be a whole number of pixels, got -1"],
    ["a colour by name", [flat(0)], { background: "red" }, 'background must look like "#ffffff", got "red"'],
    ["a fractional scale", [flat(0)], { scale: 0.5 }, "scale must be a positive whole number, got 0.5"],
  ])("refuses %s", async (_, videos, options, message) => {
    const error = await tileVideos(videos, options).catch((e) => e);
    expect(error).toBeInstanceOf(LtxError);
    expect(error.message).toContain(message);
  });
});

describe("saveGrid", () => {
  it("writes animations, and single frames as PNG", async () => {
    await saveGrid(join(folder, "grid.gif"), [flat(1), flat(2)], { labels: ["one", "2"], fps: 20, scale: 2 });
    const gif = await sharp(join(folder, "grid.gif"), { pages: -1 }).metadata();
    expect([gif.pages, gif.delay]).toEqual([3, [50, 50, 50]]);
    const still = { data: new Uint8Array(80), frames: 1, height: 8, width: 10, channels: 1 };
    await saveGrid(join(folder, "grid.png"), [still, still], { padding: 2 });
    const png = await sharp(join(folder, "grid.png")).metadata();
    expect([png.width, png.height]).toEqual([2 + 2 * 12, 2 + 10]);
    await expect(saveGrid(join(folder, "grid.png"), [flat(0)])).rejects.toThrow("can hold only single frames");
  });
});

describe("wrapText", () => {
  it.each([
    ["three and seven", 15, ["three and seven"]],
    ["three and seven", 9, ["three and", "seven"]],
    ["a  b\nc", 9, ["a b c"]],
    ["abcdefgh ij", 3, ["abc", "def", "gh…"]],
    ["one two three four", 5, ["one", "two", "thre…"]],
    ["", 5, []],
  ])("breaks %j at %i", (text, columns, lines) => {
    expect(wrapText(text, columns, 3)).toEqual(lines);
  });

  it("escapes for XML what a prompt may hold", () => {
    expect(escapeXml("<a & b>\u0000\ud800")).toBe("&lt;a &amp; b&gt;  ");
  });
});
