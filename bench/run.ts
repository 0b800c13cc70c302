/** `npm run bench`: whole steps of the models, beside the same steps in PyTorch. See bench/README.md. */
import { join } from "node:path";
import { Command, Option } from "commander";
import { device as openDevice } from "../lib/tensor/index.js";
import { type Ceilings, floorSeconds } from "./floor.js";
import { casesFor, scalesOf } from "./kernels/cases.js";
import { measureCeilings } from "./kernels/measure.js";
import { availableMemory, describeLoad, describeMachine } from "./machine.js";
import { type Commands, type Measurement, measure, profile, type RoundOptions } from "./measure.js";
import { deviceName, list, numbers, oneOf, positive, seconds } from "./options.js";
import { findPeer, type PeerChoice } from "./peers.js";
import type { BenchDtype, Setup } from "./protocol.js";
import { STEP_NAMES, SUITES, type SuiteName, setups } from "./setups.js";

interface Options {
  suite?: SuiteName;
  device: string;
  only: string[];
  dtype: BenchDtype[];
  batch: number[];
  rounds: number;
  budget?: number;
  peer: PeerChoice;
  config: string[];
  floor: boolean;
  json: boolean;
  profile: boolean;
}

function options(): Options {
  return new Command("bench")
    .addOption(new Option("--suite <name>", "what to measure (by the device)").choices(Object.keys(SUITES)))
    .option("--device <name>", "auto, cpu, cuda, cuda:N or emulator", deviceName, "auto")
    .option("--only <names>", `only these measurements: ${STEP_NAMES.join(", ")}`, oneOf(STEP_NAMES), [])
    .option("--dtype <names>", "dtypes of activations", oneOf(["f32", "bf16"]), ["f32", "bf16"])
    .option("--batch <sizes>", "batch sizes, instead of the suite's", numbers, [])
    .option("--rounds <n>", "repetitions; medians are reported", positive, 5)
    .option("--budget <s>", "start no repetition after that many seconds", seconds)
    .addOption(new Option("--peer <name>", "default: torch where it can be imported").choices(["torch", "none"]))
    .option("--config <files>", "other models: a VAE's file, a transformer's, or a quickstart", list, [])
    .option("--no-floor", "measure neither the machine's ceilings nor what part of them a step reaches")
    .option("--profile", "one step of ours by kernel, no peer", false)
    .option("--json", "a line of JSON for each measurement", false)
    .parse()
    .opts();
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

const CEILING_TIMES = { rounds: 5, seconds: 0.1 };

const gib = (bytes: number | null) => (bytes === null ? "" : (bytes / 2 ** 30).toFixed(2));
const HEAD = [
  ...["name", "dtype", "batch", "ours_s", "peer_s", "ratio", "GFLOP/s", "floor %"],
  ...["peak GiB", "RSS GiB", "peer RSS"],
];
const row = (cells: readonly unknown[]) =>
  cells
    .map((cell, i) => String(cell).padStart(i ? 9 : 12))
    .join(" ")
    .trimEnd();

interface Floor {
  floor_s: number | null;
  floor_fraction: number | null;
}

function floorOf({ dtype }: Setup, { ours_s, flops, least_bytes }: Measurement, ceilings: Ceilings | null): Floor {
  const floor_s = ceilings && floorSeconds(flops, least_bytes, dtype, ceilings);
  return { floor_s, floor_fraction: floor_s && floor_s / ours_s };
}

function table({ name, dtype, batch }: Setup, m: Measurement, { floor_fraction }: Floor): string {
  const seconds = (s: number | null) => (s === null ? "" : s.toPrecision(4));
  const memory = [gib(m.peak_bytes), gib(m.rss_bytes), gib(m.peer_rss_bytes)];
  const speed = (m.flops / m.ours_s / 1e9).toFixed(1);
  const share = floor_fraction === null ? "" : (100 * floor_fraction).toFixed(1);
  const ratio = m.ratio?.toFixed(2) ?? "";
  return row([name, dtype, batch, seconds(m.ours_s), seconds(m.peer_s), ratio, speed, share, ...memory]);
}

/** A line of --json. Where something failed the other numbers are null, but for those of the side that worked. */
export interface StepLine extends Floor {
  kind: "step";
  name: string;
  dtype: BenchDtype;
  batch: number;
  ours_s: number | null;
  peer_s: number | null;
  ratio: number | null;
  "GFLOP/s": number | null;
  peak_bytes: number | null;
  peer_peak_bytes: number | null;
  rss_bytes: number | null;
  peer_rss_bytes: number | null;
  peer: string | null;
  peer_others: Record<string, number | string> | null;
  error: string | null;
  peer_error: string | null;
}

function line(setup: Setup, { result, error, peerError }: Outcome, ceilings: Ceilings | null): StepLine {
  const { name, dtype, batch } = setup;
  return {
    kind: "step",
    ...{ name, dtype, batch },
    ...(result ? floorOf(setup, result, ceilings) : { floor_s: null, floor_fraction: null }),
    ours_s: result?.ours_s ?? null,
    peer_s: result?.peer_s ?? null,
    ratio: result?.ratio ?? null,
    "GFLOP/s": result ? result.flops / result.ours_s / 1e9 : null,
    peak_bytes: result?.peak_bytes ?? null,
    peer_peak_bytes: result?.peer_peak_bytes ?? null,
    rss_bytes: result?.rss_bytes ?? null,
    peer_rss_bytes: result?.peer_rss_bytes ?? null,
    peer: result?.peer_about ?? null,
    peer_others: result?.peer_others ?? null,
    error: error ?? null,
    peer_error: peerError ?? null,
  };
}

interface Outcome {
  result?: Measurement;
  error?: string;
  peerError?: string;
}

/** A failure is an answer too; without the peer our step is measured by itself. */
async function attempt(setup: Setup, commands: Commands, options: RoundOptions): Promise<Outcome> {
  try {
    return { result: await measure(setup, commands, options) };
  } catch (error) {
    const { message } = error as Error;
    if (!commands.peer) return { error: message };
    const alone = await attempt(setup, { ...commands, peer: null }, options);
    return alone.result ? { ...alone, peerError: message } : alone;
  }
}

async function printProfile(setup: Setup, commands: Commands): Promise<void> {
  const { seconds, profile: ops = [], flops = 0, peak_bytes, rss_bytes } = await profile(setup, commands);
  const total = ops.reduce((sum, op) => sum + op.seconds, 0);
  const memory = `peak ${gib(peak_bytes ?? 0)} GiB, RSS ${gib(rss_bytes)} GiB`;
  console.log(`${setup.name} ${setup.dtype} batch ${setup.batch}: ${(flops / 1e9).toFixed(1)} GFLOP, ${memory}`);
  console.log(`  ${seconds.toFixed(3)} s, ${total.toFixed(3)} s of it in kernels`);
  for (const { op, seconds, calls, flops } of ops) {
    if (seconds < 0.002 * total) break;
    const share = ((100 * seconds) / total).toFixed(1).padStart(5);
    const rate = flops ? `  ${(flops / seconds / 1e9).toFixed(0).padStart(5)} GFLOP/s` : "";
    console.log(`  ${op.padEnd(28)} ${seconds.toFixed(4)} s  ${share} %  ${String(calls).padStart(5)} calls${rate}`);
  }
}

async function ceilingsFor(device: string, dtypes: readonly BenchDtype[], commands: Commands): Promise<Ceilings> {
  const cases = casesFor(scalesOf(device, false), dtypes).ceilings;
  const { ceilings } = await measureCeilings(commands, { device, ...CEILING_TIMES }, cases);
  return ceilings;
}

function describeCeilings({ bandwidth, flops }: Ceilings): string {
  const giga = (rate: number | null | undefined) => (rate ? (rate / 1e9).toFixed(1) : "unknown");
  const rates = Object.entries(flops).map(([dtype, rate]) => `${giga(rate)} GFLOP/s ${dtype}`);
  return `ceilings: ${[...rates, `${giga(bandwidth)} GB/s`].join(", ")}`;
}

function suiteOf(device: string): SuiteName {
  if (device.startsWith("cuda")) return "gpu";
  return device === "emulator" ? "tiny" : "cpu";
}

async function main(): Promise<void> {
  const chosen = options();
  const deadline = chosen.budget ? performance.now() + 1000 * chosen.budget : undefined;
  const { name: device } = openDevice(chosen.device);
  const suite = chosen.suite ?? suiteOf(device);
  const say = chosen.json ? console.error : console.log;
  const { command: peer, note } = findPeer(
    "steps.py",
    chosen.profile ? "none" : chosen.peer,
    device.startsWith("cuda"),
  );
  const own = (script: string) => [process.execPath, ...process.execArgv, join(__dirname, script)];
  const ours = own("steps.ts");
  say(`${describeMachine()}, ${describeLoad()}`);
  say(note);
  const all = await setups({ ...chosen, suite, device });
  let ceilings: Ceilings | null = null;
  if (chosen.floor && !chosen.profile) {
    const labPeer = peer && [...peer.slice(0, -1), join(__dirname, "peers/kernels.py")];
    ceilings = await ceilingsFor(device, chosen.dtype, { ours: own("kernels/worker.ts"), peer: labPeer });
    if (chosen.json) console.log(JSON.stringify({ kind: "ceilings", ...ceilings }));
    else console.log(describeCeilings(ceilings));
  }
  if (!chosen.json && !chosen.profile) console.log(row(HEAD));
  let before: { setup: Setup; result: Measurement } | undefined;
  for (const setup of all) {
    const title = `${setup.name} ${setup.dtype} batch ${setup.batch}`;
    if (chosen.profile) {
      await printProfile(setup, { ours, peer: null });
      continue;
    }
    if (deadline && performance.now() > deadline) {
      say(`${title} is left out: out of time`);
      continue;
    }
    const needed = predictedBytes(setup, before);
    if (needed > availableMemory()) {
      say(`${title} is left out: needs about ${gib(needed)} GiB, ${gib(availableMemory())} available`);
      continue;
    }
    const outcome = await attempt(setup, { ours, peer }, { rounds: chosen.rounds, deadline });
    const { result, error, peerError } = outcome;
    if (!before && result) say(`ltx-native: ${JSON.stringify(result.about)}`);
    if (chosen.json) console.log(JSON.stringify(line(setup, outcome, ceilings)));
    else if (result) console.log(table(setup, result, floorOf(setup, result, ceilings)));
    if (error || peerError) {
      say(`  ${title}: ${error ?? peerError}`);
      process.exitCode = 1;
    }
    if (result?.peer_about) say(`  ${result.peer_about}${result.resident ? "" : "; one process in memory at a time"}`);
    if (result) before = { setup, result };
  }
  say(describeLoad());
}

main().catch((error) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
