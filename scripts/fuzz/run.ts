/** Runs targets in child processes, a batch of cases each, and finds out what a child died of. */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import type { Work } from "./child.js";
import { faults, type Outcome, outcomes, type Report, type Target } from "./target.js";

/** Milliseconds that one case may take. */
const HANG = 10_000;
const SETUP = 180_000;
/** Cases of one child. */
const BATCH = 2000;
/** Different faults of one target that are repeated alone to learn the shortest command. */
const MAX_REPEATED = 12;
/** Children of one target that may end badly: after these it is given up, there is enough to mend. */
const MAX_DEATHS = 60;

/** A fault that was found, with those like it. */
export interface Fault extends Report {
  readonly target: string;
  readonly seed: number;
  /** What is to be run to see it again, as `--case` takes it; null when it did not come again. */
  cases: string | null;
  count: number;
}

export interface Tally {
  readonly target: string;
  readonly counts: Record<Outcome, number>;
  readonly faults: Fault[];
  cases: number;
  /** Milliseconds in children. */
  time: number;
  /** Why it ended before all cases were run. */
  stopped?: string;
}

interface Ended {
  /** Of every case that ended. */
  counts: Partial<Record<Outcome, number>>;
  faults: Report[];
  /** The next case to be run. */
  next: number;
  finished: boolean;
}

/** How many times as long as on an idle machine work takes now, at most. */
const slowness = () => Math.min(20, Math.max(1, loadavg()[0] / availableParallelism()));

/** Runs cases in one child until it ends. */
export function runChild(work: Work, hang = HANG): Promise<Ended> {
  const script = join(__dirname, "child.ts");
  const env = { ...process.env, OMP_NUM_THREADS: "1", OMP_WAIT_POLICY: "passive", TMPDIR: work.folder };
  const args = ["--max-old-space-size=1024", "--import", "tsx", script, JSON.stringify(work)];
  const child = spawn(process.execPath, args, { env, stdio: ["ignore", "ignore", "pipe", "pipe"] });
  const ended: Ended = { counts: {}, faults: [], next: work.from, finished: false };
  let [running, label, noise, rest] = [-1, "", "", ""];
  let killed: Report | undefined;
  let timer: NodeJS.Timeout | undefined;
  const slow = slowness();
  const watch = (limit: number) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      killed = { index: running, outcome: "hang", what: `${label}${label && ": "}no end after ${limit / 1000} s` };
      child.kill("SIGKILL");
    }, limit * slow);
  };
  const add = (outcome: Outcome) => {
    ended.counts[outcome] = (ended.counts[outcome] ?? 0) + 1;
  };
  const hear = (line: string) => {
    const text = line.slice(1);
    if (line[0] === "s") {
      [running, label] = [Number(text), ""];
      watch(hang);
    } else if (line[0] === "l") label = text;
    else if (line[0] === "e") ended.finished = true;
    else {
      clearTimeout(timer);
      if (line[0] === "f") {
        const fault = JSON.parse(text) as Report;
        ended.faults.push({ ...fault, what: `${label}${label && ": "}${fault.what}` });
        add(fault.outcome);
      } else add(line[0] === "a" ? "accepted" : "refused");
      ended.next = (running < 0 ? (ended.faults.at(-1)?.index ?? work.from) : running) + 1;
      running = -1;
    }
  };
  watch(SETUP);
  child.stderr?.on("data", (chunk) => {
    noise = (noise + chunk).slice(-4000);
  });
  child.stdio[3]?.on("data", (chunk) => {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop() ?? "";
    lines.forEach(hear);
  });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      const known = ended.faults.at(-1)?.index === ended.next - 1;
      if (running >= 0) {
        const fatal = /FATAL ERROR: .*|terminate called.*|what\(\): .*|(?<=\n)\w*Error: .*/.exec(noise)?.[0] ?? "";
        const why = signal ? `ended by ${signal}` : `ended with exit ${code}: a promise that nobody settles`;
        const what = `${label}${label && ": "}${why} ${fatal}`.trim();
        ended.faults.push(killed ?? { index: running, outcome: "crash", what, stack: noise });
        add(killed?.outcome ?? "crash");
        ended.next = running + 1;
      } else if (killed || ((signal || code) && !known)) {
        return reject(new Error(`${work.target}: the child failed outside of a case (${signal ?? code}): ${noise}`));
      }
      resolve(ended);
    });
  });
}

