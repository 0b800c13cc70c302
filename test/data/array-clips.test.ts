import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type DataOptions, loadClips, openData, promptFor } from "../../lib/data/index.js";
import { resizeFrame } from "../../lib/data/resize.js";
import { LtxError } from "../../lib/errors.js";
import { failure } from "../support/failure.js";
import { npyBytes } from "../support/npy.js";
import { writeZip } from "../support/pytorch.js";

const folder = mkdtempSync(join(tmpdir(), "ltx-clips-"));
afterAll(() => rmSync(folder, { recursive: true }));

const [COUNT, FRAMES, SIDE] = [20, 7, 4];
/** Pixel (y, x) of frame f of video n. */
const pixel = (n: number, f: number, y: number, x: number) => (n * 8 + f * 3 + y * SIDE + x) % 256;
const LABELS = Array.from({ length: COUNT }, (_, n) => [n % 10, (n * 7 + 1) % 10]);

const options: DataOptions = {
  source: "npz",
  frames: 3,
  height: SIDE,
  width: SIDE,
  num_channels: 1,
  frame_processing: "clip",
  digits: 2,
  digit_size: 4,
  seed: 5,
  size: 10000,
  min_speed: 1,
  max_speed: 1,
};

function videos(): Uint8Array {
  const out = new Uint8Array(COUNT * FRAMES * SIDE * SIDE);
  let i = 0;
  for (let n = 0; n < COUNT; n++)
    for (let f = 0; f < FRAMES; f++)
      for (let y = 0; y < SIDE; y++) for (let x = 0; x < SIDE; x++) out[i++] = pixel(n, f, y, x);
  return out;
}

const expected = (n: number, frames: readonly number[]) =>
  frames.flatMap((f) => Array.from({ length: SIDE * SIDE }, (_, i) => pixel(n, f, Math.floor(i / SIDE), i % SIDE)));

/** Labels (N, F, 2): the digits in frame 0, others after it. */
function labels(): BigInt64Array {
  const out = new BigInt64Array(COUNT * FRAMES * 2).fill(3n);
  LABELS.forEach(([a, b], n) => {
    out[n * FRAMES * 2] = BigInt(a);
    out[n * FRAMES * 2 + 1] = BigInt(b);
  });
  return out;
}

async function writePair(name: string, video: Buffer, label: Buffer, compress = false): Promise<string> {
  const path = join(folder, name);
  mkdirSync(path, { recursive: true });
  await writeZip(join(path, "videos_data.npz"), new Map([["arr_0.npy", video]]), { compress });
  await writeZip(join(path, "labels_data.npz"), new Map([["arr_0.npy", label]]), { compress });
  return path;
}

const goodVideos = npyBytes("|u1", [COUNT, FRAMES, SIDE, SIDE], videos());
const goodLabels = npyBytes("<i8", [COUNT, FRAMES, 2], labels());
let path: string;
beforeAll(async () => {
  path = await writePair("pair", goodVideos, goodLabels);
});

