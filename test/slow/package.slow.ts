/** The packed package, installed in an empty folder: nothing of this checkout may be needed. */
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { root, testFolder, tinyFile } from "../support/tiny.js";

const folder = testFolder();
const consumer = join(folder, "consumer");
const installed = join(consumer, "node_modules", "ltx-native");
const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const env = {
  ...process.env,
  npm_config_update_notifier: "false",
  npm_config_fund: "false",
  npm_config_audit: "false",
};
const run = (cwd: string, file: string, ...args: string[]) =>
  execFileSync(file, args, { cwd, env, encoding: "utf8", stdio: "pipe" });

function node(source: string, type: "commonjs" | "module"): string {
  const file = join(consumer, `script.${type === "module" ? "mjs" : "cjs"}`);
  writeFileSync(file, source);
  return run(consumer, process.execPath, file);
}

beforeAll(() => {
  // In a copy: prebuildify moves the addon out of build/, and packing builds dist/ anew.
  const copy = join(folder, "copy");
  const left = new Set([".git", "node_modules", "build", "dist", "prebuilds", "runs", "test"]);
  mkdirSync(copy);
  for (const name of readdirSync(root))
    if (!left.has(name)) cpSync(join(root, name), join(copy, name), { recursive: true });
  symlinkSync(join(root, "node_modules"), join(copy, "node_modules"));
  run(copy, "npm", "run", "prebuildify");
  run(copy, "npm", "pack", "--pack-destination", folder);
  mkdirSync(consumer);
  writeFileSync(join(consumer, "package.json"), '{ "private": true }\n');
  run(consumer, "npm", "install", "--ignore-scripts", "--prefer-offline", join(folder, `ltx-native-${version}.tgz`));
});

describe("the package", () => {
  it("holds the addon, its backends and the libraries they need, and no sources of tests", () => {
    const prebuilds = join(installed, "prebuilds", "linux-x64");
    const names = readdirSync(prebuilds);
    expect(names.filter((name) => name.endsWith(".node"))).toHaveLength(1);
    for (const name of [
      "libltx_cpu_avx2.so",
      "libltx_cpu_avx512.so",
      "libdnnl.so.2",
      "libgomp.so.1",
      "libOpenCL.so.1",
    ]) {
      expect(names).toContain(name);
    }
    for (const name of ["test", "lib", "node_modules", "build"]) expect(existsSync(join(installed, name))).toBe(false);
    for (const name of ["README.md", "LICENSE", "NOTICE", "configs/quickstart.yaml"])
      expect(existsSync(join(installed, name))).toBe(true);
  });

  it("needs no compiler at installation", () => {
    const bin = join(consumer, "node_modules", ".bin");
    // The package's install script, with nothing but Node to be found.
    const { status, stderr } = spawnSync(process.execPath, [join(bin, "node-gyp-build")], {
      cwd: installed,
      env: { ...env, PATH: `${bin}:${dirname(process.execPath)}` },
      encoding: "utf8",
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  });

  const use = `
    const x = ops.normal([2, 3], { seed: 1, step: 0, purpose: 1 });
    x.read().then((values) => {
      const fs = FS;
      const loaded = [...new Set(fs.readFileSync("/proc/self/maps", "utf8").match(/\\/\\S+\\/lib(dnnl|gomp|OpenCL)\\.so\\S*/g))].sort();
      console.log(JSON.stringify({ version, device: device().name, values: Array.from(values), loaded }));
    });`;

  it("is required and imported, as one module, with its own libraries", () => {
    const required = JSON.parse(
      node(
        `const { ops, device, version } = require("ltx-native");${use.replace("FS", 'require("node:fs")')}`,
        "commonjs",
      ),
    );
    const imported = JSON.parse(
      node(
        `import { ops, device, version } from "ltx-native"; import files from "node:fs";${use.replace("FS", "files")}`,
        "module",
      ),
    );
    expect(imported).toEqual(required);
    expect(required).toMatchObject({ version, device: "cpu" });
    expect(required.values.every(Number.isFinite)).toBe(true);
    expect(required.loaded.map((path: string) => path.split("/").pop()).sort()).toEqual([
      "libOpenCL.so.1",
      "libdnnl.so.2",
      "libgomp.so.1",
    ]);
    for (const path of required.loaded) expect(path.startsWith(join(installed, "prebuilds"))).toBe(true);
    const same = `import { createRequire } from "node:module"; import { LtxError } from "ltx-native";
      console.log(createRequire(import.meta.url)("ltx-native").LtxError === LtxError);`;
    expect(node(same, "module")).toBe("true\n");
  });

  it("has types for both", () => {
    mkdirSync(join(consumer, "node_modules", "@types"), { recursive: true });
    const types = join(consumer, "node_modules", "@types", "node");
    if (!existsSync(types)) symlinkSync(join(root, "node_modules", "@types", "node"), types);
    const source = `import { MovingMnist, TextToVideo, VaeTrainer, type TrainEvent, type Video } from "ltx-native";
export async function main(signal: AbortSignal): Promise<Video> {
  const trainer = await VaeTrainer.create({ config: "a.yaml", data: new MovingMnist({ seed: 1 }), device: "auto" });
  for await (const event of trainer.run({ steps: 10, signal })) if (event.type === "step") (event satisfies TrainEvent).loss.toFixed(2);
  const pipeline = await TextToVideo.load("runs/quickstart");
  return pipeline.generate({ prompts: ["three and 7"], steps: 30, seed: 1, signal });
}
// @ts-expect-error a seed is a number
export const wrong = (pipeline: TextToVideo) => pipeline.generate({ prompts: [""], seed: "1" });
`;
    for (const name of ["use.mts", "use.cts"]) writeFileSync(join(consumer, name), source);
    const compilerOptions = {
      module: "nodenext",
      target: "es2022",
      lib: ["es2022", "esnext.disposable"],
      strict: true,
      noEmit: true,
      skipLibCheck: false,
      types: ["node"],
    };
    writeFileSync(join(consumer, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["use.mts", "use.cts"] }));
    const { status, stdout } = spawnSync(process.execPath, [join(root, "node_modules", "typescript", "bin", "tsc")], {
      cwd: consumer,
      encoding: "utf8",
    });
    expect({ status, stdout }).toEqual({ status: 0, stdout: "" });
  });

  it("has a command that trains and samples", () => {
    expect(run(consumer, "npx", "ltx-native", "info")).toMatch(
      new RegExp(`^ltx-native ${version.replaceAll(".", "\\.")}, Node `),
    );
    expect(run(consumer, "npx", "ltx-native", "train", "--config", tinyFile, "--out", "runs/tiny")).toContain(
      "done: the pictures are in runs/tiny\n",
    );
    expect(run(consumer, "npx", "ltx-native", "sample", "--checkpoint", "runs/tiny", "--prompt", "zero")).toBe(
      "samples/samples.gif\nsamples/samples.png\nsamples/samples.txt\n",
    );
    expect(spawnSync("npx", ["ltx-native", "trian"], { cwd: consumer, env }).status).toBe(2);
  });
});