/** What makes two faults the same one: the numbers, names and paths in a message differ from case to case. */
const kindOf = ({ outcome, what = "", stack = "" }: Report): string => {
  const frame = outcome === "wrong class" ? (/lib\/[\w/.-]+:\d+/.exec(stack)?.[0] ?? "") : "";
  return `${outcome} ${what.replace(/"[^"]*"|\/\S+|-?\d+(\.\d+)?/g, "_").slice(0, 120)} ${frame}`;
};

export interface Options {
  seed: number;
  /** Milliseconds that one case may take; default 10,000. */
  hang?: number;
}

/** Runs `cases` cases of a target from number `from`, or as many as fit into `time` milliseconds. */
export async function runTarget(
  target: Target,
  { from = 0, cases, time }: { from?: number; cases: number; time?: number },
  { seed, hang }: Options,
): Promise<Tally> {
  const counts = Object.fromEntries(outcomes.map((name) => [name, 0])) as Record<Outcome, number>;
  const tally: Tally = { target: target.name, counts, faults: [], cases: 0, time: 0 };
  const home = mkdtempSync(join(tmpdir(), "ltx-fuzz-"));
  let [children, deaths, left] = [0, 0, time];
  const run = async (first: number, to: number, limit?: number) => {
    const folder = join(home, String(children++));
    try {
      return await runChild({ target: target.name, seed, from: first, to, time: limit, folder }, hang);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  };
  try {
    for (let next = from; next < from + cases && (left === undefined || left > 0); ) {
      const [first, start] = [next, Date.now()];
      const ended = await run(first, Math.min(from + cases, first + BATCH), left).catch((error: Error) => error);
      if (ended instanceof Error) {
        counts.crash++;
        tally.stopped = ended.message;
        break;
      }
      next = ended.next;
      for (const name of outcomes) counts[name] += ended.counts[name] ?? 0;
      tally.cases += next - first;
      for (const fault of ended.faults) {
        const kind = kindOf(fault);
        const same = tally.faults.find((other) => kindOf(other) === kind);
        if (same) {
          same.count++;
          continue;
        }
        const found: Fault = { ...fault, target: target.name, seed, cases: String(fault.index), count: 1 };
        tally.faults.push(found);
        if (tally.faults.length > MAX_REPEATED) continue;
        const again = (range: Ended) => range.faults.some(({ outcome }) => outcome === fault.outcome);
        if (again(await run(fault.index, fault.index + 1))) continue;
        if (first < fault.index && again(await run(first, fault.index + 1))) found.cases = `${first}-${fault.index}`;
        else found.cases = null;
        if (found.cases === null && fault.outcome === "hang") {
          // A machine that was busy elsewhere: the same case ended in time when it ran alone.
          tally.faults.pop();
          counts.hang--;
          counts.refused++;
        }
      }
      tally.time += Date.now() - start;
      if (left !== undefined) left -= Date.now() - start;
      if (!ended.finished && ended.faults.length > 0) deaths++;
      if (deaths >= MAX_DEATHS) {
        tally.stopped = `given up after ${tally.cases} cases: ${deaths} processes ended`;
        break;
      }
    }
    return tally;
  } finally {
    rmSync(home, { recursive: true, force: true });
  }
}

export const faultsOf = ({ counts }: Tally): number => faults.reduce((sum, name) => sum + counts[name], 0);
