/**
 * Runs cases of one target in a process of its own and says on file descriptor 3, before each, that it begins, and behind
 * it how it ended. What kills this process is thus known by its case.
 */
import { mkdirSync, readdirSync, readlinkSync, writeSync } from "node:fs";
import { resourceUsage } from "node:process";
import { setImmediate as turn, setTimeout as wait } from "node:timers/promises";
import { LtxError } from "../../lib/errors.js";
import { Random } from "./random.js";
import { Garbage, type Report } from "./target.js";
import { targetNamed } from "./targets/index.js";

export interface Work {
  target: string;
  seed: number;
  from: number;
  /** Behind the last case. */
  to: number;
  /** Milliseconds of cases after which no other one begins. */
  time?: number;
  folder: string;
}

/** Where this process ends so that a fresh one goes on: memory that is merely not collected yet counts for nobody. */
const RENEW = 0.6;
const DEFAULT_MEMORY = 2 ** 30;

const say = (kind: string, text = "") => writeSync(3, `${kind}${text}\n`);
const report = (value: Report) => say("f", JSON.stringify(value));
const descriptors = () => readdirSync("/proc/self/fd").length;

/** Files that are open: libraries make event counters and pipes of their own when they are first used. */
function openFiles(): string[] {
  return readdirSync("/proc/self/fd").flatMap((name) => {
    try {
      const path = readlinkSync(`/proc/self/fd/${name}`);
      return path.startsWith("/") && !path.startsWith("/dev/") && !path.startsWith("/proc/") ? [path] : [];
    } catch {
      return []; // the list's own
    }
  });
}

let current = -1;
process.on("uncaughtException", (error) => {
  const what = `${error?.name}: ${error?.message} (thrown where nobody catches it)`;
  report({ index: current, outcome: "crash", what: oneLine(what), stack: String(error?.stack) });
  process.exit(70);
});

const oneLine = (text: string) => text.replace(/\s+/g, " ").slice(0, 300);

async function main(work: Work): Promise<void> {
  const target = await targetNamed(work.target);
  const bound = target.maxMemory ?? DEFAULT_MEMORY;
  mkdirSync(work.folder, { recursive: true });
  process.chdir(work.folder); // what is written to a relative path by a random argument
  const run = await target.setup(work.folder);
  const deadline = work.time === undefined ? Number.POSITIVE_INFINITY : Date.now() + work.time;
  // What loading has left to be closed is closed before files are counted.
  await wait(50);
  const files = openFiles();
  const prototype = Object.getOwnPropertyNames(Object.prototype).length;
  for (let index = work.from; index < work.to && Date.now() < deadline; index++) {
    current = index;
    const before = descriptors();
    say("s", String(index));
    const outcome = await judge(
      () => run(new Random(work.seed, target.name, index), (label) => say("l", label)),
      index,
    );
    // What nobody awaited fails in the next turn.
    await turn();
    if (Object.getOwnPropertyNames(Object.prototype).length !== prototype) {
      report({ index, outcome: "silent", what: "Object.prototype was changed" });
      process.exit(0);
    }
    for (let tries = 0; descriptors() > before && tries < 20; tries++) await wait(5);
    const left = descriptors() > before ? openFiles().filter((path) => !files.includes(path)) : [];
    files.push(...left);
    const peak = resourceUsage().maxRSS * 1024;
    if (outcome.outcome !== "accepted" && outcome.outcome !== "refused") report(outcome);
    else if (left.length > 0) report({ index, outcome: "memory", what: `left ${left.length} files open: ${left[0]}` });
    else if (peak > bound) {
      report({
        index,
        outcome: "memory",
        what: `${Math.round(peak / 2 ** 20)} MiB resident, bound ${bound / 2 ** 20}`,
      });
      process.exit(0);
    } else say(outcome.outcome === "accepted" ? "a" : "r", String(index));
    if (process.memoryUsage.rss() > bound * RENEW) process.exit(0);
  }
  say("e");
  process.exit(0);
}

async function judge(run: () => Promise<void>, index: number): Promise<Report> {
  try {
    await run();
    return { index, outcome: "accepted" };
  } catch (error) {
    if (error instanceof LtxError) {
      if (typeof error.code === "string" && error.message.length > 0) return { index, outcome: "refused" };
      return { index, outcome: "wrong class", what: "an LtxError without a code or a message", stack: error.stack };
    }
    const { name, message, stack } = error instanceof Error ? error : new Error(`${error} was thrown`);
    const outcome = error instanceof Garbage ? "silent" : "wrong class";
    return { index, outcome, what: oneLine(error instanceof Garbage ? message : `${name}: ${message}`), stack };
  }
}

main(JSON.parse(process.argv[2])).catch((error) => {
  console.error(error);
  process.exit(71);
});
