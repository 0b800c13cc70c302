import { describe, expect, it } from "vitest";
import * as api from "../lib/index.js";

const clip = { data: new Uint8Array(48), frames: 1, height: 4, width: 4, channels: 3 };
const video = () => new api.Video([new Uint8Array(96)], 2, 4, 4, 3, ["a prompt"]);
const mnist = () => new api.MovingMnist({ size: 4, frames: 3, height: 16, width: 16, digits: 1, digitSize: 10 });

describe("a wrong argument of an exported function is named", () => {
  it.each<[name: string, call: (...args: never[]) => unknown, args: unknown[], message: RegExp]>([
    ["batchIndices", api.batchIndices, [undefined], /\[data order\] the position is undefined, expected an object/],
    ["batchIndices", api.batchIndices, [{ seed: 1n, step: 0, batchSize: 1, length: 4 }], /seed must be .*got 1n/],
    ["loadDigits", api.loadDigits, ["validation"], /\[digits\] split is "validation", expected one of train, test/],
    ["promptFor", api.promptFor, [7, 1, 0], /\[moving-mnist\] labels is 7, expected an array/],
    ["promptFor", api.promptFor, [["toString"], 1, 0], /label must be a whole number from 0 to 9, got "toString"/],
    ["MovingMnist.batch", (i: never) => mnist().batch(i), ["01"], /indices is "01", expected an array/],
    [
      "MovingMnist",
      (o: never) => new api.MovingMnist(o),
      [{ maxSpeed: "fast" }],
      /maxSpeed is "fast", expected a number/,
    ],
    ["paddedSize", api.paddedSize, [{ height: 64, width: 0.5, frames: 9 }], /width is 0\.5, expected a whole number/],
    ["paddedSize", api.paddedSize, [null], /\[media\] size is null, expected an object/],
    ["conditioningFrames", api.conditioningFrames, ["0", 5, 9], /start is "0", expected a whole number/],
    ["firstFrames", api.firstFrames, [clip, 0.5], /cannot take 0\.5 frames/],
    ["firstFrames", api.firstFrames, [{ ...clip, data: "abc" }, 1], /data are "abc", expected a Uint8Array/],
    ["psnr", api.psnr, ["2", 16], /\[psnr\] squaredError is "2", expected a number/],
    ["ssim", api.ssim, [undefined, undefined, [1, 1, 4, 4, 1]], /\[ssim\] video 0 is undefined, expected an object/],
    [
      "drawPrompts",
      api.drawPrompts,
      [{ digits: 1, num_classes: 11 }, 1, 1],
      /num_classes is 11, expected .* from 1 to 10/,
    ],
    [
      "Video",
      (c: never) => new api.Video(c, 2, 4, 4, 3),
      [[new Uint8Array(95)]],
      /a clip is Uint8Array of 95 bytes, expected 96/,
    ],
    ["Video.fromFloats", api.Video.fromFloats, [new Float32Array(3), [1, 1, 2, 2, 1]], /expected a Float32Array of 4/],
    ["Video.clip", (i: never) => video().clip(i), [1], /index is 1, expected a whole number from 0 to 0/],
    ["Video.first", (n: never) => video().first(n), [3], /to is 3, expected a whole number from 1 to 2/],
    [
      "Video.crop",
      (b: never) => video().crop(b),
      [{ left: 3, top: 0, height: 1, width: 2 }],
      /box\.width is 2, .* from 1 to 1/,
    ],
  ])("%s", (_, call, args, message) => {
    const run = () => call(...(args as never[]));
    expect(run).toThrow(api.LtxError);
    expect(run).toThrow(message);
  });

  it.each<[name: string, call: (path: never) => Promise<unknown>]>([
    ["readSafetensors", api.readSafetensors],
    ["openTensorFile", api.openTensorFile],
    ["openLora", api.openLora],
    ["openOfficial", api.openOfficial],
    ["Video.save", (path) => video().save(path)],
    ["writeVideo", (path) => api.writeVideo(path, clip, { fps: 8 })],
  ])("%s takes a path, not a number, a symbol or nothing", async (_, call) => {
    for (const path of [7, Symbol("p"), undefined, Object.create(null), "", "a\0b"]) {
      const error: Error = await call(path as never).then(
        () => new Error("taken"),
        (reason) => reason,
      );
      expect(error).toBeInstanceOf(api.LtxError);
      expect(error.message).toMatch(/expected a path/);
    }
  });
});

describe("the package", () => {
  it("exports nothing that reaches a kernel past the checks", () => {
    const doors = ["launch", "record", "alias", "checkFloats", "checkLists", "checkOperands", "checkSingles", "owning"];
    expect(doors.filter((name) => name in api)).toEqual([]);
    expect(Object.keys(api)).toEqual(expect.arrayContaining(["Tensor", "device", "empty", "backward", "scope", "ops"]));
  });
});
