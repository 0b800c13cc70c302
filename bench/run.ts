/** `npm run bench`: training steps of the full-size models, beside the same steps in PyTorch. See bench/README.md. */
import { join } from "node:path";
import { Command, InvalidArgumentError, Option } from "commander";
import { type FlowRunConfig, loadConfig, type VaeRunConfig } from "../lib/config/index.js";
import { packageRoot } from "../lib/native.js";
import { availableMemory, describeLoad, describeMachine, torchVersion } from "./machine.js";
import { type Commands, type Measurement, measure, profile } from "./measure.js";
import type { BenchDtype, FlowSetup, Setup, VaeSetup } from "./protocol.js";

interface Options {
  suite: "cpu";
  only: string[];
  dtype: BenchDtype[];
  batch: number[];
  rounds: number;
  peer?: "torch" | "none";
  config: string[];
  json: boolean;
  profile: boolean;
}

const SUITES = { cpu: { "vae-step": [1, 4, 32], "flow-step": [1, 32] } } as const;
const CONFIGS = ["autoencoder.yaml", "ltx_video.yaml"].map((file) => join(packageRoot, "configs/moving_mnist", file));
/** Of the text tokens; the rest is padding, as short prompts have it. */
const WORDS = 5;

const list = (value: string) => value.split(",").map((item) => item.trim());
const numbers = (value: string) => list(value).map(positive);
function positive(value: string): number {
  const number = Number(value);
  if (!Number.isInteger(number) || number < 1)
    throw new InvalidArgumentError(`expected a whole number from 1, got ${value}`);
  return number;
}
const oneOf = (allowed: readonly string[]) => (value: string) => {
  for (const item of list(value)) {
    if (!allowed.includes(item)) throw new InvalidArgumentError(`${item} is not one of ${allowed.join(", ")}`);
  }
  return list(value);
};

function options(): Options {
  const command = new Command("bench")
    .addOption(new Option("--suite <name>", "what to measure").choices(Object.keys(SUITES)).default("cpu"))
    .option("--only <names>", "only these measurements", oneOf(Object.keys(SUITES.cpu)), [])
    .option("--dtype <names>", "dtypes of activations", oneOf(["f32", "bf16"]), ["f32", "bf16"])
    .option("--batch <sizes>", "batch sizes, instead of the suite's", numbers, [])
    .option("--rounds <n>", "repetitions; medians are reported", positive, 5)
    .addOption(new Option("--peer <name>", "default: torch where it can be imported").choices(["torch", "none"]))
    .option("--config <files>", "other models: a VAE's file, a transformer's, or a quickstart", list, CONFIGS)
    .option("--profile", "one step of ours by kernel, no peer", false)
    .option("--json", "a line of JSON for each measurement", false);
  return command.parse().opts();
}

function vaeSetup({ vae, loss, data }: VaeRunConfig): Omit<VaeSetup, "dtype" | "batch"> {
  const shape = [data.frames, data.height, data.width, data.num_channels];
  // Neither the adversarial nor the perceptual term takes part.
  return { name: "vae-step", config: { vae, loss: { ...loss, adversarial_weight: 0, perceptual_weight: 0 }, shape } };
}

function flowSetup({ transformer, text_encoder }: FlowRunConfig): Omit<FlowSetup, "dtype" | "batch"> {
  const { input_number_of_frames: frames, input_spatial_size: size, input_channels: channels } = transformer;
  const shape = [frames, ...(Array.isArray(size) ? size : [size, size]), channels];
  const text = [text_encoder.max_length, transformer.caption_channels ?? transformer.cross_attention_dim] as const;
  return { name: "flow-step", config: { transformer, shape, text, words: WORDS } };
}

async function setups({ suite, only, dtype, batch, config }: Options): Promise<Setup[]> {
  const found: Setup[] = [];
  for (const file of config) {
    const run = await loadConfig(file);
    const models = run.kind === "quickstart" ? [run.vae, run.flow] : [run];
    for (const model of models) {
      const setup = model.kind === "vae" ? vaeSetup(model) : flowSetup(model);
      if (only.length && !only.includes(setup.name)) continue;
      const batches = batch.length ? batch : SUITES[suite][setup.name];
      for (const type of dtype) for (const b of batches) found.push({ ...setup, dtype: type, batch: b });
    }
  }
  return found;
}

function peerCommand({ peer, profile }: Options): { command: readonly string[] | null; note: string } {
  if (peer === "none" || profile) return { command: null, note: "no peer" };
  const python = process.env.LTX_PYTHON ?? "python3";
  const version = torchVersion(python);
  const hint = `${python} cannot import torch: LTX_PYTHON may name a Python that can`;
  if (version) return { command: [python, join(__dirname, "peers/steps.py")], note: `PyTorch ${version}` };
  if (peer === "torch") throw new Error(hint);
  return { command: null, note: `no peer: ${hint}` };
}

