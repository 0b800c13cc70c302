/**
 * Epochs of flow training as a user runs them, in a process of its own: FlowTrainer with its caches of latents and prompts.
 * The first line on standard input is an EpochSetup as JSON, answered by the times of the first epoch; each following line
 * asks for another epoch. Each answer is a line of JSON. The end of the input ends the process.
 */
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { FlowRunConfig } from "../lib/config/index.js";
import { openData } from "../lib/data/index.js";
import { FlowTrainer } from "../lib/training/index.js";

export interface EpochSetup {
  device: string;
  /** `data.size` is the number of clips. */
  config: FlowRunConfig;
  /** A folder of the text encoder, and one for the caches. */
  textEncoder: string;
  folder: string;
}

/** Times of an epoch, in seconds. */
export interface EpochReply {
  /** From the call to the end of the last step. */
  seconds: number;
  /** Until all clips were encoded; 0 when they were there. */
  encode_s: number;
  /** Of each step but the first, in which the caches are written. */
  step_s: number[];
  loss: number;
  rss_bytes: number;
  peak_bytes: number;
}

async function main(): Promise<void> {
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const { device, config, textEncoder, folder }: EpochSetup = JSON.parse((await lines.next()).value);
  const trainer = await FlowTrainer.create({
    config,
    device,
    textEncoder,
    // One clip, as the trainer wants some: the reference holds none out.
    testData: await openData(config.data, "test", 1),
    latents: join(folder, "latents.safetensors"),
    prompts: join(folder, "prompts.safetensors"),
  });
  const epoch = config.data.size / config.training.batch_size;
  const run = async (): Promise<EpochReply> => {
    const last = trainer.step + epoch;
    const begun = performance.now();
    const since = () => (performance.now() - begun) / 1000;
    const ends: number[] = [];
    let [encode_s, loss] = [0, Number.NaN];
    for await (const event of trainer.run({ steps: last })) {
      if (event.type === "prepare") encode_s = since();
      if (event.type !== "step") continue;
      ends.push(since());
      loss = event.loss;
    }
    // What follows the last step is the score on the held-out clip.
    const seconds = ends[ends.length - 1];
    const step_s = ends.slice(1).map((end, i) => end - ends[i]);
    const rss_bytes = process.resourceUsage().maxRSS * 1024;
    return { seconds, encode_s, step_s, loss, rss_bytes, peak_bytes: trainer.device.memory().peak };
  };
  const reply = async () => process.stdout.write(`${JSON.stringify(await run())}\n`);
  await reply();
  for await (const _ of lines) await reply();
  trainer.dispose();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
