/** `npm run bench:growth`: how time and memory of our training steps grow with the batch and the clip. See bench/README.md. */
import { join } from "node:path";
import { Command } from "commander";
import { availableMemory, describeLoad, describeMachine } from "./machine.js";
import { median } from "./measure.js";
import { deviceName, numbers, oneOf, positive } from "./options.js";
import type { BenchDtype, FlowSetup, Reply, Setup, VaeSetup } from "./protocol.js";
import { clipBytes, clipTimeGrowth, predictBytes, type Weighed } from "./ratios.js";
import { type SuiteName, setups } from "./setups.js";
import { Worker } from "./worker.js";

const NAMES = ["vae-step", "flow-step"] as const;
type Name = (typeof NAMES)[number];

/** A measurement takes about so many seconds after the warm-up, but no more steps than these. */
const SECONDS = 2;
const MAX_STEPS = 10;
/** Clips of so many steps of the VAE in time: 25 frames become 97, 4 latent frames 13. The flow's latents have 4 times as many. */
const LONGER = 4;
const LONG_BATCH: Record<Name, number> = { "vae-step": 1, "flow-step": 8 };

/** A line of --json. */
export interface GrowthLine {
  kind: "growth";
  /** What grows. */
  axis: "batch" | "frames";
  name: Name;
  dtype: BenchDtype;
  batch: number;
  frames: number;
  /** Medians over the rounds. */
  seconds: number | null;
  seconds_per_clip: number | null;
  /** Most bytes of tensors at once, and of the process. */
  peak_bytes: number | null;
  rss_bytes: number | null;
  /** Axis batch: seconds a clip over those at the first size. Axis frames: seconds over those of the short clip. */
  time_ratio: number | null;
  /** Axis batch: bytes of tensors that one more clip takes, from the size before to this one. */
  clip_bytes: number | null;
  error: string | null;
}

interface Options {
  suite: SuiteName;
  device: string;
  only: Name[];
  dtype: BenchDtype[];
  batch: number[];
  rounds: number;
  json: boolean;
}

function options(): Options {
  return new Command("bench:growth")
    .option("--suite <name>", "cpu, or tiny, which only shows that it works", "cpu")
    .option("--device <name>", "auto, cpu, cuda, cuda:N or emulator", deviceName, "cpu")
    .option("--only <names>", `only these: ${NAMES.join(", ")}`, oneOf(NAMES), [...NAMES])
    .option("--dtype <names>", "dtypes of activations", oneOf(["f32", "bf16"]), ["bf16", "f32"])
    .option("--batch <sizes>", "batch sizes, ascending", numbers, [4, 8, 16, 32])
    .option("--rounds <n>", "repetitions; medians are reported", positive, 3)
    .option("--json", "a line of JSON for each measurement", false)
    .parse()
    .opts();
}

const framesOf = ({ config }: VaeSetup | FlowSetup): number => config.shape[0];

/** The setup for clips that are LONGER times as long. */
function longer<S extends VaeSetup | FlowSetup>(setup: S): S {
  const [frames, ...rest] = setup.config.shape;
  const long = setup.name === "vae-step" ? LONGER * (frames - 1) + 1 : LONGER * frames;
  return { ...setup, config: { ...setup.config, shape: [long, ...rest] } };
}

/** One measurement in a process of its own, so that no size finds another one's memory. */
async function run(setup: Setup): Promise<Reply> {
  const command = [process.execPath, ...process.execArgv, join(__dirname, "steps.ts")];
  const worker = await Worker.start<Reply, Reply>(command, setup, { name: `${setup.name} batch ${setup.batch}` });
  try {
    const steps = Math.min(MAX_STEPS, Math.max(1, Math.round(SECONDS / worker.first.seconds)));
    return await worker.ask(String(steps));
  } finally {
    await worker.stop();
  }
}

