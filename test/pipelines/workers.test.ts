/** Several threads of one process, and processes that end with work in the queue. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { TextToVideo } from "../../lib/pipelines/index.js";
import { device } from "../../lib/tensor/index.js";
import { type Compiled, compileLibrary } from "../support/compiled.js";
import { root, testFolder } from "../support/tiny.js";
import { trainTiny } from "../support/tiny-models.js";

const folder = testFolder();
const script = join(__dirname, "..", "support", "sampler-worker.cjs");
let checkpoint: string;
let library: Compiled; // a thread can't load TypeScript that is imported later
beforeAll(async () => {
  library = compileLibrary();
  checkpoint = await trainTiny(folder);
});
afterAll(() => library.remove());

const SEEDS = [1, 2, 3, 4, 5, 6, 7, 8];
const STEPS = 6;

/** Hashes by seed, sampled in this thread one after the other. */
async function alone(): Promise<Map<number, string>> {
  const pipeline = await TextToVideo.load(checkpoint);
  const hashes = new Map<number, string>();
  for (const seed of SEEDS) {
    const { clips } = await pipeline.generate({ prompts: ["three", "4"], seed, steps: STEPS });
    const hash = createHash("sha256");
    for (const clip of clips) hash.update(clip);
    hashes.set(seed, hash.digest("hex"));
  }
  pipeline.dispose();
  return hashes;
}

function work(seeds: number[], steps = STEPS) {
  const worker = new Worker(script, { workerData: { library: library.path("index.js"), checkpoint, seeds, steps } });
  const hashes = new Map<number, string>();
  const started = new Promise<void>((resolve) => {
    worker.on("message", ({ seed, hash }) => {
      if (hash) hashes.set(seed, hash);
      else resolve();
    });
  });
  const ended = new Promise<number>((resolve, reject) => {
    worker.on("error", reject);
    worker.on("exit", resolve);
  });
  return { worker, hashes, started, ended };
}

describe("worker threads", () => {
  it("four at once sample what one samples alone", async () => {
    const expected = await alone();
    expect(new Set(expected.values()).size).toBe(SEEDS.length);
    const workers = [0, 1, 2, 3].map((i) => work([SEEDS[2 * i], SEEDS[2 * i + 1]]));
    expect(await Promise.all(workers.map(({ ended }) => ended))).toEqual([0, 0, 0, 0]);
    expect(new Map(workers.flatMap(({ hashes }) => [...hashes]))).toEqual(expected);
  });

  it("may be terminated in the middle of work; their memory is freed and others go on", async () => {
    const expected = await alone();
    const before = device().memory().live;
    const steady = work(SEEDS.slice(0, 2));
    for (let i = 0; i < 3; i++) {
      const victims = [work([1], 100_000), work([2], 100_000)];
      await Promise.all(victims.map(({ started }) => started));
      expect(await Promise.all(victims.map(({ worker }) => worker.terminate()))).toEqual([1, 1]);
    }
    expect(await steady.ended).toBe(0);
    expect([...steady.hashes]).toEqual([...expected].slice(0, 2));
    await device().synchronize();
    expect(device().memory().live).toBe(before);
    expect(await alone()).toEqual(expected);
  });
});

describe("the end of the process", () => {
  const run = (body: string) =>
    new Promise<{ code: number | null; stderr: string }>((resolve) => {
      const library = join(root, "lib", "index.ts");
      const source = `const { TextToVideo, device, ops, Tensor } = require(${JSON.stringify(library)});
        (async () => { ${body} })();`;
      const child = execFile(process.execPath, ["--import", "tsx", "-e", source], { cwd: root }, (_, __, stderr) => {
        resolve({ code: child.exitCode, stderr });
      });
    });

  it("process.exit with queued work is code 0", async () => {
    const queue = `
      const x = Tensor.from(new Float32Array(512 * 512), [512, 512]);
      for (let i = 0; i < 200; i++) ops.linear(x, x).dispose();
      process.exit(0);`;
    expect(await run(queue)).toEqual({ code: 0, stderr: "" });
  });

  it("process.exit while sampling is code 0", async () => {
    const sample = `
      const pipeline = await TextToVideo.load(${JSON.stringify(checkpoint)});
      await pipeline.generate({ prompts: ["1"], steps: 1000, onStep: (n) => n === 3 && process.exit(0) });`;
    expect(await run(sample)).toEqual({ code: 0, stderr: "" });
  });

  it("a pipeline that nobody disposes of does not keep the process alive", async () => {
    const leave = `
      const pipeline = await TextToVideo.load(${JSON.stringify(checkpoint)});
      await pipeline.generate({ prompts: ["1"], steps: 2 });`;
    expect(await run(leave)).toEqual({ code: 0, stderr: "" });
  });
});