/**
 * What a batch will take, by what a smaller one took: 16 bytes a parameter (value, gradient, two moments) don't grow.
 */
function predictedBytes(setup: Setup, before: { setup: Setup; result: Measurement } | undefined): number {
  if (!before || before.setup.name !== setup.name || before.setup.dtype !== setup.dtype) return 0;
  const { result } = before;
  // Only activations grow with the batch: what tensors took beyond parameters, gradients and Adam's two moments.
  const activations = Math.max(0, (result.peak_bytes ?? 0) - 16 * result.parameters);
  const took = Math.max(result.rss_bytes, result.peer_rss_bytes ?? 0);
  return took + activations * (setup.batch / before.setup.batch - 1);
}

const gib = (bytes: number | null) => (bytes === null ? "" : (bytes / 2 ** 30).toFixed(2));
const HEAD = ["name", "dtype", "batch", "ours_s", "peer_s", "ratio", "GFLOP/s", "peak GiB", "RSS GiB", "peer RSS GiB"];
const row = (cells: readonly unknown[]) =>
  cells
    .map((cell, i) => String(cell).padStart(i ? 9 : 12))
    .join(" ")
    .trimEnd();

function table({ name, dtype, batch }: Setup, m: Measurement): string {
  const seconds = (s: number | null) => (s === null ? "" : s.toPrecision(4));
  const memory = [gib(m.peak_bytes), gib(m.rss_bytes), gib(m.peer_rss_bytes)];
  const speed = (m.flops / m.ours_s / 1e9).toFixed(1);
  return row([name, dtype, batch, seconds(m.ours_s), seconds(m.peer_s), m.ratio?.toFixed(2) ?? "", speed, ...memory]);
}

function json({ name, dtype, batch }: Setup, m: Measurement): string {
  const { ours_s, peer_s, ratio, peak_bytes, rss_bytes, peer_rss_bytes } = m;
  const speed = { "GFLOP/s": m.flops / ours_s / 1e9 };
  return JSON.stringify({ name, dtype, batch, ours_s, peer_s, ratio, ...speed, peak_bytes, rss_bytes, peer_rss_bytes });
}

async function printProfile(setup: Setup, commands: Commands): Promise<void> {
  const { seconds, profile: ops = [], flops = 0, peak_bytes, rss_bytes } = await profile(setup, commands);
  const total = ops.reduce((sum, op) => sum + op.seconds, 0);
  const memory = `peak ${gib(peak_bytes ?? 0)} GiB, RSS ${gib(rss_bytes)} GiB`;
  console.log(`${setup.name} ${setup.dtype} batch ${setup.batch}: ${(flops / 1e9).toFixed(1)} GFLOP, ${memory}`);
  console.log(`  ${seconds.toFixed(3)} s, ${total.toFixed(3)} s of it in kernels`);
  for (const { op, seconds, calls } of ops) {
    if (seconds < 0.002 * total) break;
    const share = ((100 * seconds) / total).toFixed(1).padStart(5);
    console.log(`  ${op.padEnd(28)} ${share} %  ${String(calls).padStart(5)} calls`);
  }
}

async function main(): Promise<void> {
  const chosen = options();
  const say = chosen.json ? console.error : console.log;
  const { command: peer, note } = peerCommand(chosen);
  const ours = [process.execPath, ...process.execArgv, join(__dirname, "steps.ts")];
  say(`${describeMachine()}, ${describeLoad()}`);
  say(note);
  if (!chosen.json && !chosen.profile) console.log(row(HEAD));
  let before: { setup: Setup; result: Measurement } | undefined;
  for (const setup of await setups(chosen)) {
    if (chosen.profile) {
      await printProfile(setup, { ours, peer: null });
      continue;
    }
    const needed = predictedBytes(setup, before);
    if (needed > availableMemory()) {
      const { name, dtype, batch } = setup;
      say(
        `${name} ${dtype} batch ${batch} is left out: needs about ${gib(needed)} GiB, ${gib(availableMemory())} available`,
      );
      continue;
    }
    const result = await measure(setup, { ours, peer }, chosen.rounds);
    if (!before) say(`ltx-native: ${JSON.stringify(result.about)}`);
    console.log(chosen.json ? json(setup, result) : table(setup, result));
    if (result.peer_about) say(`  ${result.peer_about}${result.resident ? "" : "; one process in memory at a time"}`);
    before = { setup, result };
  }
  say(describeLoad());
}

main().catch((error) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
