/**
 * Builds prebuilds/linux-x64, which the published package carries so that installing it compiles nothing:
 * `npm run prebuild`. The addon, the backends, the libraries they need and the notices of these; then checks that all of
 * it would load on an old Linux and that the package stays small. The build folder is left as it was.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { cudaSources } from "./cuda-report/flags.js";
import { cudaFile, describe, foreignFiles, inspect, libraryProblems, ownFiles } from "./prebuild/libraries.js";
import { notices } from "./prebuild/notices.js";
import { dryPack, packProblems, requiredFiles } from "./prebuild/pack.js";

const root = join(__dirname, "..");
const usage = `Usage: npm run prebuild -- [options]
  --out DIR       the package to put prebuilds/linux-x64 into (default: this one)
  --require-cuda  fail where libltx_cuda.so would be left out`;

/** Where the build took a library from: CMake notes it. */
function installedAt(build: string, library: string): string {
  const output = execFileSync("cmake", ["-N", "-LA", "-B", build], { encoding: "utf8", cwd: root });
  const path = new RegExp(`^LTX_RUNTIME_${library.replaceAll(/[.+]/g, "\\$&")}:\\w+=(.+)$`, "m").exec(output)?.[1];
  if (path === undefined) throw new Error(`${build} does not say where ${library} is: run npm run build:native`);
  return path;
}

function main(): number {
  const { values } = parseArgs({
    options: { out: { type: "string" }, "require-cuda": { type: "boolean" }, help: { type: "boolean", short: "h" } },
  });
  if (values.help) {
    console.log(usage);
    return 0;
  }
  const target = resolve(values.out ?? root);
  const folder = join(target, "prebuilds", "linux-x64");
  if (`${process.platform}-${process.arch}` !== "linux-x64") throw new Error("prebuilds are made on Linux x64");
  if (!existsSync(join(target, "package.json"))) throw new Error(`--out ${target} holds no package.json`);

  const steps = [["run", "build:native"], ...(target === root ? [["run", "build:ts"]] : [])];
  for (const args of steps) {
    if (spawnSync("npm", args, { cwd: root, stdio: "inherit" }).status !== 0) return 1;
  }
  const build = join(root, "build");
  const withCuda = cudaSources(build).length > 0;
  if (!withCuda && values["require-cuda"])
    throw new Error("there is no libltx_cuda.so: no nvcc was found, or LTX_CUDA=OFF");

  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const own = { ...ownFiles, ...(withCuda ? { [cudaFile]: cudaFile } : {}) };
  for (const [from, to] of Object.entries(own)) {
    execFileSync("strip", ["--strip-all", "-o", join(folder, to), join(build, "Release", from)]);
  }
  for (const name of foreignFiles) copyFileSync(join(build, "Release", name), join(folder, name));
  const foreign = foreignFiles.map((name) => ({ name, path: installedAt(build, name) }));
  writeFileSync(join(folder, "THIRD_PARTY_NOTICES.txt"), notices(foreign, root, withCuda));
  const libraries = inspect(folder);
  for (const { name } of libraries) chmodSync(join(folder, name), 0o755);
  const packed = dryPack(target);
  const made = [...libraries.map(({ name }) => name), "THIRD_PARTY_NOTICES.txt"];
  const required = made.map((name) => `prebuilds/linux-x64/${name}`);
  // Another folder's dist/ is not this script's: `npm pack` builds it there.
  if (target === root) required.push(...requiredFiles);
  const problems = [...libraryProblems(libraries, withCuda), ...packProblems(packed, required)];
  console.log(`${folder}:\n${describe(libraries)}`);
  console.log(
    withCuda
      ? "with libltx_cuda.so"
      : "libltx_cuda.so is LEFT OUT (no nvcc was found, or LTX_CUDA=OFF): the package runs on CPUs only",
  );
  console.log(`packed: ${(packed.size / 1e6).toFixed(1)} MB, ${packed.files.length} files`);
  for (const problem of problems) console.error(`prebuild: ${problem}`);
  return problems.length > 0 ? 1 : 0;
}

try {
  process.exitCode = main();
} catch (error) {
  console.error(`prebuild: ${(error as Error).message}`);
  process.exitCode = 1;
}
