import { readFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { beforeAll, describe, expect, it } from "vitest";
import {
  device,
  MovingMnist,
  reconstructHeldOut,
  Tensor,
  TextToVideo,
  VaeTrainer,
  type Video,
} from "../../lib/index.js";
import { collect, testFolder, tinyFlow, tinyVae, tinyVaeYaml, writeYaml } from "../support/tiny.js";
import { trainTiny } from "../support/tiny-models.js";

const folder = testFolder();
let run: string;
beforeAll(async () => {
  run = await trainTiny(folder);
});

const live = async () => {
  await device().synchronize();
  return device().memory().live;
};
const bytes = (video: Video) => video.clips.map((clip) => Buffer.from(clip).toString("base64"));

describe("the library, as the guide shows it", () => {
  it("trains from a file on a data set of one's own and stops at the signal", async () => {
    const before = await live();
    const config = writeYaml(folder, "autoencoder.yaml", tinyVaeYaml());
    const data = new MovingMnist({ seed: 1, frames: 5, height: 16, width: 16, digits: 1, digitSize: 10, size: 48 });
    const trainer = await VaeTrainer.create({ config, data, device: "auto" });
    const stop = new AbortController();
    const losses: number[] = [];
    let reason = "";
    for await (const event of trainer.run({ steps: 1000, signal: stop.signal })) {
      if (event.type === "step") losses[event.step] = event.loss;
      if (event.type === "step" && event.step === 6) stop.abort();
      if (event.type === "end") reason = event.reason;
    }
    expect(reason).toBe("aborted");
    expect(losses.length - 1).toBe(trainer.step);
    expect(losses.slice(1).every((loss) => loss > 0)).toBe(true);
    expect(losses[losses.length - 1]).toBeLessThan(losses[1]);
    // The same object goes on where it stopped.
    const [next] = (await collect(trainer.run({ steps: trainer.step + 1 }))).filter(({ type }) => type === "step");
    expect(next).toMatchObject({ step: losses.length });
    trainer.dispose();
    expect(await live()).toBe(before);
  });

  it("loads a run, generates and saves by extension", async () => {
    const before = await live();
    const pipeline = await TextToVideo.load(run);
    const video = await pipeline.generate({ prompts: ["three and 7"], steps: 5, seed: 1 });
    expect(video).toMatchObject({ frames: 5, height: 16, width: 16, channels: 1, prompts: ["three and 7"] });
    for (const [name, pages] of Object.entries({ "a.gif": 5, "a.webp": 5, "a.png": undefined })) {
      await video.save(join(folder, name));
      expect((await sharp(join(folder, name), { animated: true }).metadata()).pages).toBe(pages);
    }
    await expect(video.save(join(folder, "a.txt"))).rejects.toMatchObject({ code: "invalid_argument" });
    pipeline.dispose();
    expect(await live()).toBe(before);
  });

  it("is disposed of when the videos that it draws are done", async () => {
    const before = await live();
    const [pipeline, other] = [await TextToVideo.load(run), await TextToVideo.load(run)];
    const options = { prompts: ["three"], steps: 4, seed: 2 };
    const drawing = [pipeline.generate(options), pipeline.generate({ ...options, guidance: 2 })];
    pipeline.dispose();
    await expect(pipeline.generate(options)).rejects.toMatchObject({ code: "disposed" });
    const expected = [await other.generate(options), await other.generate({ ...options, guidance: 2 })];
    expect((await Promise.all(drawing)).map(bytes)).toEqual(expected.map(bytes));
    other.dispose();
    expect(await live()).toBe(before);
  });

  it("leaves nothing on the device when a listener, a wait or a read fails", async () => {
    const pipeline = await TextToVideo.load(run);
    const options = { prompts: ["three"], steps: 3, seed: 2, guidance: 2 };
    const expected = bytes(await pipeline.generate(options));
    const before = await live();
    const failAt = (step: number) => (done: number) => {
      if (done === step) throw new Error("planted");
    };
    for (const step of [1, 2, 3]) {
      await expect(pipeline.generate({ ...options, onStep: failAt(step) })).rejects.toThrow("planted");
      expect(await live()).toBe(before);
    }
    const { read } = Tensor.prototype;
    Tensor.prototype.read = () => Promise.reject(new Error("planted"));
    await expect(pipeline.generate(options)).rejects.toThrow("planted");
    Tensor.prototype.read = read;
    expect(await live()).toBe(before);
    const { ready } = Tensor.prototype;
    let waits = 0;
    Tensor.prototype.ready = function () {
      return ++waits === 2 ? Promise.reject(new Error("planted")) : ready.call(this);
    };
    await expect(pipeline.generate(options)).rejects.toThrow("planted");
    Tensor.prototype.ready = ready;
    expect(waits).toBe(2);
    expect(await live()).toBe(before);
    expect(bytes(await pipeline.generate(options))).toEqual(expected);
    pipeline.dispose();
  });

  it("is loaded with progress, and not when it is stopped", async () => {
    const before = await live();
    const heard: [number, number][] = [];
    const pipeline = await TextToVideo.load(run, { onLoad: (done, total) => heard.push([done, total]) });
    expect(heard.length).toBeGreaterThan(10);
    expect(heard.every(([done], i) => i === 0 || done > heard[i - 1][0])).toBe(true);
    expect(heard[heard.length - 1][0]).toBe(heard[0][1]);
    pipeline.dispose();
    const stop = new AbortController();
    const loading = TextToVideo.load(run, { signal: stop.signal, onLoad: () => stop.abort() });
    await expect(loading).rejects.toMatchObject({ code: "aborted" });
    expect(await live()).toBe(before);
  });

  it("has room for two pipelines in one process, which do not mix", async () => {
    const before = await live();
    const [a, b] = await Promise.all([TextToVideo.load(run), TextToVideo.load(join(run, "flow"))]);
    const one = await a.generate({ prompts: ["1"], steps: 6, seed: 1 });
    const two = await b.generate({ prompts: ["2", "3"], steps: 4, seed: 2 });
    const both = await Promise.all([
      a.generate({ prompts: ["1"], steps: 6, seed: 1 }),
      b.generate({ prompts: ["2", "3"], steps: 4, seed: 2 }),
      a.generate({ prompts: ["1"], steps: 6, seed: 1 }),
    ]);
    expect(both.map(bytes)).toEqual([bytes(one), bytes(two), bytes(one)]);
    a.dispose();
    expect(bytes(await b.generate({ prompts: ["2", "3"], steps: 4, seed: 2 }))).toEqual(bytes(two));
    await expect(a.generate({ prompts: ["1"] })).rejects.toMatchObject({ code: "disposed" });
    b.dispose();
    a.dispose();
    expect(await live()).toBe(before);
  });

  it("trains and samples at the same time in one process", async () => {
    const pipeline = await TextToVideo.load(run);
    const expected = bytes(await pipeline.generate({ prompts: ["1"], seed: 3, steps: 8 }));
    const lossesOf = async () => {
      const trainer = await VaeTrainer.create({ config: tinyVae() });
      const events = await collect(trainer.run());
      trainer.dispose();
      return events.flatMap((event) => (event.type === "step" ? [event.loss] : []));
    };
    const undisturbed = await lossesOf();
    const [losses, video] = await Promise.all([lossesOf(), pipeline.generate({ prompts: ["1"], seed: 3, steps: 8 })]);
    expect(losses).toEqual(undisturbed);
    expect(bytes(video)).toEqual(expected);
    pipeline.dispose();
  });
});

describe("generate", () => {
  it("gives each prompt of a batch what it gets alone, but for the noise", async () => {
    const pipeline = await TextToVideo.load(run);
    const { clips } = await pipeline.generate({ prompts: ["5", "5"], seed: 1, steps: 4 });
    expect(clips[0]).not.toEqual(clips[1]);
    pipeline.dispose();
  });

  it("does without the second branch at guidance 1", async () => {
    const pipeline = await TextToVideo.load(run);
    const plain = await pipeline.generate({ prompts: ["5"], seed: 1, steps: 4, guidance: 1 });
    const guided = await pipeline.generate({ prompts: ["5"], seed: 1, steps: 4, guidance: 4 });
    expect(bytes(plain)).not.toEqual(bytes(guided));
    pipeline.dispose();
  });

  it("stops at the signal and leaves nothing on the device", async () => {
    const pipeline = await TextToVideo.load(run);
    // The first run keeps the tables of positions, which belong to the pipeline.
    await pipeline.generate({ prompts: ["1"], steps: 1 });
    const before = await live();
    const stop = new AbortController();
    const onStep = (done: number) => done === 3 && stop.abort();
    const generated = pipeline.generate({ prompts: ["1"], steps: 1000, signal: stop.signal, onStep });
    await expect(generated).rejects.toMatchObject({ code: "aborted" });
    expect(await live()).toBe(before);
    pipeline.dispose();
  });

  it("refuses wrong arguments", async () => {
    const pipeline = await TextToVideo.load(run);
    const before = await live();
    const refused = (options: object, message: string) =>
      expect(pipeline.generate({ prompts: ["1"], ...options })).rejects.toMatchObject({
        code: "invalid_argument",
        message: expect.stringContaining(message),
      });
    await refused({ prompts: undefined }, "prompts must be a non-empty list of strings, got undefined");
    await refused({ prompts: [] }, "prompts must be a non-empty list of strings, got []");
    await refused({ prompts: [7] }, "prompts must be a non-empty list of strings, got [7]");
    await refused({ prompts: "1" }, 'prompts must be a non-empty list of strings, got "1"');
    await refused({ steps: 0 }, "steps must be a positive whole number, got 0");
    await refused({ steps: 2.5 }, "steps must be a positive whole number, got 2.5");
    await refused({ guidance: -1 }, "guidance must be a number from 0, got -1");
    await refused({ guidance: Number.NaN }, "guidance must be a number from 0, got NaN");
    await refused({ seed: -1 }, "seed");
    await refused({ seed: 1.5 }, "seed");
    expect(await live()).toBe(before);
    pipeline.dispose();
  });

  it("takes prompts of any text", async () => {
    const pipeline = await TextToVideo.load(run);
    const prompts = ["", "ünï¢ødé 数字 🙂", "x".repeat(500), "a\nb"];
    const { clips } = await pipeline.generate({ prompts, steps: 2 });
    expect(clips.map(({ length }) => length)).toEqual([1280, 1280, 1280, 1280]);
    pipeline.dispose();
  });
});

describe("load", () => {
  it("leaves nothing on the device when the checkpoint does not fit", async () => {
    const before = await live();
    await expect(TextToVideo.load(join(run, "vae"))).rejects.toMatchObject({ code: "checkpoint" });
    expect(await live()).toBe(before);
  });
});

describe("reconstructHeldOut", () => {
  it("frees what it took and agrees with the PSNR of its own pictures", async () => {
    const before = await live();
    const { originals, reconstructions, psnr } = await reconstructHeldOut(run, { clips: 4, seed: 9 });
    expect(await live()).toBe(before);
    let error = 0;
    let pixels = 0;
    for (const [i, clip] of originals.clips.entries()) {
      for (const [k, value] of clip.entries()) error += ((value - reconstructions.clips[i][k]) / 255) ** 2;
      pixels += clip.length;
    }
    // The pictures are clipped to [0, 1] and rounded, the score is not.
    expect(Math.abs(-10 * Math.log10(error / pixels) - psnr)).toBeLessThan(0.5);
    const again = await reconstructHeldOut(run, { clips: 4, seed: 9 });
    expect(again.psnr).toBe(psnr);
    expect((await reconstructHeldOut(run, { clips: 4, seed: 10 })).psnr).not.toBe(psnr);
  });
});

it("a run's folder holds what the flow's configuration says", () => {
  const { config } = JSON.parse(readFileSync(join(run, "flow", "run.json"), "utf8"));
  expect(config).toEqual(JSON.parse(JSON.stringify(tinyFlow())));
});
