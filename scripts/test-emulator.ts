/**
 * The CUDA sources, run on the host: `npm run test:emulator`. Builds the emulator, runs on it the tests of all that runs
 * on a device, and then makes the calls of those tests again in other orders of threads, under AddressSanitizer with
 * UBSan, under ThreadSanitizer, and with bugs planted, each of which must be found. See CONTRIBUTING.md.
 */
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { build, type Flavour } from "./test-emulator/build.js";
import { declaredKernels } from "./test-emulator/kernels.js";
import { planted, search } from "./test-emulator/planted.js";
import { replay, tests } from "./test-emulator/run.js";

const root = join(__dirname, "..");
const usage = `Usage: npm run test:emulator -- [--parts LIST] [vitest arguments]
  --parts LIST   of tests, orders, coverage, address, thread, planted; all of them without it
  The parts behind tests replay the trace that tests leaves.`;
const PARTS = ["tests", "orders", "coverage", "address", "thread", "planted"] as const;
type Part = (typeof PARTS)[number];

const trace = join(root, "build/emulator/trace.bin");

/** Each returns what is wrong, nothing when all is well. */
const parts: Record<Part, (rest: string[]) => string[]> = {
  tests(rest) {
    const library = build(root, "plain", "ltx_emulator");
    mkdirSync(dirname(trace), { recursive: true });
    rmSync(trace, { force: true });
    return tests(root, library, trace, rest);
  },
  orders() {
    const program = build(root, "plain", "ltx_emulator_replay");
    return [1, 2].flatMap((order) => replay(program, trace, { order }));
  },
  coverage() {
    const program = build(root, "plain", "ltx_emulator_replay");
    const ran = new Set<string>();
    replay(program, trace, { kernels: ran });
    const missing = declaredKernels(root).filter((kernel) => !ran.has(kernel));
    return missing.map((kernel) => `no test runs the kernel ${kernel}`);
  },
  address: () => sanitized("address", [0]),
  thread: () => sanitized("thread", [0, 2]),
  planted() {
    const bugs = planted(JSON.parse(readFileSync(join(root, "test/cuda/planted.json"), "utf8")));
    return bugs.flatMap((bug) => search(root, bug, trace));
  },
};

function sanitized(flavour: Flavour, orders: number[]): string[] {
  const program = build(root, flavour, "ltx_emulator_replay");
  return orders.flatMap((order) => replay(program, trace, { order }));
}

function main(): number {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { parts: { type: "string", default: PARTS.join(",") }, help: { type: "boolean", short: "h" } },
  });
  if (values.help) {
    console.log(usage);
    return 0;
  }
  const wanted = values.parts.split(",");
  const unknown = wanted.find((name) => !(PARTS as readonly string[]).includes(name));
  if (unknown !== undefined) throw new Error(`--parts: ${unknown} is none of ${PARTS.join(", ")}`);
  let passed = 0;
  const failed: string[] = [];
  for (const part of PARTS.filter((name) => wanted.includes(name))) {
    const start = performance.now();
    const problems = parts[part](positionals);
    for (const problem of problems) console.log(`${part}: ${problem}`);
    const seconds = ((performance.now() - start) / 1000).toFixed(0);
    console.log(`${part}: ${problems.length === 0 ? "ok" : `${problems.length} problems`}, ${seconds} s`);
    if (problems.length === 0) passed++;
    else failed.push(part);
  }
  console.log(`emulator: ${passed} parts passed, ${failed.length} failed${failed.length ? ` (${failed})` : ""}`);
  return failed.length === 0 ? 0 : 1;
}

try {
  process.exitCode = main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
