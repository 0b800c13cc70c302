#!/usr/bin/env node
// The tests on an addon and CPU backends built with sanitizers. oneDNN, OpenMP and Node are not instrumented.
//   address: AddressSanitizer and UBSan, for each instruction set that the machine has
//   thread: ThreadSanitizer on the addon, for what the threads of the runtime share; the backends are the plain build's,
//     with kernels on one thread, as its reports about OpenMP's would mean nothing
// Usage: sanitize.mjs [--parts LIST] [vitest arguments]
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = resolve(fileURLToPath(import.meta.url), "..", "..");
/** The instruction sets of the CPU backends that this machine can run, best first. */
const ISAS = /\bavx512f\b/.test(readFileSync("/proc/cpuinfo", "utf8")) ? ["avx512", "avx2"] : ["avx2"];

const PARTS = {
  address: {
    flags: "-fsanitize=address,undefined -fno-sanitize=vptr",
    preload: ["libasan.so", "libubsan.so"],
    isas: ISAS,
    ours: (report) => report.trim() !== "",
    backends: true,
    env: {},
    tests: ["tensor", "ops", "optim", "models", "formats", "pipelines", "training", "golden"].map((x) => `test/${x}`),
  },
  thread: {
    flags: "-fsanitize=thread",
    preload: ["libtsan.so"],
    isas: ISAS.slice(0, 1),
    // Node and the test tool's binding are not instrumented, and are reported for it.
    ours: (report) => report.includes("ltx_native.node"),
    // Backends run on one thread at a time: those of the plain build will do.
    backends: false,
    env: { OMP_NUM_THREADS: "1" },
    tests: ["test/tensor", "test/formats/load-weights.test.ts", "test/pipelines/workers.test.ts"],
  },
};

// Libraries that are not instrumented are not looked into. The devices' threads are nobody's to wait for: they live as
// long as the process does.
const TSAN = "history_size=4:exitcode=0:ignore_noninstrumented_modules=1:report_thread_leaks=0";

const PATIENCE = ["--testTimeout=900000", "--hookTimeout=900000"];

const run = (command, args, options = {}) =>
  spawnSync(command, args, { cwd: root, stdio: "inherit", ...options }).status ?? 1;
const runtime = (name) => execFileSync("gcc", [`-print-file-name=${name}`], { encoding: "utf8" }).trim();

/** Whether the part's tests pass and no sanitizer has anything to say. */
function passes(part, chosen) {
  const { flags, preload, isas, ours, backends, env, tests } = PARTS[part];
  // node-gyp-build looks for build/Release below the folder that LTX_NATIVE_PREBUILD names.
  const home = join(root, "build", `sanitize-${part}`);
  const build = join(home, "build");
  const logs = join(home, "logs");
  const common = "-fno-omit-frame-pointer -g1 -DBUILDING_NODE_EXTENSION";
  const options = ["-DLTX_CUDA=OFF", `-DCMAKE_CXX_FLAGS=${flags} ${common}`];
  const targets = ["ltx_native", ...(backends ? isas.map((isa) => `ltx_cpu_${isa}`) : [])];
  if (run("cmake", ["-G", "Ninja", "-S", root, "-B", build, ...options])) return false;
  if (run("cmake", ["--build", build, "--target", ...targets])) return false;
  if (!backends) {
    for (const name of readdirSync(join(root, "build", "Release")).filter((file) => file.startsWith("lib"))) {
      rmSync(join(build, "Release", name), { force: true });
      symlinkSync(join(root, "build", "Release", name), join(build, "Release", name));
    }
  }
  let passed = true;
  for (const isa of isas) {
    rmSync(logs, { recursive: true, force: true });
    mkdirSync(logs, { recursive: true });
    // Node keeps memory until it exits; what tensors leave behind is tested by their own accounting. A host without
    // memory is tested, too.
    const say = (name, more) => `${more}:allocator_may_return_null=1:log_path=${join(logs, name)}`;
    const status = run(
      process.execPath,
      [join(root, "node_modules", "vitest", "vitest.mjs"), "run", ...chosen(tests), ...PATIENCE],
      {
        env: {
          ...process.env,
          ...env,
          LTX_NATIVE_PREBUILD: home,
          LTX_CPU_ISA: isa,
          LD_PRELOAD: preload.map(runtime).join(" "),
          ASAN_OPTIONS: say("asan", "detect_leaks=0"),
          UBSAN_OPTIONS: say("ubsan", "print_stacktrace=1"),
          TSAN_OPTIONS: say("tsan", TSAN),
        },
      },
    );
    passed = passed && status === 0;
    const reports = readdirSync(logs).flatMap((name) => readFileSync(join(logs, name), "utf8").split(/^={18}$/m));
    for (const report of reports.filter(ours)) {
      passed = false;
      console.error(`${part}, ${isa}: ${report}`);
    }
    console.log(`sanitize: ${part}, ${isa}: ${passed ? "ok" : "failed"}`);
  }
  return passed;
}

const { values, positionals } = parseArgs({
  args: process.argv.slice(2),
  allowPositionals: true,
  options: { parts: { type: "string", default: Object.keys(PARTS).join(",") } },
});
const wanted = values.parts.split(",");
const unknown = wanted.find((part) => !Object.hasOwn(PARTS, part));
if (unknown !== undefined) {
  console.error(`--parts: ${unknown} is not one of ${Object.keys(PARTS).join(", ")}`);
  process.exit(2);
}
const results = wanted.map((part) => passes(part, (tests) => (positionals.length > 0 ? positionals : tests)));
process.exitCode = results.every(Boolean) ? 0 : 1;
