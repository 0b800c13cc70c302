/**
 * `npm run gpu-report:pack -- FILE.tar.xz`: all that `gpu-report` needs on a machine with Node, a driver and perhaps
 * PyTorch, but without network, compiler or this checkout. Unpacked anywhere, `node bench/gpu-report.mjs DIR` runs.
 */
import { spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, relative, resolve } from "node:path";
import { Command } from "commander";
import { positive } from "../options.js";
import { commit } from "./commit.js";
import { root } from "./parts.js";

const FOLDER = "ltx-gpu-report";
const SOURCES = ["bench", "lib", "test", "configs", "assets", "package.json", "tsconfig.json", "tsconfig.build.json"];
const PACKAGES = [
  ...["vitest", "tsx", "fast-check", "commander", "zod", "yaml", "node-gyp-build", "cli-progress", "protobufjs"],
  ...["yauzl", "yazl", "@huggingface/tokenizers", "typescript"],
];
/** Whole trainings draw samples and curves. That is a third of the archive, so it is there only when asked for. */
const PICTURES = ["sharp", "@observablehq/plot", "@xmldom/xmldom", "dejavu-fonts-ttf"];

/** Read by nobody at run time. */
const NOISE = /\.(d\.[cm]?ts|map|md|markdown|html)$/;
/** Of large packages, all that is read. */
const ONLY: Record<string, RegExp> = {
  "dejavu-fonts-ttf": /^(package\.json|LICENSE|ttf\/DejaVuSans(-Bold|Mono)?\.ttf)$/,
  typescript: /^(package\.json|LICENSE\.txt|lib\/typescript\.js)$/,
};
/** Optional in their packages, and not for what is run here. */
const LEFT_OUT = /^(lightningcss(-.*)?|fsevents|@types\/.*|@img\/.*musl.*|@rolldown\/binding-(?!linux-x64-gnu).*)$/;

interface Manifest {
  dependencies?: Record<string, string>;
  optionalDependencies?: Record<string, string>;
}

/** Where Node finds a package from a folder; null where it is not installed. */
function find(name: string, from: string): string | null {
  for (let folder = from; ; folder = dirname(folder)) {
    const candidate = join(folder, "node_modules", name);
    if (existsSync(join(candidate, "package.json"))) return candidate;
    if (folder === dirname(folder)) return null;
  }
}

/** The folders of these packages and of all that they depend on, by their path from the root. */
function closure(names: readonly string[]): Map<string, string> {
  const found = new Map<string, string>();
  const visit = (name: string, from: string) => {
    const folder = LEFT_OUT.test(name) ? null : find(name, from);
    if (!folder || found.has(relative(root, folder))) return;
    found.set(relative(root, folder), name);
    const manifest: Manifest = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    for (const next of Object.keys({ ...manifest.dependencies, ...manifest.optionalDependencies })) visit(next, folder);
  };
  for (const name of names) {
    if (!find(name, root)) throw new Error(`${name} is not in node_modules: run npm install`);
    visit(name, root);
  }
  return found;
}

function copyPackage(path: string, name: string, target: string): void {
  const source = join(root, path);
  const only = ONLY[name];
  cpSync(source, join(target, path), {
    recursive: true,
    dereference: true,
    filter: (file) => {
      const inside = relative(source, file);
      if (inside === "" || statSync(file).isDirectory()) return basename(file) !== "node_modules" || inside === "";
      return only ? only.test(inside) : !NOISE.test(`/${inside}`);
    },
  });
}

/** The addon, the backends and what they load; the CUDA backend among them where it was built. */
function copyLibraries(folder: string, target: string): string[] {
  const wanted = (name: string) => /\.node$|\.so(\.\d+)?$/.test(name);
  const names = existsSync(folder) ? readdirSync(folder).filter(wanted) : [];
  if (!names.some((name) => name.endsWith(".node"))) {
    throw new Error(`${folder} holds no addon: run npm run build:native, or name another folder with --native`);
  }
  const release = join(target, "build/Release");
  mkdirSync(release, { recursive: true });
  for (const name of names) cpSync(join(folder, name), join(release, name), { dereference: true });
  const emulator = "build/emulator/libltx_emulator.so";
  if (existsSync(join(root, emulator))) cpSync(join(root, emulator), join(target, emulator));
  return names;
}

function archive(staging: string, file: string): number {
  const owner = ["--owner=0", "--group=0", "--sort=name"];
  // Most of it is machine code, which xz's filter for x86 makes a little smaller.
  const tar = ["-I", "xz --x86 --lzma2=preset=9", "-cf", file, ...owner, "-C", staging, FOLDER];
  const { status, stderr } = spawnSync("tar", tar, { encoding: "utf8" });
  if (status !== 0) throw new Error(`tar failed: ${stderr}`);
  return statSync(file).size / 1e6;
}

function main(): void {
  const command = new Command("gpu-report:pack")
    .argument("<FILE.tar.xz>", "the archive to write")
    .option("--native <folder>", "the addon and the backends", join(root, "build/Release"))
    .option("--pictures", "what draws samples and curves too, so that whole trainings are tested", false)
    .option("--limit <MB>", "fail where the archive is larger", positive, 30)
    .parse();
  const file = resolve(command.args[0]);
  const { native, pictures, limit } = command.opts<{ native: string; pictures: boolean; limit: number }>();
  const staging = mkdtempSync(join(tmpdir(), "ltx-pack-"));
  try {
    const target = join(staging, FOLDER);
    const libraries = copyLibraries(resolve(native), target);
    for (const name of [...SOURCES, ...readdirSync(root).filter((file) => /^vitest\..*mts$/.test(file))])
      cpSync(join(root, name), join(target, name), { recursive: true });
    for (const [path, name] of closure(pictures ? [...PACKAGES, ...PICTURES] : PACKAGES))
      copyPackage(path, name, target);
    writeFileSync(join(target, "COMMIT"), `${commit() ?? ""}\n`);
    const megabytes = archive(staging, file);
    console.log(`${file}: ${megabytes.toFixed(1)} MB, with ${libraries.join(", ")}`);
    if (!libraries.includes("libltx_cuda.so")) console.log("It holds no CUDA backend: libltx_cuda.so was not built.");
    if (megabytes > limit) throw new Error(`the archive is larger than ${limit} MB`);
  } finally {
    rmSync(staging, { recursive: true, force: true });
  }
}

try {
  main();
} catch (error) {
  console.error((error as Error).message);
  process.exitCode = 1;
}
