/** What the commands print and write. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { beforeAll, describe, expect, it } from "vitest";
import type { TrainEvent } from "../../lib/training/index.js";
import {
  call,
  eventsOf,
  type Outcome,
  start,
  testFolder,
  tinyFile,
  tinyFlowYaml,
  tinyVaeYaml,
  writeYaml,
} from "../support/tiny.js";

const folder = testFolder();
const run = join(folder, "run");
let trained: Outcome;
let events: TrainEvent[];

beforeAll(async () => {
  // A process of its own: nothing that a library below prints goes unseen.
  trained = await start(["train", "--config", tinyFile, "--out", run, "--json"]).done;
  events = eventsOf(trained.stdout);
});

const range = (n: number) => Array.from({ length: n }, (_, i) => i + 1);

describe("train --json", () => {
  it("prints typed events only", () => {
    expect(trained).toMatchObject({ code: 0, stderr: "" });
    expect(new Set(events.map(({ type }) => type))).toEqual(
      new Set(["start", "step", "validate", "checkpoint", "prepare", "picture", "end"]),
    );
    expect(events.every(({ stage }) => stage === "vae" || stage === "flow")).toBe(true);
  });

  for (const stage of ["vae", "flow"]) {
    it(`tells the ${stage} stage's steps in order, with numbers`, () => {
      const mine = events.filter((event) => event.stage === stage);
      expect(mine[0]).toMatchObject({ type: "start", step: 0, steps: 12, device: "cpu" });
      const steps = mine.filter((event) => event.type === "step");
      expect(steps.map(({ step }) => step)).toEqual(range(12));
      for (const { loss, learningRate, gradientNorm, stepsPerSecond, secondsLeft } of steps) {
        expect(loss).toBeGreaterThan(0);
        expect(gradientNorm).toBeGreaterThan(0);
        expect(learningRate).toBeLessThanOrEqual(1e-3);
        expect(stepsPerSecond).toBeGreaterThan(0);
        expect(secondsLeft).toBeGreaterThanOrEqual(0);
      }
      expect(mine.filter((e) => e.type === "checkpoint").map(({ step }) => step)).toEqual([4, 8, 12]);
      expect(mine.filter((e) => e.type === "validate").map(({ step }) => step)).toEqual([8, 12]);
      expect(mine.filter((e) => e.type === "end")).toMatchObject([{ step: 12, reason: "finished" }]);
    });

    it(`keeps the ${stage} stage's events in events.jsonl`, () => {
      const kept = eventsOf(readFileSync(join(run, stage, "events.jsonl"), "utf8"));
      expect(kept).toEqual(events.filter((event) => event.stage === stage && event.type !== "prepare"));
    });

    it(`keeps two checkpoints of the ${stage} stage`, () => {
      expect(readdirSync(join(run, stage, "checkpoints")).sort()).toEqual(["step-00000008", "step-00000012"]);
    });
  }

  it("names pictures that are there", () => {
    const pictures = events.filter((event) => event.type === "picture");
    expect(pictures.map(({ path }) => path.slice(run.length + 1))).toEqual([
      ...["vae/loss.png", "vae/reconstructions.gif", "vae/reconstructions.png"],
      ...["flow/samples-6.gif", "flow/samples-6.png", "flow/loss.png", "flow/samples.gif", "flow/samples.png"],
    ]);
    for (const { path } of pictures) expect(existsSync(path)).toBe(true);
  });
});

describe("pictures", () => {
  // Tiles of 16 pixels eight times enlarged, six pixels apart; below each a line of 16 pixels or more for its prompt.
  it("samples show two clips of five frames side by side", async () => {
    for (const name of ["samples.gif", "samples-6.gif"]) {
      const { format, pages, width, pageHeight, loop } = await sharp(join(run, "flow", name), {
        animated: true,
      }).metadata();
      expect({ format, pages, width, loop }).toEqual({ format: "gif", pages: 5, width: 2 * 128 + 3 * 6, loop: 0 });
      expect(pageHeight).toBeGreaterThanOrEqual(128 + 2 * 6 + 16);
    }
    const still = await sharp(join(run, "flow", "samples.png")).metadata();
    expect(still).toMatchObject({ format: "png", width: 2 * 128 + 3 * 6 });
  });

  it("reconstructions show eight clips beside their originals", async () => {
    const path = join(run, "vae", "reconstructions.gif");
    const { pages, width, pageHeight } = await sharp(path, { animated: true }).metadata();
    expect({ pages, width }).toEqual({ pages: 5, width: 4 * 128 + 5 * 6 });
    expect(pageHeight).toBeGreaterThanOrEqual(4 * (128 + 16));
  });

  it("the loss curve is a picture with more than one colour", async () => {
    for (const stage of ["vae", "flow"]) {
      const image = sharp(join(run, stage, "loss.png"));
      expect((await image.metadata()).width).toBeGreaterThanOrEqual(400);
      expect((await image.stats()).channels.some(({ min, max }) => max - min > 100)).toBe(true);
    }
  });
});

describe("train for people", () => {
  it("names what it does and where the pictures are", async () => {
    const out = join(folder, "vae");
    const config = writeYaml(folder, "vae.yaml", tinyVaeYaml());
    const { code, stdout, stderr } = await call(
      "train",
      "--config",
      config,
      "--out",
      out,
      "--steps",
      "3",
      "--batch-size",
      "1",
    );
    expect({ code, stderr: stderr.replace(/^\d+\/3 vae .*\n/gm, "") }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(/^vae: 0\.05 M parameters on cpu, 3 steps\n/);
    expect(stdout).toContain(`done: the pictures are in ${out}\n`);
    const { config: used } = JSON.parse(readFileSync(join(out, "run.json"), "utf8"));
    expect(used.training).toMatchObject({ steps: 3, batch_size: 1 });
  });

  it("trains a transformer on a VAE that was trained before", async () => {
    const out = join(folder, "flow");
    const config = writeYaml(folder, "flow.yaml", tinyFlowYaml());
    const { code } = await call("train", "--config", config, "--out", out, "--vae", join(run, "vae"));
    expect(code).toBe(0);
    // The same data, seed and VAE as in the quickstart's second stage.
    const model = join("checkpoints", "step-00000012", "training.safetensors");
    expect(readFileSync(join(out, model))).toEqual(readFileSync(join(run, "flow", model)));
  });
});

describe("sample", () => {
  async function sample(name: string, ...argv: string[]): Promise<Buffer> {
    const out = join(folder, name);
    const done = await call("sample", "--checkpoint", run, "--out", out, ...argv);
    const paths = ["gif", "png", "txt"].map((type) => `${join(out, `samples.${type}`)}\n`);
    expect(done).toEqual({ code: 0, stdout: paths.join(""), stderr: "" });
    return readFileSync(join(out, "samples.gif"));
  }

  it("draws the same for the same seed, and something else for another seed, prompt, guidance or step count", async () => {
    const base = ["--prompt", "three", "--seed", "5"];
    const first = await sample("a", ...base);
    expect(await sample("b", ...base)).toEqual(first);
    const others = [
      ["--prompt", "three", "--seed", "6"],
      ["--prompt", "four", "--seed", "5"],
      [...base, "--guidance", "1"],
      [...base, "--steps", "7"],
    ];
    for (const [i, argv] of others.entries()) expect(await sample(`c${i}`, ...argv), argv.join(" ")).not.toEqual(first);
  });

  it("reads a run, a stage, a checkpoint and a file alike", async () => {
    const first = await sample("r0");
    const stage = join(run, "flow");
    const checkpoint = join(stage, "checkpoints", "step-00000012");
    for (const path of [stage, checkpoint, join(checkpoint, "model.safetensors")]) {
      const out = join(folder, "again");
      expect((await call("sample", "--checkpoint", path, "--out", out)).code).toBe(0);
      expect(readFileSync(join(out, "samples.gif"))).toEqual(first);
    }
    expect(readFileSync(join(stage, "samples.gif"))).toEqual(first);
  });

  it("repeats prompts to the number asked for", async () => {
    const gif = await sample("many", "--prompt", "1", "--prompt", "two", "--num-samples", "5");
    const { pages, width } = await sharp(gif, { animated: true }).metadata();
    expect({ pages, width }).toEqual({ pages: 5, width: 3 * 128 + 4 * 6 });
  });

  it("tells its steps with --json", async () => {
    const out = join(folder, "json");
    const { code, stdout, stderr } = await call("sample", "--checkpoint", run, "--steps", "3", "--out", out, "--json");
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(eventsOf(stdout)).toEqual([
      ...range(3).map((step) => ({ type: "sample-step", step, steps: 3 })),
      { type: "picture", what: "samples", path: join(out, "samples.gif") },
      { type: "picture", what: "samples", path: join(out, "samples.png") },
      { type: "prompts", what: "samples", path: join(out, "samples.txt") },
    ]);
  });
});

describe("reconstruct", () => {
  it("prints the PSNR that validation found", async () => {
    const out = join(folder, "rec");
    const { code, stdout } = await call(
      "reconstruct",
      "--checkpoint",
      run,
      "--num-samples",
      "32",
      "--out",
      out,
      "--json",
    );
    expect(code).toBe(0);
    const [last] = eventsOf(stdout).slice(-1) as unknown as { type: string; psnr: number }[];
    expect(last.type).toBe("metrics");
    const validated = events.filter((event) => event.type === "validate" && event.stage === "vae");
    // Validation takes the same 32 clips in batches of two.
    expect(last.psnr).toBeCloseTo((validated[1] as Extract<TrainEvent, { type: "validate" }>).metrics.psnr, 3);
  });

  it("shows a flow run's VAE too, for people", async () => {
    const out = join(folder, "rec2");
    const { code, stdout } = await call(
      "reconstruct",
      "--checkpoint",
      join(run, "flow", "checkpoints", "step-00000012"),
      "--num-samples",
      "2",
      "--out",
      out,
    );
    expect(code).toBe(0);
    expect(stdout).toMatch(/\nPSNR \d+\.\d\d dB, SSIM -?\d\.\d{4} over 2 held-out clips\n$/);
    const { pages, width } = await sharp(join(out, "reconstructions.gif"), { animated: true }).metadata();
    expect({ pages, width }).toEqual({ pages: 5, width: 4 * 128 + 5 * 6 });
  });
});

describe("info", () => {
  it("describes the machine as one JSON object", async () => {
    const { code, stdout } = await call("info", "--json");
    expect(code).toBe(0);
    const info = JSON.parse(stdout);
    expect(info).toMatchObject({ node: process.versions.node, platform: "linux-x64" });
    expect(info.device.name).toMatch(/^(cpu|cuda:0)$/);
    expect(info.device.threads ?? info.device.compute).toBeTruthy();
    const names = info.backends.map(({ name }: { name: string }) => name);
    expect(names).toEqual(expect.arrayContaining(["cpu_avx2", "cpu_avx512", "cuda"]));
  });

  it("says what CUDA is, or why it is off", async () => {
    const { code, stdout } = await call("info");
    expect(code).toBe(0);
    expect(stdout).toMatch(/^backend {5}cuda: (off \(.+\)|available \(.*compute capability \d.*\))$/m);
  });
});
