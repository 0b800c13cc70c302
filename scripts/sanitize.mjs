#!/usr/bin/env node
// The op, model and golden tests on an addon and a CPU backend built with AddressSanitizer and UBSan, once for each
// instruction set. oneDNN itself and Node are not instrumented. Usage: sanitize.mjs [vitest arguments]
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(fileURLToPath(import.meta.url), "..", "..");
// node-gyp-build looks for build/Release below the folder that LTX_NATIVE_PREBUILD names.
const home = join(root, "build", "sanitize");
const build = join(home, "build");
const logs = join(home, "logs");
const flags = "-fsanitize=address,undefined -fno-sanitize=vptr -fno-omit-frame-pointer -g1 -DBUILDING_NODE_EXTENSION";
const run = (command, args, options = {}) =>
  spawnSync(command, args, { cwd: root, stdio: "inherit", ...options }).status ?? 1;

if (
  run("cmake", ["-G", "Ninja", "-S", root, "-B", build, `-DCMAKE_CXX_FLAGS=${flags}`]) ||
  run("cmake", ["--build", build])
) {
  process.exit(1);
}

const runtime = (name) => execFileSync("gcc", [`-print-file-name=${name}`], { encoding: "utf8" }).trim();
const chosen = process.argv.slice(2);
const tests = chosen.length > 0 ? chosen : ["test/tensor", "test/ops", "test/optim", "test/models", "test/golden"];
let failed = false;
for (const isa of ["avx512", "avx2"]) {
  if (!existsSync(join(build, "Release", `libltx_cpu_${isa}.so`))) throw new Error(`no ${isa} backend was built`);
  rmSync(logs, { recursive: true, force: true });
  mkdirSync(logs, { recursive: true });
  const env = {
    ...process.env,
    LTX_NATIVE_PREBUILD: home,
    LTX_CPU_ISA: isa,
    LD_PRELOAD: `${runtime("libasan.so")} ${runtime("libubsan.so")}`,
    // Node keeps memory until it exits; what tensors leave behind is tested by their own accounting.
    ASAN_OPTIONS: `detect_leaks=0:log_path=${join(logs, "asan")}`,
    UBSAN_OPTIONS: `print_stacktrace=1:log_path=${join(logs, "ubsan")}`,
  };
  failed =
    run(process.execPath, [join(root, "node_modules", "vitest", "vitest.mjs"), "run", ...tests], { env }) !== 0 ||
    failed;
  for (const name of readdirSync(logs)) {
    failed = true;
    console.error(`${isa}: ${readFileSync(join(logs, name), "utf8")}`);
  }
}
process.exitCode = failed ? 1 : 0;
