import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { findLayout, type LayoutHints } from "../../lib/data/array-layout.js";
import { type DataOptions, openData } from "../../lib/data/index.js";
import type { NpyArray } from "../../lib/formats/npy.js";
import { failure } from "../support/failure.js";
import { testFolder } from "../support/folder.js";
import { npyBytes } from "../support/npy.js";
import { writeZip } from "../support/pytorch.js";

/** An array of zeros, or of what `value` says. */
const array = (shape: readonly number[], value: (i: number) => number = () => 0): NpyArray => ({
  dtype: "u1",
  shape,
  size: shape.reduce((a, b) => a * b, 1),
  read: async (begin, count) => Uint8Array.from({ length: count }, (_, i) => value(begin + i)),
});

const hints: LayoutHints = { usual: "NF", frames: 25, channels: 1 };
const find = (shape: readonly number[], changes: Partial<LayoutHints> = {}) =>
  findLayout(array(shape), "a.npz", { ...hints, ...changes });

describe("the layout of an array of videos", () => {
  const gray = { count: 20, frames: 30, height: 64, width: 64, channels: 1 };
  it.each<[string, number[], Partial<LayoutHints>, object]>([
    [
      "the reference's file",
      [600, 1, 64, 64],
      {},
      { ...gray, axes: "(NF)CHW", frameStride: 4096, videoStride: 122880 },
    ],
    ["as the reference reads it", [20, 1, 30, 64, 64], {}, { ...gray, axes: "NCFHW", frameStride: 4096 }],
    ["channels last, all frames in one axis", [600, 64, 64, 1], {}, { ...gray, axes: "(NF)HWC" }],
    ["without channels", [20, 30, 64, 64], {}, { ...gray, axes: "NFHW" }],
    ["channels before the picture", [20, 30, 1, 64, 64], {}, { ...gray, axes: "NFCHW" }],
    ["channels last", [20, 30, 64, 64, 1], {}, { ...gray, axes: "NFHWC" }],
    ["all frames in one axis", [600, 64, 64], {}, { ...gray, axes: "(NF)HW" }],
    ["flat", [20 * 122880], {}, gray],
    ["a row for a video", [20, 122880], {}, gray],
    ["a row for a frame", [600, 4096], {}, gray],
    [
      "frames first, as the labels say",
      [30, 20, 64, 64],
      { labels: [20, 30, 2], frames: 9 },
      { ...gray, axes: "FNHW", frameStride: 20 * 4096, videoStride: 4096 },
    ],
    ["videos first, as the labels say", [30, 20, 64, 64], { labels: [30, 2], frames: 9 }, { count: 30, frames: 20 }],
    [
      "frames of the labels",
      [100, 1, 32, 32],
      { labels: [10, 10, 2], frames: 9 },
      { count: 10, frames: 10, width: 32 },
    ],
    ["colours in planes", [10, 26, 3, 40, 48], { channels: 3 }, { axes: "NFCHW", channels: 3, channelStride: 1920 }],
    [
      "colours before frames",
      [10, 3, 26, 40, 48],
      { channels: 3 },
      { axes: "NCFHW", frameStride: 1920, channelStride: 49920 },
    ],
    ["frames in colour", [600, 3, 64, 64], { channels: 3 }, { count: 20, frames: 30, channels: 3, axes: "(NF)CHW" }],
    [
      "frames first by default",
      [20, 100, 64, 64],
      { usual: "FN", frames: 9 },
      { count: 100, frames: 20, axes: "FNHW" },
    ],
    [
      "what axes say",
      [12, 7, 32, 32],
      { usual: "FN", axes: "NFHW", frames: 5 },
      { count: 12, frames: 7, frameStride: 1024 },
    ],
    ["what axes say of one axis", [600, 1, 64, 64], { axes: "(NF)CHW" }, gray],
  ])("is found: %s", async (_, shape, changes, expected) => {
    expect(await find(shape, changes)).toMatchObject(expected);
  });

  it.each<[string, number[], Partial<LayoutHints>, string, string]>([
    ["more frames than videos, frames first", [12, 7, 32, 32], { usual: "FN", frames: 5 }, "file_format", "axes: FNHW"],
    [
      "more frames than videos",
      [5, 40, 32, 32],
      { frames: 3 },
      "file_format",
      "NFHW (5 videos of 40 frames of 32x32) or FNHW",
    ],
    ["one axis of unknown videos", [600, 1, 32, 32], {}, "file_format", "data.axes"],
    ["two places for colours", [20, 3, 3, 64, 64], { channels: 3, frames: 2 }, "file_format", "NFCHW"],
    ["axes of another number", [600, 64, 64], { axes: "NFHW" }, "config", "data.axes NFHW does not fit"],
    ["axes that make colours of frames", [20, 30, 64, 64], { axes: "NCHW" }, "config", "does not fit"],
    ["too few axes", [77], {}, "file_format", "has shape (77), expected (videos, frames, height, width)"],
    ["a size that divides by chance", [10, 128, 96], {}, "file_format", "has shape (10, 128, 96)"],
    ["nothing", [0, 30, 64, 64], {}, "file_format", "at least one video"],
  ])("is refused where it is unknown: %s", async (_, shape, changes, code, reason) => {
    const error = await failure(() => find(shape, changes));
    expect(error).toMatchObject({ code, message: expect.stringContaining(reason) });
  });

  /** Frames of moving light: of one video they are alike. */
  const moving = (count: number, frames: number, framesFirst: boolean) => (i: number) => {
    const [pixel, row] = [i % 256, Math.floor(i / 256)];
    const [video, frame] = framesFirst
      ? [row % count, Math.floor(row / count)]
      : [Math.floor(row / frames), row % frames];
    return (video * 83 + frame * 4 + pixel * 3) % 256;
  };
  const findMoving = (shape: number[], value: (i: number) => number, usual: "NF" | "FN") =>
    findLayout(array(shape, value), "a.npy", { ...hints, frames: 3, usual });

  it("is the usual one where motion agrees, however long the videos", async () => {
    expect(await findMoving([12, 7, 16, 16], moving(7, 12, true), "FN")).toMatchObject({ count: 7, frames: 12 });
    expect(await findMoving([7, 12, 16, 16], moving(7, 12, false), "NF")).toMatchObject({ count: 7, frames: 12 });
  });

  it("is refused where motion speaks against it", async () => {
    for (const [shape, value, usual] of [
      [[7, 12, 16, 16], moving(7, 12, false), "FN"],
      [[12, 7, 16, 16], moving(12, 7, false), "FN"],
      [[7, 20, 16, 16], moving(20, 7, true), "NF"],
    ] as const) {
      const { code, message } = await failure(() => findMoving([...shape], value, usual));
      expect([code, message.includes("data.axes")]).toEqual(["file_format", true]);
    }
  });
});

