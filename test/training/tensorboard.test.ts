import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Reader } from "protobufjs/minimal.js";
import { afterAll, expect, it } from "vitest";
import { savePng } from "../../lib/formats/images.js";
import type { StepEvent } from "../../lib/training/events.js";
import { TensorBoard } from "../../lib/training/tensorboard.js";

const folder = mkdtempSync(join(tmpdir(), "ltx-board-"));
afterAll(() => rmSync(folder, { recursive: true }));

interface Value {
  step: number;
  tag: string;
  value?: number;
  image?: { height: number; width: number };
}

/** The fields of a message: number to value, nested messages as bytes. */
function fields(bytes: Uint8Array): Map<number, number | Uint8Array> {
  const reader = Reader.create(bytes);
  const found = new Map<number, number | Uint8Array>();
  while (reader.pos < reader.len) {
    const key = reader.uint32();
    const wire = key & 7;
    const read = { 0: () => Number(reader.int64()), 1: () => reader.double(), 2: () => reader.bytes() };
    found.set(key >>> 3, wire === 5 ? reader.float() : read[wire as 0 | 1 | 2]());
  }
  return found;
}

function valuesIn(path: string): Value[] {
  const file = readFileSync(path);
  const values: Value[] = [];
  for (let at = 0; at < file.length; ) {
    const length = Number(file.readBigUInt64LE(at));
    const event = fields(file.subarray(at + 12, at + 12 + length));
    at += 16 + length;
    const summary = event.get(5);
    if (!(summary instanceof Uint8Array)) continue;
    const entry = fields(fields(summary).get(1) as Uint8Array);
    const image = entry.get(4) instanceof Uint8Array ? fields(entry.get(4) as Uint8Array) : null;
    values.push({
      step: event.get(2) as number,
      tag: Buffer.from(entry.get(1) as Uint8Array).toString(),
      ...(entry.has(2) ? { value: entry.get(2) as number } : {}),
      ...(image ? { image: { height: image.get(1) as number, width: image.get(2) as number } } : {}),
    });
  }
  return values;
}

const step = (at: number, loss: number): StepEvent => ({
  type: "step",
  stage: "vae",
  step: at,
  steps: 25,
  loss,
  terms: { kl: 2 * loss },
  learningRate: 0.5,
  gradientNorm: 4,
  stepsPerSecond: 8,
  secondsLeft: 1,
});

it("shows curves at the steps asked for, scores and pictures", async () => {
  const board = new TensorBoard(join(folder, "log"), 10);
  for (let at = 1; at <= 25; at++) await board.record(step(at, at / 4));
  await board.record({ type: "validate", stage: "vae", step: 20, metrics: { psnr: 24.5, other: Number.NaN } });
  const path = join(folder, "reconstructions-20.png");
  await savePng(path, { data: new Uint8Array(24), height: 4, width: 6, channels: 1 });
  await board.record({ type: "picture", stage: "vae", step: 20, what: "reconstructions-20", path });
  await board.record({ type: "picture", stage: "vae", step: 20, what: "reconstructions-20", path: "a.gif" });
  await board.close();

  const [name, ...others] = readdirSync(join(folder, "log"));
  expect(others).toEqual([]);
  const values = valuesIn(join(folder, "log", name));
  const curve = (tag: string) => values.filter((v) => v.tag === tag).map((v) => [v.step, v.value]);
  expect(curve("train/loss")).toEqual([1, 10, 20, 25].map((at) => [at, at / 4]));
  expect(curve("train/kl")).toEqual([1, 10, 20, 25].map((at) => [at, at / 2]));
  expect(curve("train/learning_rate")).toEqual([1, 10, 20, 25].map((at) => [at, 0.5]));
  expect(curve("train/gradient_norm")[0]).toEqual([1, 4]);
  expect(curve("held_out/psnr")).toEqual([[20, 24.5]]);
  expect(curve("held_out/other")).toEqual([]);
  expect(values.filter((v) => v.image)).toEqual([{ step: 20, tag: "reconstructions", image: { height: 4, width: 6 } }]);
});

it("makes no file where nothing happens", async () => {
  const board = new TensorBoard(join(folder, "empty"), 10);
  await board.record({ type: "start", stage: "vae", step: 0, steps: 1, parameters: 1, device: "cpu" });
  await board.flush();
  await board.close();
  expect(readdirSync(folder)).not.toContain("empty");
});