/** Measures the sizes in turns, over rounds. Those that fail or would not fit into memory are left out, with the reason. */
async function measure<S extends Setup>(sizes: readonly S[], rounds: number) {
  const left = new Map<S, string>();
  const replies = new Map<S, Reply[]>();
  for (let round = 0; round < rounds; round++) {
    const weights: Weighed[] = [];
    for (const setup of sizes) {
      if (left.has(setup)) continue;
      const needed = predictBytes(weights, setup.batch);
      if (needed !== null && needed > availableMemory()) {
        left.set(setup, `needs about ${gib(needed)} GiB, ${gib(availableMemory())} available`);
        continue;
      }
      try {
        const reply = await run(setup);
        weights.push({ batch: setup.batch, bytes: reply.rss_bytes });
        replies.set(setup, [...(replies.get(setup) ?? []), reply]);
      } catch (error) {
        left.set(setup, (error as Error).message);
      }
    }
  }
  const done = sizes.filter((setup) => !left.has(setup) && replies.has(setup));
  return { left, done, replies: done.map((setup) => replies.get(setup) as Reply[]) };
}

const gib = (bytes: number) => (bytes / 2 ** 30).toFixed(1);

async function growth(axis: GrowthLine["axis"], sizes: readonly (VaeSetup | FlowSetup)[], rounds: number) {
  const { left, done, replies } = await measure(sizes, rounds);
  const peaks = replies.map((of) => Math.max(...of.map(({ peak_bytes = 0 }) => peak_bytes)));
  const turns = Array.from({ length: rounds }, (_, round) =>
    // Frames count as one clip each way: what a longer one costs, not what a frame costs.
    done.map(({ batch }, i) => ({ batch: axis === "batch" ? batch : 1, seconds: replies[i][round].seconds })),
  );
  const times = done.length > 0 ? clipTimeGrowth(turns) : [];
  const memory = axis === "batch" ? clipBytes(done.map(({ batch }, i) => ({ batch, bytes: peaks[i] }))) : [];
  return sizes.map((setup): GrowthLine => {
    const i = done.indexOf(setup);
    const seconds = i < 0 ? null : median(replies[i].map((reply) => reply.seconds));
    return {
      kind: "growth",
      axis,
      name: setup.name as Name,
      dtype: setup.dtype,
      batch: setup.batch,
      frames: framesOf(setup),
      seconds,
      seconds_per_clip: seconds === null ? null : seconds / setup.batch,
      peak_bytes: i < 0 ? null : peaks[i],
      rss_bytes: i < 0 ? null : Math.max(...replies[i].map(({ rss_bytes }) => rss_bytes)),
      time_ratio: i < 0 ? null : times[i],
      clip_bytes: i < 1 ? null : (memory[i - 1] ?? null),
      error: left.get(setup) ?? null,
    };
  });
}

function table(line: GrowthLine): string {
  const { axis, name, dtype, batch, frames, seconds, seconds_per_clip, peak_bytes, rss_bytes, error } = line;
  const head = `${name.padEnd(10)} ${dtype.padEnd(5)} batch ${String(batch).padStart(3)}, ${String(frames).padStart(3)} frames`;
  if (error !== null || seconds === null) return `${head}  left out: ${error}`;
  const clip = line.clip_bytes === null ? "" : `, ${(line.clip_bytes / 2 ** 20).toFixed(0)} MiB for one more clip`;
  const memory = `${gib(peak_bytes ?? 0).padStart(5)} GiB of tensors, RSS ${gib(rss_bytes ?? 0)}`;
  const ratio = `${axis === "batch" ? "a clip" : "all"} x${line.time_ratio?.toFixed(3)}`;
  return `${head}  ${seconds.toFixed(3).padStart(7)} s, ${seconds_per_clip?.toFixed(4)} s a clip  ${ratio}  ${memory}${clip}`;
}

async function main(): Promise<void> {
  const { suite, device, only, dtype, batch, rounds, json } = options();
  console.error(`${describeMachine()}, ${describeLoad()}`);
  const print = (lines: readonly GrowthLine[]) => {
    for (const line of lines) console.log(json ? JSON.stringify(line) : table(line));
  };
  for (const type of dtype) {
    for (const name of only) {
      const choice = { suite, device, only: [name], dtype: [type], config: [] };
      const of = async (batches: readonly number[]) =>
        (await setups({ ...choice, batch: batches })) as (VaeSetup | FlowSetup)[];
      print(await growth("batch", await of([...batch].sort((a, b) => a - b)), rounds));
      const [short] = await of([LONG_BATCH[name]]);
      print(await growth("frames", [short, longer(short)], rounds));
    }
  }
  console.error(describeLoad());
}

main().catch((error) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
