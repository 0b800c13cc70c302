/** One measurement: our step and, where there is a peer, its step, in turns. */
import { availableMemory, queryGpu } from "./machine.js";
import type { Reply, Setup } from "./protocol.js";
import { Worker } from "./worker.js";

export interface Measurement {
  /** Medians over the rounds, of one step. */
  ours_s: number;
  peer_s: number | null;
  /** The median of peer / ours, round by round. */
  ratio: number | null;
  flops: number;
  least_bytes: number;
  parameters: number;
  peak_bytes: number;
  peer_peak_bytes: number | null;
  rss_bytes: number;
  peer_rss_bytes: number | null;
  /** Whether both were in memory at once; else they were started anew in each round. */
  resident: boolean;
  about: Record<string, string | number>;
  peer_about: string | null;
  peer_others: Record<string, number | string> | null;
}

export interface Commands {
  ours: readonly string[];
  peer: readonly string[] | null;
}

export interface RoundOptions {
  rounds: number;
  /** By performance.now(): no round starts later, but for the first. */
  deadline?: number;
}

/** A round takes a second or more, that the clock and the scheduler don't count, but no more steps than these. */
const MAX_STEPS = 20;
/** How much more than ours the peer may take for both to be in memory. */
const PEER_MARGIN = 1.5;
/** A process on the CPU larger than this is alone in memory: one that merely waits made the other a quarter slower. */
const RESIDENT_BYTES = 4 * 2 ** 30;

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

type StepWorker = Worker<Reply, Reply>;

/** Resolves when the model is built and warm. */
function startWorker(command: readonly string[], setup: Setup): Promise<StepWorker> {
  const { name, dtype, batch } = setup;
  return Worker.start(command, setup, { name: `${command[command.length - 1]} (${name} ${dtype} batch ${batch})` });
}

/** Whether the peer has room beside our worker, which is in memory and warm. */
function roomForPeer({ device }: Setup, { peak_bytes = 0, rss_bytes }: Reply): boolean {
  if (!device.startsWith("cuda")) return rss_bytes < RESIDENT_BYTES && availableMemory() > PEER_MARGIN * rss_bytes;
  const gpu = queryGpu();
  return gpu === null || gpu.freeBytes > PEER_MARGIN * peak_bytes;
}

export async function measure(setup: Setup, commands: Commands, options: RoundOptions): Promise<Measurement> {
  const { rounds, deadline = Number.POSITIVE_INFINITY } = options;
  const workers: StepWorker[] = [];
  const start = async (command: readonly string[], variant?: readonly string[]) => {
    const worker = await startWorker(command, variant ? { ...setup, variant } : setup);
    workers.push(worker);
    return worker;
  };
  try {
    let ours = await start(commands.ours);
    const { first } = ours;
    const steps = String(Math.min(MAX_STEPS, Math.max(1, Math.round(1 / first.seconds))));
    const resident = commands.peer === null || roomForPeer(setup, first);
    if (!resident) await ours.stop();
    let peer: StepWorker | null = null;
    let chosen: Reply | null = null;
    if (commands.peer) {
      const trial = await start(commands.peer);
      chosen = trial.first;
      await trial.stop();
      // Anew, as a process that never knew the other variants: its memory is that of this one alone.
      if (resident) peer = await start(commands.peer, chosen.variant);
    }
    const variant = chosen?.variant;

    const times: { ours: number; peer: number | null }[] = [];
    let last: { ours: Reply; peer?: Reply } = { ours: first };
    for (let round = 0; round < rounds && (round === 0 || performance.now() < deadline); round++) {
      if (!resident) ours = await start(commands.ours);
      const mine = await ours.ask(steps);
      if (!resident) await ours.stop();
      if (commands.peer && !resident) peer = await start(commands.peer, variant);
      const theirs = await peer?.ask(steps);
      if (!resident) await peer?.stop();
      times.push({ ours: mine.seconds, peer: theirs?.seconds ?? null });
      last = { ours: mine, peer: theirs };
    }
    const peers = times.flatMap(({ peer }) => (peer === null ? [] : [peer]));
    const ratios = times.flatMap(({ ours, peer }) => (peer === null ? [] : [peer / ours]));
    return {
      ours_s: median(times.map(({ ours }) => ours)),
      peer_s: peers.length ? median(peers) : null,
      ratio: ratios.length ? median(ratios) : null,
      flops: first.flops ?? 0,
      least_bytes: first.least_bytes ?? 0,
      parameters: first.parameters ?? 0,
      peak_bytes: last.ours.peak_bytes ?? 0,
      peer_peak_bytes: last.peer?.peak_bytes ?? null,
      rss_bytes: last.ours.rss_bytes,
      peer_rss_bytes: last.peer?.rss_bytes ?? null,
      resident,
      about: first.about ?? {},
      peer_about:
        chosen && `PyTorch ${chosen.about?.version}, ${chosen.about?.threads} threads, ${variant?.join(", ")}`,
      peer_others: chosen?.others ?? null,
    };
  } finally {
    for (const worker of workers) await worker.stop();
  }
}

/** One step by kernel, ours only. */
export async function profile(setup: Setup, commands: Commands) {
  const worker = await startWorker(commands.ours, setup);
  try {
    return { ...worker.first, ...(await worker.ask("profile")) };
  } finally {
    await worker.stop();
  }
}