describe("videos_data.npz and labels_data.npz", () => {
  it.each([false, true])("give clips, labels and prompts; compressed: %s", async (compress) => {
    const path = await writePair("both", goodVideos, goodLabels, compress);
    const data = await openData({ ...options, path });
    expect([data.length, data.frames, data.height, data.width, data.channels]).toEqual([18, 3, 4, 4, 1]);
    for (const n of [0, 17]) {
      const clip = await data.clip(n);
      expect([...clip.video]).toEqual(expected(n, [0, 1, 2]));
      expect(clip.labels).toEqual(LABELS[n]);
      expect(clip.prompt).toBe(promptFor(LABELS[n], 5, n));
      expect(data.promptFor?.(LABELS[n], 1, 2)).toBe(promptFor(LABELS[n], 1, 2));
    }
    expect([...(await loadClips(data, [3, 1]))]).toEqual([...expected(3, [0, 1, 2]), ...expected(1, [0, 1, 2])]);
  });

  it("hold out the last tenth", async () => {
    const data = await openData({ ...options, path }, "test", 32);
    expect(data.length).toBe(2);
    expect([...(await data.clip(1)).video]).toEqual(expected(19, [0, 1, 2]));
    expect((await data.clip(0)).labels).toEqual(LABELS[18]);
    expect((await openData({ ...options, path }, "test", 1)).length).toBe(1);
    expect(await failure(async () => data.clip(2))).toMatchObject({ code: "invalid_argument" });
  });

  it("sample every floor(F / N)-th frame where asked", async () => {
    const sample = await openData({ ...options, path, frame_processing: "sample" });
    expect([...(await sample.clip(2)).video]).toEqual(expected(2, [0, 2, 4]));
    const all = await openData({ ...options, path, frame_processing: "sample", frames: 5 });
    expect([...(await all.clip(2)).video]).toEqual(expected(2, [0, 1, 2, 3, 4]));
  });

  it("may have a channel axis, floats, and labels once a video", async () => {
    const floats = npyBytes(
      "<f4",
      [COUNT, FRAMES, 1, SIDE, SIDE],
      Float32Array.from(videos(), (v) => v / 255),
    );
    const once = npyBytes("|u1", [COUNT, 2], Uint8Array.from(LABELS.flat()));
    const data = await openData({ ...options, path: await writePair("float", floats, once) });
    const clip = await data.clip(4);
    expect([...clip.video]).toEqual(expected(4, [0, 1, 2]));
    expect(clip.labels).toEqual(LABELS[4]);
    const rows = npyBytes("<i8", [COUNT * FRAMES, 2], labels());
    const other = await openData({ ...options, path: await writePair("rows", goodVideos, rows) });
    expect((await other.clip(9)).labels).toEqual(LABELS[9]);
  });

  it("may be flat, then 30 frames of 64 x 64", async () => {
    const flat = Uint8Array.from({ length: 2 * 30 * 64 * 64 }, (_, i) => (i * 7) % 251);
    const flatLabels = npyBytes(
      "|u1",
      [2 * 30 * 2],
      Uint8Array.from({ length: 120 }, (_, i) => i % 10),
    );
    const path = await writePair("flat", npyBytes("|u1", [2, 30 * 64 * 64], flat), flatLabels);
    const data = await openData({ ...options, path, height: 64, width: 64, frames: 2 }, "test");
    const clip = await data.clip(0);
    expect(clip.video).toEqual(flat.subarray(30 * 4096, 32 * 4096));
    expect(clip.labels).toEqual([0, 1]);
  });

  it("are scaled to the clip's size", async () => {
    const data = await openData({ ...options, path, height: 2, width: 2, frames: 1 });
    const [frame] = [(await data.clip(0)).video];
    expect(frame).toEqual(resizeFrame(videos().subarray(0, 16), [4, 4], [2, 2]));
  });

  it.each<[string, () => [Buffer, Buffer], Partial<DataOptions>, string, string]>([
    [
      "too few frames",
      () => [goodVideos, goodLabels],
      { frames: 8 },
      "config",
      "have 7 frames, the configuration asks for 8",
    ],
    [
      "other channels",
      () => [goodVideos, goodLabels],
      { num_channels: 3 },
      "config",
      "have 1 channels, data.num_channels is 3",
    ],
    [
      "another number of labels",
      () => [goodVideos, npyBytes("|u1", [19, 2], new Uint8Array(38))],
      {},
      "file_format",
      "has shape (19, 2)",
    ],
    [
      "labels of more videos",
      () => [goodVideos, npyBytes("|u1", [2 * COUNT, FRAMES, 2], new Uint8Array(4 * COUNT * FRAMES))],
      {},
      "file_format",
      "has shape (40, 7, 2), expected (20, 7, digits)",
    ],
    [
      "labels that are no digits",
      () => [goodVideos, npyBytes("<f8", [COUNT, 2], new Float64Array(40).fill(1.5))],
      {},
      "file_format",
      "video 0 has label 1.5",
    ],
    [
      "labels from 10",
      () => [goodVideos, npyBytes("|u1", [COUNT, 2], new Uint8Array(40).fill(10))],
      {},
      "file_format",
      "has label 10",
    ],
    [
      "16-bit videos",
      () => [npyBytes("<u2", [COUNT, FRAMES, 2, 2], new Uint16Array(COUNT * FRAMES * 4)), goodLabels],
      {},
      "file_format",
      "holds u2",
    ],
    [
      "a shape without axes",
      () => [npyBytes("|u1", [77], new Uint8Array(77)), goodLabels],
      {},
      "file_format",
      "has shape (77)",
    ],
    [
      "no videos",
      () => [npyBytes("|u1", [0, 7, 4, 4], new Uint8Array(0)), goodLabels],
      {},
      "file_format",
      "at least one video",
    ],
    [
      "one video",
      () => [npyBytes("|u1", [1, 7, 4, 4], new Uint8Array(112)), npyBytes("|u1", [1, 2], new Uint8Array(2))],
      {},
      "file_format",
      "holds 1 video",
    ],
  ])("are refused with %s", async (_, files, changes, code, reason) => {
    const path = await writePair("bad", ...files());
    const error = await failure(() => openData({ ...options, path, ...changes }));
    expect([error.code, error.message]).toEqual([code, expect.stringContaining(reason)]);
  });

  it("are refused where floats leave [0, 1], or nothing is there", async () => {
    const floats = Float32Array.from(videos(), (v) => v);
    const path = await writePair("wild", npyBytes("<f4", [COUNT, FRAMES, SIDE, SIDE], floats), goodLabels);
    const data = await openData({ ...options, path });
    expect((await failure(async () => data.clip(1))).message).toMatch(/video 1 holds \d+, expected floats from 0 to 1/);
    expect(await failure(() => openData({ ...options, path: join(folder, "nowhere") }))).toMatchObject({ code: "io" });
    expect(await failure(() => openData(options))).toMatchObject({ code: "config" });
  });
});