describe("clips of arrays in any order", () => {
  const folder = testFolder();
  const [N, F, H, W, C] = [6, 5, 3, 4, 3];
  const pixel = (n: number, f: number, y: number, x: number, c: number) => (n * 40 + f * 7 + y * 5 + x * 2 + c) % 256;
  const sizes: Record<string, number> = { N, F, H, W, C };

  it.each(["NFHWC", "NFCHW", "NCFHW", "FNHWC", "FNCHW", "FCNHW", "CNFHW"])("%s come out alike", async (axes) => {
    const letters = [...axes];
    const shape = letters.map((letter) => sizes[letter]);
    const values = Uint8Array.from({ length: N * F * H * W * C }, (_, i) => {
      const at: Record<string, number> = {};
      let rest = i;
      for (let k = letters.length - 1; k >= 0; k--) {
        at[letters[k]] = rest % shape[k];
        rest = Math.floor(rest / shape[k]);
      }
      return pixel(at.N, at.F, at.H, at.W, at.C);
    });
    const video = npyBytes("|u1", shape, values);
    const label = npyBytes("|u1", [N, 1], new Uint8Array(N));
    await writeZip(join(folder, "videos_data.npz"), new Map([["a.npy", video]]));
    await writeZip(join(folder, "labels_data.npz"), new Map([["a.npy", label]]));
    const options: DataOptions = {
      source: "npz",
      path: folder,
      axes,
      frames: 2,
      height: H,
      width: W,
      num_channels: C,
      frame_processing: "sample",
      digits: 1,
      digit_size: 2,
      seed: 1,
      size: 10,
      min_speed: 1,
      max_speed: 1,
    };
    const clip = await (await openData(options)).clip(4);
    const expected: number[] = [];
    for (const f of [0, 2])
      for (let y = 0; y < H; y++)
        for (let x = 0; x < W; x++) for (let c = 0; c < C; c++) expected.push(pixel(4, f, y, x, c));
    expect([...clip.video]).toEqual(expected);
  });

  it("take floats a little beyond 0 and 1 for rounding", async () => {
    const floats = Float32Array.from({ length: 2 * 2 * 4 }, (_, i) => [0, 1, 1.0000001, -0.0000001][i % 4]);
    await writeZip(join(folder, "videos_data.npz"), new Map([["a.npy", npyBytes("<f4", [2, 2, 2, 2], floats)]]));
    await writeZip(join(folder, "labels_data.npz"), new Map([["a.npy", npyBytes("|u1", [2, 1], new Uint8Array(2))]]));
    const options = { source: "npz", path: folder, axes: "NFHW", frames: 1, height: 2, width: 2, num_channels: 1 };
    const rest = { digits: 1, digit_size: 2, seed: 1, size: 9, min_speed: 1, max_speed: 1 };
    const data = await openData({ ...options, ...rest, frame_processing: "clip" } as DataOptions);
    expect([...(await data.clip(0)).video]).toEqual([0, 255, 255, 0]);
  });
});
