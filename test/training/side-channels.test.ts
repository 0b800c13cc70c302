/** What only shows a training may fail; it goes on, and says so. */
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { saveLossCurve } from "../../lib/formats/chart.js";
import { EventWriter } from "../../lib/formats/tensorboard.js";
import { Video } from "../../lib/pipelines/index.js";
import { FlowTrainer, type TrainEvent, train } from "../../lib/training/index.js";
import { RunDirectory } from "../../lib/training/run-directory.js";
import { call, collect, newestCheckpoint, testFolder, tinyFlow, tinyVae } from "../support/tiny.js";
import { trainTinyVae } from "../support/tiny-models.js";

vi.mock("../../lib/formats/chart.js", { spy: true });

const folder = testFolder();
afterEach(() => vi.restoreAllMocks());
const config = () =>
  tinyVae((file) => {
    Object.assign(file.vae.training, { steps: 6, save_every: 3, sample_every: 2 });
  });
const notices = (events: readonly TrainEvent[]) =>
  events.flatMap((event) => (event.type === "notice" ? [event.message] : []));

async function trained(name: string): Promise<{ run: string; events: TrainEvent[] }> {
  const run = join(folder, name);
  const events = await collect(train({ out: run, config: config() }));
  expect(newestCheckpoint(run).step).toBe("step-00000006");
  expect(events[events.length - 1].type === "end" || events.some(({ type }) => type === "end")).toBe(true);
  return { run, events };
}

describe("a training goes on without", () => {
  it("its pictures", async () => {
    vi.spyOn(Video.prototype, "savePictures").mockRejectedValue(new Error("ENOSPC: no space left"));
    const { events } = await trained("pictures");
    expect(notices(events)).toEqual([
      "reconstructions-2 could not be drawn: ENOSPC: no space left",
      "reconstructions-4 could not be drawn: ENOSPC: no space left",
      "reconstructions could not be drawn: ENOSPC: no space left",
    ]);
  });

  it("its loss curve", async () => {
    vi.mocked(saveLossCurve).mockRejectedValueOnce(new Error("no fonts"));
    const { events } = await trained("curve");
    expect(notices(events)).toEqual(["the loss curve could not be drawn: no fonts"]);
  });

  it("TensorBoard's file, of which it tells once, and writes another one when it can", async () => {
    const flush = vi.spyOn(EventWriter.prototype, "flush").mockRejectedValueOnce(new Error("EDQUOT"));
    const { run, events } = await trained("tensorboard");
    expect(flush.mock.calls.length).toBeGreaterThan(1);
    expect(notices(events)).toEqual(["TensorBoard's file can't be written: EDQUOT"]);
    expect(readdirSync(join(run, "tensorboard"))).toHaveLength(2);
  });

  it("TensorBoard at all", async () => {
    vi.spyOn(EventWriter, "open").mockRejectedValue(new Error("EMFILE"));
    const { events } = await trained("none");
    expect(notices(events)).toEqual(["TensorBoard's file can't be written: EMFILE"]);
  });

  it("its log, and writes down later what it could not before", async () => {
    const append = RunDirectory.prototype.append;
    let calls = 0;
    vi.spyOn(RunDirectory.prototype, "append").mockImplementation(async function (this: RunDirectory, events) {
      if (++calls < 3) throw new Error("ENOSPC");
      return append.call(this, events);
    });
    const { run, events } = await trained("log");
    expect(notices(events)).toEqual(["what happens can't be written down: ENOSPC"]);
    const lines = readFileSync(join(run, "events.jsonl"), "utf8").trimEnd().split("\n");
    expect(lines.map((line) => JSON.parse(line).type).filter((type) => type === "step")).toHaveLength(6);
  });
});

describe("a run that is continued for longer", () => {
  it("goes on from its end, and keeps to that when it is continued again", async () => {
    const { run } = await trained("longer");
    const more = await call("train", "--resume", run, "--steps", "9", "--json");
    expect(more.code).toBe(0);
    const events = more.stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as TrainEvent);
    expect(events.flatMap((event) => (event.type === "step" ? [event.step] : []))).toEqual([7, 8, 9]);
    expect(notices(events)).toEqual([
      "the learning rate's cosine now ends at step 9 instead of 6: it goes on from where step 6 of such a run stands",
    ]);
    expect(JSON.parse(readFileSync(join(run, "run.json"), "utf8")).config.training.steps).toBe(9);
    expect((await call("train", "--resume", run)).stdout).toBe(`nothing left to do in ${run}\n`);
  });

  it("is refused where that can't be", async () => {
    const { run } = await trained("refused");
    for (const steps of [0, 1.5, 2]) {
      await expect(collect(train({ out: run, steps }))).rejects.toMatchObject({
        code: "config",
        message: expect.stringContaining("more than the 2 of the learning rate's warm-up"),
      });
    }
    expect(readdirSync(run)).not.toContain("run.lock");
  });
});

describe("latents on disk", () => {
  const flow = () =>
    tinyFlow((file) => {
      Object.assign(file.flow.training, { steps: 3 });
    });
  const create = async (latents: string, data?: { fingerprint?: string; video?: number }) => {
    const { frames, height, width } = flow().data;
    const size = { frames, height, width, channels: 1 };
    const video = new Uint8Array(frames * height * width).fill(data?.video ?? 0);
    const source = data && {
      ...size,
      length: 8,
      ...(data.fingerprint !== undefined && { fingerprint: data.fingerprint }),
      clip: (index: number) => ({ ...size, video: video.map((v, i) => v + ((i + index) % 7)), prompt: "1" }),
    };
    return FlowTrainer.create({
      config: flow(),
      vae: await trainTinyVae(folder),
      latents,
      data: source,
      testData: source,
    });
  };
  const encoded = async (trainer: FlowTrainer) => {
    const events = await collect(trainer.run());
    trainer.dispose();
    return {
      again: events.some(({ type }) => type === "prepare"),
      loss: events.flatMap((e) => (e.type === "step" ? [e.loss] : [])),
    };
  };

  it("are found again by what their pixels are, and by nothing else", async () => {
    const file = join(folder, "latents.safetensors");
    const first = await encoded(await create(file, { fingerprint: "a" }));
    expect(first.again).toBe(true);
    expect(await encoded(await create(file, { fingerprint: "a" }))).toEqual({ ...first, again: false });
    const other = await encoded(await create(file, { fingerprint: "b", video: 100 }));
    expect(other.again).toBe(true);
    expect(other.loss).not.toEqual(first.loss);
    expect((await encoded(await create(file))).again).toBe(true);
  });

  it("are not kept of data that can't be told apart", async () => {
    const file = join(folder, "unknown.safetensors");
    await encoded(await create(file, {}));
    expect(() => statSync(file)).toThrow("ENOENT");
  });

  it("that were damaged are encoded again", async () => {
    const file = join(folder, "damaged.safetensors");
    const first = await encoded(await create(file, { fingerprint: "a" }));
    const bytes = readFileSync(file);
    bytes[bytes.length - 3] ^= 0x40;
    writeFileSync(file, bytes);
    expect(await encoded(await create(file, { fingerprint: "a" }))).toEqual(first);
  });

  it("that can't be written cost no training", async () => {
    const file = join(folder, "a-folder.safetensors");
    mkdirSync(join(file, "in-the-way"), { recursive: true });
    const trainer = await create(file, { fingerprint: "a" });
    const events = await collect(trainer.run());
    trainer.dispose();
    expect(notices(events)).toEqual([expect.stringMatching(/^the latents could not be kept for a resumed run: /)]);
    rmSync(file, { recursive: true });
  });
});