describe("damaged files", () => {
  it.each([false, true])("give clips or an LtxError; compressed: %s", async (compress) => {
    const path = await writePair("source", goodVideos, goodLabels, compress);
    const files = ["videos_data.npz", "labels_data.npz"].map((name) => join(path, name));
    const sources = files.map((file) => readFileSync(file));
    const edit = fc.record({ at: fc.nat(), byte: fc.nat(255) });
    const before = readdirSync(path);
    await fc.assert(
      fc.asyncProperty(fc.nat(1), fc.array(edit, { maxLength: 4 }), fc.nat(12), async (which, edits, cut) => {
        const bytes = Buffer.from(sources[which]);
        for (const { at, byte } of edits) bytes[at % bytes.length] = byte;
        // One in four is cut short.
        writeFileSync(files[which], bytes.subarray(0, cut < 3 ? (bytes.length * cut) / 3 : bytes.length));
        writeFileSync(files[1 - which], sources[1 - which]);
        try {
          const data = await openData({ ...options, path });
          await data.clip(data.length - 1);
        } catch (error) {
          expect(error).toBeInstanceOf(LtxError);
          expect(["file_format", "config"]).toContain((error as LtxError).code);
        }
      }),
      { seed: 6, numRuns: 200 },
    );
    expect(readdirSync(path)).toEqual(before);
  });
});

describe("mnist_test_seq.npy", () => {
  it.each([false, true])("has frames first and no labels; in Fortran's order: %s", async (fortran) => {
    const source = videos();
    const area = SIDE * SIDE;
    const out = new Uint8Array(source.length);
    for (let n = 0; n < COUNT; n++) {
      for (let f = 0; f < FRAMES; f++) {
        for (let p = 0; p < area; p++) {
          const [y, x] = [Math.floor(p / SIDE), p % SIDE];
          const to = fortran ? f + FRAMES * (n + COUNT * (y + SIDE * x)) : (f * COUNT + n) * area + p;
          out[to] = source[(n * FRAMES + f) * area + p];
        }
      }
    }
    const bytes = npyBytes("|u1", [FRAMES, COUNT, SIDE, SIDE], out, fortran);
    writeFileSync(join(folder, "mnist_test_seq.npy"), bytes);
    writeFileSync(join(folder, "other.npy"), bytes);
    for (const path of [folder, join(folder, "other.npy")]) {
      const data = await openData({ ...options, source: "npy", path, frame_processing: "sample" }, "test");
      expect([data.length, data.promptFor]).toEqual([2, undefined]);
      const clip = await data.clip(0);
      expect([...clip.video]).toEqual(expected(18, [0, 2, 4]));
      expect([clip.prompt, clip.labels]).toEqual(["", undefined]);
    }
  });

  it("is refused with other axes, or missing", async () => {
    writeFileSync(join(folder, "flat.npy"), npyBytes("|u1", [6], new Uint8Array(6)));
    const npy = { ...options, source: "npy" as const };
    expect((await failure(() => openData({ ...npy, path: join(folder, "flat.npy") }))).message).toContain(
      "has shape (6)",
    );
    expect(await failure(() => openData({ ...npy, path: join(folder, "none.npy") }))).toMatchObject({ code: "io" });
  });
});

describe("resizeFrame", () => {
  it("weighs by a triangle as wide as the reduction", () => {
    // Halving: weights 1/8, 3/8, 3/8, 1/8 inside, the outer one cut off at the edges: (3, 3, 1) / 7.
    const row = Uint8Array.of(0, 70, 140, 210);
    expect(resizeFrame(row, [1, 4], [1, 2])).toEqual(Uint8Array.of((70 * 3 + 140) / 7, (70 + 140 * 3 + 210 * 3) / 7));
    expect(resizeFrame(row, [4, 1], [2, 1])).toEqual(resizeFrame(row, [1, 4], [1, 2]));
  });

  it("is bilinear where it enlarges", () => {
    expect(resizeFrame(Uint8Array.of(0, 100), [1, 2], [1, 4])).toEqual(Uint8Array.of(0, 25, 75, 100));
  });

  it("treats channels alone and keeps what is even", () => {
    const pair = Uint8Array.of(0, 9, 70, 9, 140, 9, 210, 9);
    expect(resizeFrame(pair, [1, 4], [1, 2], 2)).toEqual(Uint8Array.of(50, 9, 160, 9));
    expect(resizeFrame(new Uint8Array(64 * 48).fill(201), [64, 48], [17, 31])).toEqual(
      new Uint8Array(17 * 31).fill(201),
    );
  });
});
