/** While a model trains or samples, the event loop stays free: a server beside it answers in time. */

import { join } from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { expect, it } from "vitest";
import { loadConfig, type QuickstartConfig } from "../../lib/config/index.js";
import { TextToVideo } from "../../lib/pipelines/index.js";
import { FlowTrainer, train, VaeTrainer } from "../../lib/training/index.js";
import { collect, root, testFolder } from "../support/tiny.js";

const folder = testFolder();
const LIMIT_MS = 20;
/** Of the longest single wait: one block of seconds among ten thousand samples would not show in a percentile. */
const LONGEST_MS = 250;
const RESOLUTION_MS = 1;

/** Milliseconds by which a timer of one millisecond was late while `body` ran. */
async function delays(name: string, body: () => Promise<unknown>): Promise<{ p50: number; p99: number; max: number }> {
  const histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  histogram.enable();
  await body();
  histogram.disable();
  const ms = (ns: number) => Math.max(0, ns / 1e6 - RESOLUTION_MS);
  const found = { p50: ms(histogram.percentile(50)), p99: ms(histogram.percentile(99)), max: ms(histogram.max) };
  console.log(
    `${name}: p50 ${found.p50.toFixed(2)} ms, p99 ${found.p99.toFixed(2)} ms, max ${found.max.toFixed(2)} ms, ${histogram.count} samples`,
  );
  return found;
}

function expectFree({ p99, max }: { p99: number; max: number }): void {
  expect(p99).toBeLessThan(LIMIT_MS);
  expect(max).toBeLessThan(LONGEST_MS);
}

/** The quickstart as it ships, with fewer steps. */
async function quickstart(): Promise<QuickstartConfig> {
  const config = (await loadConfig(join(root, "configs", "quickstart.yaml"))) as QuickstartConfig;
  for (const { training } of [config.vae, config.flow])
    Object.assign(training, { steps: 60, save_every: 30, validate_every: 30 });
  for (const { data } of [config.vae, config.flow]) data.size = 512;
  return config;
}

it("training the quickstart's models", async () => {
  const { vae, flow } = await quickstart();
  const trainer = await VaeTrainer.create({ config: vae });
  const checkpoints = join(folder, "checkpoints");
  // The first step builds kernels and reads the digits.
  await collect(trainer.run({ steps: 1 }));
  expectFree(await delays("vae", () => collect(trainer.run({ checkpoints }))));
  trainer.dispose();

  const model = join(checkpoints, "step-00000060", "model.safetensors");
  const second = await FlowTrainer.create({ config: flow, vae: model });
  await collect(second.run({ steps: 1 }));
  expectFree(await delays("flow", () => collect(second.run({ checkpoints: join(folder, "flow") }))));
  second.dispose();
});

it("a whole run with its pictures, and sampling", async () => {
  const config = await quickstart();
  for (const { training } of [config.vae, config.flow]) {
    training.steps = 20;
    training.lr_schedule.warmup_steps = 5;
  }
  const out = join(folder, "run");
  expectFree(await delays("run", () => collect(train({ out, config }))));
  const pipeline = await TextToVideo.load(out);
  const prompts = ["zero", "1", "two", "3"];
  expectFree(await delays("sampling", () => pipeline.generate({ prompts })));
  pipeline.dispose();
});

it("writing and reading a checkpoint of a model with tens of millions of parameters", async () => {
  const { vae } = await quickstart();
  Object.assign(vae.vae, { base_channels: 8 * vae.vae.base_channels });
  const trainer = await VaeTrainer.create({ config: vae });
  const [checkpoints, step] = [join(folder, "large"), 0];
  expectFree(
    await delays(`${(trainer.vae.parameterCount / 1e6).toFixed(0)} M`, async () => {
      const path = await trainer.save(checkpoints);
      await trainer.resume(path, step);
    }),
  );
  trainer.dispose();
});
