/** Compiles one source for one architecture, keeping what the report reads; nothing is compiled twice. */
import { execFile, execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join, relative } from "node:path";
import { promisify } from "node:util";
import type { Source } from "./flags.js";

const run = promisify(execFile);

export interface Compiled {
  ptx: string;
  cubin: Buffer;
  /** What nvcc and ptxas printed. */
  log: string;
  /** Seconds, or 0 where an earlier run had compiled it. */
  seconds: number;
}

/** Of which inputs the files in a folder were made. */
interface Stamp {
  command: string[];
  files: Record<string, string>;
}

const versions = new Map<string, string>();

/** As in `13.0`. */
export function compilerVersion(nvcc: string): string {
  let version = versions.get(nvcc);
  if (version === undefined) {
    version = /release ([\d.]+)/.exec(execFileSync(nvcc, ["--version"], { encoding: "utf8" }))?.[1] ?? "unknown";
    versions.set(nvcc, version);
  }
  return version;
}

const hash = (file: string) => createHash("sha256").update(readFileSync(file)).digest("hex");

function isCurrent(stampFile: string, command: string[], root: string): boolean {
  if (!existsSync(stampFile)) return false;
  const stamp: Stamp = JSON.parse(readFileSync(stampFile, "utf8"));
  if (JSON.stringify(stamp.command) !== JSON.stringify(command)) return false;
  return Object.entries(stamp.files).every(([file, sum]) => {
    const path = join(root, file);
    return existsSync(path) && hash(path) === sum;
  });
}

/** The project's own files among the prerequisites of a makefile rule; the toolkit's are covered by its version. */
function dependencies(makefile: string, root: string): string[] {
  const paths = readFileSync(makefile, "utf8").replace(/\\\n/g, " ").split(/\s+/).slice(2);
  const own = paths.filter((path) => path.startsWith(`${root}/`)).map((path) => relative(root, path));
  return [...new Set(own)].sort();
}

/** `cache` is a folder that only this function writes to; `root` holds the project's sources. */
export async function compile(source: Source, architecture: string, cache: string, root: string): Promise<Compiled> {
  const name = basename(source.path, ".cu");
  const folder = join(cache, `${name}.${architecture}`);
  const file = (extension: string) => join(folder, `${name}.${extension}`);
  const virtual = architecture.replace("sm_", "compute_");
  const target = ["-gencode", `arch=${virtual},code=${architecture}`, "-Xptxas", "-v"];
  const command = [compilerVersion(source.nvcc), ...source.flags, ...target];
  const stampFile = join(folder, "stamp.json");
  let seconds = 0;
  if (!isCurrent(stampFile, command, root)) {
    const start = performance.now();
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    const keep = ["--keep", "--keep-dir", folder, "-MD", "-MF", file("d")];
    const args = [...source.flags, ...target, ...keep, "-cubin", "-o", file("cubin"), source.path];
    const { stdout, stderr } = await run(source.nvcc, args, { maxBuffer: 1 << 28 });
    writeFileSync(file("log"), stdout + stderr);
    const files = dependencies(file("d"), root);
    // --keep leaves megabytes of preprocessed text.
    const wanted = new Set(["cubin", "ptx", "log"].map((extension) => `${name}.${extension}`));
    for (const left of readdirSync(folder)) if (!wanted.has(left)) rmSync(join(folder, left));
    const stamp: Stamp = { command, files: Object.fromEntries(files.map((path) => [path, hash(join(root, path))])) };
    writeFileSync(stampFile, JSON.stringify(stamp));
    seconds = (performance.now() - start) / 1000;
  }
  return {
    ptx: readFileSync(file("ptx"), "utf8"),
    cubin: readFileSync(file("cubin")),
    log: readFileSync(file("log"), "utf8"),
    seconds,
  };
}
