/** The parts of a report: what each runs in a process of its own, and what it makes of the lines. */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Ceilings } from "../floor.js";
import type { KernelLine } from "../kernels/lines.js";
import type { StepLine } from "../run.js";
import type { PartName, Report, TestSummary } from "./report.js";

/** The folder of package.json. The addon is not loaded here: that it can't be is a result too. */
export const root = join(__dirname, "..", "..");

export interface PartRun {
  command: string[];
  env?: Record<string, string>;
  /** Takes the lines of JSON on standard output; without it that is the log's. */
  onValue?: (value: unknown) => void;
  /** After the end, whatever it was. What it returns says more of a failure than the process's last words. */
  finish?: () => string | null;
}

interface PartOptions {
  report: Report;
  device: string;
  /** A folder for what passes between processes. */
  scratch: string;
  limitSeconds: number;
  peer: "torch" | "none" | undefined;
}

/** Shares of the time. What one leaves is for those behind it. */
export const WEIGHTS: Record<PartName, number> = { tests: 3, ceilings: 0.6, kernels: 3.2, steps: 3.4 };

/** Seconds that a part gets before its limit to finish what it has begun. */
const GRACE = 15;

const typescript = (file: string) => [process.execPath, "--import", "tsx", join(root, file)];
const onGpu = (device: string) => device.startsWith("cuda");

function tests({ report, device, scratch }: PartOptions): PartRun {
  const lines = join(scratch, "tests.jsonl");
  rmSync(lines, { force: true });
  const vitest = join(root, "node_modules/vitest/vitest.mjs");
  const reporter = join(root, "bench/report/tests-reporter.mjs");
  return {
    command: [
      ...[process.execPath, vitest, "run", "--config", "vitest.cuda.config.mts"],
      ...["--reporter", "default", "--reporter", reporter],
    ],
    env: {
      LTX_DEVICE: device,
      LTX_TEST_LINES: lines,
      NO_COLOR: "1",
      ...(onGpu(device) ? { LTX_REQUIRE_CUDA: "1" } : {}),
    },
    finish: () => {
      if (!existsSync(lines)) return null;
      report.tests = summarize(readFileSync(lines, "utf8"));
      return report.tests.failed ? `${report.tests.failed} failed` : null;
    },
  };
}

interface TestLine {
  kind: "file" | "test" | "end";
  file: string;
  name: string;
  state: "passed" | "failed" | "skipped" | "pending";
  error?: string;
}

export function summarize(text: string): TestSummary {
  const summary: TestSummary = { passed: 0, failed: 0, skipped: 0, failures: [], unfinished: [] };
  const open = new Set<string>();
  for (const line of text.split("\n").filter(Boolean)) {
    const { kind, file, name, state, error = "" }: TestLine = JSON.parse(line);
    if (kind === "file") open.add(file);
    else if (kind === "end") open.delete(file);
    else if (state === "passed") summary.passed++;
    else if (state === "failed") {
      summary.failed++;
      summary.failures.push({ file, name, error: error.split("\n")[0].slice(0, 300) });
    } else summary.skipped++;
  }
  summary.unfinished = [...open];
  return summary;
}

/** The lab's lines; the ceilings of the last one count. */
function lab(options: PartOptions, args: string[]): PartRun {
  const { report, device, peer } = options;
  return {
    command: [
      ...typescript("bench/kernels/run.ts"),
      ...["--device", device, "--json", ...args],
      ...(peer ? ["--peer", peer] : []),
    ],
    onValue: (value) => {
      const line = value as LabLine;
      if (line.kind === "about") report.about = { ours: line.ours, peer: line.peer };
      if (line.kind === "ceilings") report.ceilings = { bandwidth: line.bandwidth, flops: line.flops };
      if (line.kind === "kernel") report.kernels.push(line);
    },
  };
}

type LabLine = KernelLine | ({ kind: "ceilings" } & Ceilings) | { kind: "about"; ours: unknown; peer: unknown };

function kernels(options: PartOptions): PartRun {
  options.report.kernels = []; // the ceilings are measured anew
  const budget = Math.max(5, options.limitSeconds - GRACE);
  const size = options.device === "cpu" ? ["--quick"] : ["--rounds", "3"];
  return lab(options, [...size, "--budget", String(budget)]);
}

function ceilings(options: PartOptions): PartRun {
  return lab(options, ["--only", "copy", "--rounds", "3", ...(options.device === "cpu" ? ["--quick"] : [])]);
}

function steps({ report, device, limitSeconds, peer }: PartOptions): PartRun {
  const budget = Math.max(5, limitSeconds - 2 * GRACE);
  return {
    command: [
      ...typescript("bench/run.ts"),
      ...[
        "--device",
        device,
        "--json",
        "--no-floor",
        "--dtype",
        "bf16,f32",
        "--rounds",
        "3",
        "--budget",
        String(budget),
      ],
      ...(onGpu(device) ? [] : ["--suite", "tiny"]),
      ...(peer ? ["--peer", peer] : []),
    ],
    onValue: (line) => report.steps.push(line as StepLine),
  };
}

export const PARTS: Record<PartName, (options: PartOptions) => PartRun> = { tests, ceilings, kernels, steps };
