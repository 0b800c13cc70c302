/** `npm run gpu-report -- DIR`: tests, ceilings, kernels and steps of one machine, in a few minutes. See bench/README.md. */
import { createWriteStream, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Command, Option } from "commander";
import { version } from "../../lib/version.js";
import { describeMachine, queryGpu } from "../machine.js";
import { deviceName, oneOf, seconds } from "../options.js";
import { killAll, runChild } from "./child.js";
import { commit } from "./commit.js";
import { markdown } from "./markdown.js";
import { PARTS, root, WEIGHTS } from "./parts.js";
import { PART_NAMES, type PartName, type Report } from "./report.js";

interface Options {
  device: string;
  minutes: number;
  parts: PartName[];
  peer: "torch" | "none" | undefined;
}

/** Of the whole time, for what happens between the parts. */
const SPARE = 0.96;

function emptyReport({ device, minutes }: Options): Report {
  const gpu = queryGpu();
  return {
    date: new Date().toISOString(),
    ...{ device, minutes, version },
    machine: describeMachine(),
    gpu: gpu && { name: gpu.name, driver: gpu.driver, totalBytes: gpu.totalBytes },
    commit: commit(),
    about: { ours: null, peer: null },
    ...{ parts: {}, tests: null, ceilings: null, kernels: [], steps: [] },
  };
}

async function write(folder: string, options: Options): Promise<boolean> {
  const begun = performance.now();
  const left = () => 60 * options.minutes * SPARE - (performance.now() - begun) / 1000;
  const report = emptyReport(options);
  const save = () => {
    writeFileSync(join(folder, "report.json"), `${JSON.stringify(report, null, 1)}\n`);
    writeFileSync(join(folder, "report.md"), markdown(report));
  };
  const emulator = join(root, "build/emulator");
  if (options.device === "emulator") process.env.LTX_BACKEND_PATH ??= emulator;
  const scratch = mkdtempSync(join(tmpdir(), "ltx-report-"));
  // What was measured until then is there even if nobody lets this process end.
  const saving = setInterval(save, 5000);
  const stop = () => {
    killAll();
    save();
    process.exit(130);
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, stop);

  for (const [i, name] of options.parts.entries()) {
    const weights = options.parts.slice(i).map((part) => WEIGHTS[part]);
    const limitSeconds = (left() * weights[0]) / weights.reduce((sum, w) => sum + w, 0);
    if (limitSeconds < 1) {
      report.parts[name] = { state: "left out", reason: "no time was left", seconds: 0 };
      continue;
    }
    console.log(`${name}: at most ${limitSeconds.toFixed(0)} s`);
    report.parts[name] = { state: "running", reason: null, seconds: 0 };
    const log = createWriteStream(join(folder, `${name}.log`));
    const { command, env, onValue, finish } = PARTS[name]({ ...options, report, scratch, limitSeconds });
    const result = await runChild(command, { cwd: root, env, limitSeconds, log, onValue });
    const finding = finish?.() ?? null;
    log.end();
    const { late, seconds } = result;
    const failure = result.failure && [finding, late || !finding ? result.failure : null].filter(Boolean).join("; ");
    const state = late ? "cut off" : failure ? "failed" : "done";
    report.parts[name] = { state, reason: failure, seconds };
    console.log(`${name}: ${state}${failure ? `, ${failure}` : ""} (${seconds.toFixed(0)} s)`);
    save();
  }
  clearInterval(saving);
  save();
  rmSync(scratch, { recursive: true, force: true });
  return Object.values(report.parts).every(({ state }) => state === "done");
}

async function main(): Promise<void> {
  const command = new Command("gpu-report")
    .argument("<DIR>", "where report.json, report.md, tests.log and the other parts' logs go")
    .option("--device <name>", "cuda, cuda:N, cpu or emulator; not on a GPU everything is tiny", deviceName, "cuda")
    .option("--minutes <n>", "for all of it", seconds, 8)
    .option("--parts <names>", `some of ${PART_NAMES.join(", ")}`, oneOf(PART_NAMES), [...PART_NAMES])
    .addOption(new Option("--peer <name>", "default: torch where it can be imported").choices(["torch", "none"]))
    .parse();
  const folder = resolve(command.args[0]);
  mkdirSync(folder, { recursive: true });
  const options: Options = command.opts();
  // In their own order, whatever the option's.
  const parts = PART_NAMES.filter((name) => options.parts.includes(name));
  if (!(await write(folder, { ...options, parts }))) process.exitCode = 1;
  console.log(join(folder, "report.md"));
}

main().catch((error) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
