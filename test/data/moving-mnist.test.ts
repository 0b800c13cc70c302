import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { MovingMnist, promptFor } from "../../lib/data/moving-mnist.js";
import { resizeSquare } from "../../lib/data/resize.js";
import { LtxError } from "../../lib/errors.js";

/** Ink-weighted centre of each frame of a clip. */
function centers({ video, frames, height, width }: ReturnType<MovingMnist["clip"]>): [number, number][] {
  return Array.from({ length: frames }, (_, f) => {
    let [sum, sumX, sumY] = [0, 0, 0];
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const ink = video[(f * height + y) * width + x];
        sum += ink;
        sumX += ink * x;
        sumY += ink * y;
      }
    }
    return [sumX / sum, sumY / sum];
  });
}

describe("MovingMnist", () => {
  it("makes clips of the stated form", () => {
    const data = new MovingMnist();
    expect([data.length, data.frames, data.height, data.width, data.channels]).toEqual([10000, 30, 64, 64, 1]);
    const clip = data.clip(9999);
    expect(clip.video).toHaveLength(30 * 64 * 64);
    expect(Math.max(...clip.video)).toBeGreaterThan(200);
    expect(clip.labels).toHaveLength(2);
    expect(clip.prompt).toMatch(/^([a-z]+|\d) and ([a-z]+|\d)$/);
  });

  it("has the same bytes on every machine", () => {
    const hash = createHash("sha256");
    const data = new MovingMnist({ seed: 2 ** 53 - 1 });
    for (const index of [0, 1, 9999]) hash.update(data.clip(index).video);
    expect(hash.digest("hex")).toMatchInlineSnapshot(
      `"d870b5b0d6e80c4a6ef6ddd81124e72125ee8618e8bb896d7f336952aba364ca"`,
    );
    expect(data.clip(3)).toEqual(new MovingMnist({ seed: 2 ** 53 - 1, size: 4 }).clip(3));
  });

  it("differs by seed, index and split", () => {
    const clips = [
      new MovingMnist().clip(0),
      new MovingMnist().clip(1),
      new MovingMnist({ seed: 1 }).clip(0),
      new MovingMnist({ split: "test" }).clip(0),
    ];
    expect(new Set(clips.map(({ video }) => Buffer.from(video).toString("latin1"))).size).toBe(4);
  });

  it("moves at constant velocity within the speed limits until it meets a border", () => {
    const data = new MovingMnist({ digits: 1, frames: 4, height: 200, width: 200, minSpeed: 1, maxSpeed: 2.5 });
    let straight = 0;
    for (let index = 0; index < 20; index++) {
      const path = centers(data.clip(index));
      const step = (f: number) => [path[f + 1][0] - path[f][0], path[f + 1][1] - path[f][1]];
      const [first, last] = [step(0), step(2)];
      if (Math.hypot(first[0] - last[0], first[1] - last[1]) > 0.02) continue;
      straight++;
      expect(Math.hypot(...first)).toBeGreaterThan(0.98);
      expect(Math.hypot(...first)).toBeLessThan(2.52);
    }
    expect(straight).toBeGreaterThan(15);
  });

  it("bounces: the digit stays whole and inside the frame", () => {
    const { video } = new MovingMnist({ digits: 1, frames: 200, minSpeed: 5, maxSpeed: 9, height: 40, width: 48 }).clip(
      0,
    );
    const ink = Array.from({ length: 200 }, (_, f) =>
      video.subarray(f * 40 * 48, (f + 1) * 40 * 48).reduce((sum, value) => sum + value, 0),
    );
    // Bilinear placement keeps the ink up to the rounding of each pixel.
    for (const sum of ink) expect(Math.abs(sum / ink[0] - 1)).toBeLessThan(0.01);
  });

  it("shows the digit itself where it cannot move, in a frame of its own size", () => {
    const clip = new MovingMnist({ digits: 1, frames: 3, height: 28, width: 28 }).clip(5);
    expect(clip.video.subarray(784, 1568)).toEqual(clip.video.subarray(0, 784));
  });

  it("overlaps by the maximum", () => {
    const data = new MovingMnist({ digits: 1, height: 28, width: 28, frames: 1 });
    const two = new MovingMnist({ digits: 2, height: 28, width: 28, frames: 1 });
    const first = data.clip(0).video;
    const both = two.clip(0).video;
    expect(both.every((value, i) => value >= first[i])).toBe(true);
    expect(both).not.toEqual(first);
  });

  it("draws labels and prompts evenly", () => {
    const data = new MovingMnist({ frames: 1, size: 1000 });
    const counts = new Array(10).fill(0);
    let words = 0;
    for (let i = 0; i < 1000; i++) {
      const { labels, prompt } = data.clip(i);
      for (const label of labels) counts[label]++;
      words += prompt.split(" and ").filter((part) => part.length > 1).length;
    }
    for (const count of counts) expect(Math.abs(count - 200)).toBeLessThan(55);
    expect(Math.abs(words - 1000)).toBeLessThan(90);
  });

  it("names the digits by word or character, a new choice each draw", () => {
    const wordings = new Set(Array.from({ length: 40 }, (_, draw) => promptFor([3, 7], 1, draw)));
    expect([...wordings].sort()).toEqual(["3 and 7", "3 and seven", "three and 7", "three and seven"]);
    expect(["three", "3"]).toContain(promptFor([3], 1, 0));
    expect(new MovingMnist({ seed: 1 }).promptFor([3, 7], 1, 4)).toBe(promptFor([3, 7], 1, 4));
    expect(() => promptFor([10], 0, 0)).toThrow("a label must be a whole number from 0 to 9, got 10");
  });

  it("batches clips one after the other", () => {
    const data = new MovingMnist({ frames: 2, height: 32, width: 32, digitSize: 14 });
    const batch = data.batch([4, 2]);
    expect(batch).toHaveLength(2 * 2 * 32 * 32);
    expect(batch.subarray(2048)).toEqual(data.clip(2).video);
    expect(batch.subarray(0, 2048)).toEqual(data.clip(4).video);
  });

  it.each([
    [{ digitSize: 65 }, "digitSize 65 does not fit a frame of 64x64; use at most 64"],
    [{ height: 20 }, "digitSize 28 does not fit a frame of 64x20; use at most 20"],
    [{ frames: 0 }, "frames must be a positive whole number, got 0"],
    [{ digits: 1.5 }, "digits must be a positive whole number, got 1.5"],
    [{ size: -1 }, "size must be a positive whole number, got -1"],
    [{ seed: -3 }, "seed must be a whole number from 0 to 2^53 - 1, got -3"],
    [{ split: "val" as "test" }, 'split must be "train" or "test", got "val"'],
    [{ minSpeed: 3, maxSpeed: 1 }, "got minSpeed 3 and maxSpeed 1"],
    [{ minSpeed: Number.NaN }, "0 <= minSpeed <= maxSpeed"],
    [{ digitsize: 3 } as object, 'unknown option "digitsize"'],
  ])("refuses %j", (options, message) => {
    const make = () => new MovingMnist(options);
    expect(make).toThrow(LtxError);
    expect(make).toThrow(message);
  });

  it("takes either speed alone", () => {
    expect(new MovingMnist({ minSpeed: 9 }).maxSpeed).toBe(9);
    expect(new MovingMnist({ maxSpeed: 1 }).minSpeed).toBe(1);
  });

  it.each([[-1], [10], [0.5]])("refuses clip %s of 10", (index) => {
    expect(() => new MovingMnist({ size: 10 }).clip(index)).toThrow(`from 0 to 9, got ${index}`);
  });
});

describe("resizeSquare", () => {
  it("averages areas when shrinking", () => {
    expect(resizeSquare(Uint8Array.of(0, 100, 50, 250), 2, 1)).toEqual(Uint8Array.of(100));
    // 3 -> 2: each output covers one and a half pixels each way.
    expect(resizeSquare(Uint8Array.of(90, 0, 0, 0, 0, 0, 0, 0, 0), 3, 2)).toEqual(Uint8Array.of(40, 0, 0, 0));
  });

  it("interpolates when enlarging", () => {
    expect(resizeSquare(Uint8Array.of(0, 100, 0, 100), 2, 4).subarray(0, 4)).toEqual(Uint8Array.of(0, 25, 75, 100));
  });

  it("keeps a flat image flat", () => {
    for (const to of [1, 5, 14, 19, 40]) {
      expect(resizeSquare(new Uint8Array(784).fill(201), 28, to)).toEqual(new Uint8Array(to * to).fill(201));
    }
  });
});
