/**
 * Mutation fuzzing of every reader and of every exported function, in child processes: `npm run fuzz`. Whatever the
 * input, it is read or refused by an LtxError, in bounded time and memory, and what is read is what stands there.
 */
import { rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { faultsOf, runChild, runTarget, type Tally } from "./fuzz/run.js";
import { outcomes, type Target } from "./fuzz/target.js";
import { targetNamed, targetNames } from "./fuzz/targets/index.js";

const usage = `Usage: npm run fuzz -- [options]
  --reader NAME,...  what to fuzz (default: all); --list names them
  --cases N          cases in all, shared out by how fast each reader is (default: 20000)
  --minutes M        instead of --cases: as many as fit into that time, an equal part for each reader
  --seed S           another seed gives other cases (default: 1)
  --case N or A-B    repeat one case of one reader, or a row of them, and show what happens
  --jobs J           processes at once (default: the cores, at most 4)`;

function fail(message: string): never {
  console.error(`fuzz: ${message}\n${usage}`);
  process.exit(2);
}

function count(name: string, text: string | undefined, least: number): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!/^\d+(\.\d+)?$/.test(text) || value < least || (name !== "minutes" && !Number.isSafeInteger(value))) {
    fail(`--${name} ${text}: expected a number from ${least}`);
  }
  return value;
}

const table = (tallies: readonly Tally[]): string => {
  const head = ["reader", "cases", ...outcomes, "ms/case"];
  const rows = tallies.map(({ target, cases, counts, time }) => {
    return [target, cases, ...outcomes.map((name) => counts[name]), (time / Math.max(1, cases)).toFixed(1)].map(String);
  });
  const sum = (part: (tally: Tally) => number) => String(tallies.reduce((n, tally) => n + part(tally), 0));
  const total = ["all", sum((t) => t.cases), ...outcomes.map((name) => sum((t) => t.counts[name])), ""];
  const lines = [head, ...rows, total];
  const widths = head.map((_, i) => Math.max(...lines.map((line) => line[i].length)));
  return lines
    .map((line) => line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join("  "))
    .join("\n");
};

async function repeat(target: Target, seed: number, range: string): Promise<void> {
  const [, first, last] = /^(\d+)(?:-(\d+))?$/.exec(range) ?? fail(`--case ${range}: expected N or A-B`);
  const folder = join(__dirname, "..", "build", "fuzz", `${target.name}-${seed}-${range}`);
  rmSync(folder, { recursive: true, force: true });
  const work = { target: target.name, seed, from: Number(first), to: Number(last ?? first) + 1, folder };
  const { faults, counts } = await runChild(work);
  for (const { index, outcome, what, stack } of faults) {
    console.log(`${target.name} case ${index}: ${outcome}: ${what}`);
    if (stack) console.log(stack);
  }
  if (faults.length === 0) {
    const seen = outcomes.filter((name) => counts[name]).map((name) => `${counts[name]} ${name}`);
    console.log(`${target.name} case ${range}: ${seen.join(", ")}`);
  }
  console.log(`the input is in ${folder}`);
  process.exitCode = faults.length > 0 ? 1 : 0;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      reader: { type: "string", multiple: true },
      cases: { type: "string" },
      minutes: { type: "string" },
      seed: { type: "string" },
      case: { type: "string" },
      jobs: { type: "string" },
      list: { type: "boolean" },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help) return console.log(usage);
  const names = values.reader?.flatMap((text) => text.split(","));
  const chosen = await Promise.all((names ?? targetNames).map(targetNamed));
  if (values.list) return console.log(chosen.map(({ name, about }) => `${name.padEnd(18)} ${about}`).join("\n"));
  const seed = count("seed", values.seed, 0) ?? 1;
  const jobs = count("jobs", values.jobs, 1) ?? Math.min(4, availableParallelism());
  if (values.case !== undefined) {
    if (chosen.length !== 1 || !names) fail("--case needs one --reader");
    return repeat(chosen[0], seed, values.case);
  }
  const minutes = count("minutes", values.minutes, 0);
  const cases = count("cases", values.cases, 1) ?? 20_000;
  const weights = chosen.reduce((sum, { weight }) => sum + weight, 0);
  // A process takes about two seconds until its first case.
  const time = minutes && Math.max(1000, (minutes * 60_000 * jobs) / chosen.length - 2000);
  const limit = ({ weight }: Target) =>
    time ? { cases: 1e9, time } : { cases: Math.max(1, Math.round((cases * weight) / weights)) };

  const waiting = [...chosen];
  const tallies: Tally[] = [];
  await Promise.all(
    Array.from({ length: jobs }, async () => {
      for (let target = waiting.shift(); target; target = waiting.shift()) {
        const tally = await runTarget(target, limit(target), { seed });
        tallies.push(tally);
        console.error(`${tally.target}: ${tally.cases} cases, ${faultsOf(tally)} faults`);
      }
    }),
  );
  tallies.sort((a, b) => chosen.findIndex((t) => t.name === a.target) - chosen.findIndex((t) => t.name === b.target));
  for (const { faults, target, stopped } of tallies) {
    for (const fault of faults) {
      const times = fault.count > 1 ? ` (${fault.count} times)` : "";
      const again =
        fault.cases === null
          ? "did not come again alone"
          : `npm run fuzz -- --reader ${target} --seed ${seed} --case ${fault.cases}`;
      console.log(`${fault.outcome}${times}: ${fault.what}\n  ${again}`);
    }
    if (stopped) console.log(`${target}: ${stopped}`);
  }
  console.log(table(tallies));
  const bad = tallies.reduce((sum, tally) => sum + faultsOf(tally), 0);
  console.log(`seed ${seed}: ${bad} faults`);
  process.exitCode = bad > 0 ? 1 : 0;
}

main().catch((error) => {
  console.error(`fuzz: ${error.message}`);
  process.exitCode = 2;
});
