import { spawnSync } from "node:child_process";
import { dirname } from "node:path";

const SANITIZERS = {
  // Scratch memory and the threads' stacks live until the process ends.
  ASAN_OPTIONS: "detect_leaks=0:abort_on_error=0",
  UBSAN_OPTIONS: "print_stacktrace=1",
  TSAN_OPTIONS: "report_bugs=1:exitcode=66:history_size=4",
};

/** Runs the tests of all that runs on a device, on the emulator, and leaves a trace of its calls. */
export function tests(root: string, library: string, trace: string, rest: string[]): string[] {
  const { status } = spawnSync("npx", ["vitest", "run", "--config", "vitest.cuda.config.mts", ...rest], {
    cwd: root,
    stdio: "inherit",
    env: {
      ...process.env,
      LTX_BACKEND_PATH: dirname(library),
      LTX_DEVICE: "emulator",
      LTX_EMULATOR_TRACE: trace,
      LTX_REQUIRE_CUDA: "1",
    },
  });
  return status === 0 ? [] : [`vitest ended with ${status}`];
}

export interface ReplayOptions {
  order?: number;
  /** Only these ops. */
  ops?: readonly string[];
  /** Stops at a sanitizer's first finding. */
  first?: boolean;
  /** Receives the names of the kernels that ran. */
  kernels?: Set<string>;
}

/** Makes a trace's calls again. What is wrong: calls that differ, sanitizers' summaries, the reason of an abort. */
export function replay(
  program: string,
  trace: string,
  { order = 0, ops = [], kernels, first }: ReplayOptions = {},
): string[] {
  const { status, signal, stdout, stderr, error } = spawnSync(program, [trace, ...ops], {
    encoding: "utf8",
    maxBuffer: 1 << 28,
    env: {
      ...process.env,
      ...SANITIZERS,
      TSAN_OPTIONS: `${SANITIZERS.TSAN_OPTIONS}:halt_on_error=${first ? 1 : 0}`,
      LTX_EMULATOR_ORDER: String(order),
    },
  });
  if (error) return [`${program}: ${error.message}`];
  const calls = stderr.split("\n");
  for (const [, names] of stderr.matchAll(/^\w+: (.*)$/gm)) {
    for (const name of names.split(" ")) kernels?.add(name.replace(/<.*$/, ""));
  }
  const named = (line: string) => /^(emulator:|SUMMARY:|.*runtime error:)/.test(line);
  const problems = [...new Set([...stdout.split("\n").filter((line) => /\): /.test(line)), ...calls.filter(named)])];
  if (status !== 0 && problems.length === 0) {
    problems.push(`ended with ${signal ?? status}: ${stdout.trim() || calls.slice(-3).join(" ").trim()}`);
  }
  return problems.map((line) => `order ${order}: ${line}`);
}
