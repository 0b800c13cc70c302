/** How CMake compiles the CUDA sources: taken from the configured build, so that the report is about what is built. */
import { spawnSync } from "node:child_process";
import { basename, isAbsolute, join } from "node:path";

export interface Source {
  /** Absolute path of the .cu file. */
  path: string;
  nvcc: string;
  /** Everything but architectures, input and output. */
  flags: string[];
  /** As in `sm_86`. */
  architectures: string[];
}

/** Splits a command as the shell would: CMake quotes with double quotes and backslashes. */
export function splitCommand(command: string): string[] {
  const words = command.match(/(?:"(?:\\.|[^"\\])*"|\\.|[^\s"\\])+/g) ?? [];
  return words.map((word) =>
    word.replace(/"((?:\\.|[^"\\])*)"|\\(.)/g, (_, quoted, escaped) => escaped ?? quoted.replace(/\\(.)/g, "$1")),
  );
}

/** What one entry of a compilation database says, or undefined where it is not nvcc's. */
export function parseCommand(command: string, file: string, directory: string): Source | undefined {
  const words = splitCommand(
    command
      .replace(/^cd \S+ && /, "")
      .replace(/ && :$/, "")
      .replace(/^: && /, ""),
  );
  const nvcc = words.find((word) => basename(word) === "nvcc");
  if (nvcc === undefined || !file.endsWith(".cu")) return undefined;
  const architectures: string[] = [];
  const flags: string[] = [];
  const withValue = new Set(["-MT", "-MF", "-o", "-c", "-x"]);
  const rest = words.slice(words.indexOf(nvcc) + 1);
  for (let i = 0; i < rest.length; i++) {
    const generate = /^--generate-code=arch=\w+,code=(.+)$/.exec(rest[i])?.[1];
    if (generate !== undefined) {
      architectures.push(...(generate.match(/sm_\d+a?/g) ?? []));
    } else if (withValue.has(rest[i])) {
      i++;
    } else if (rest[i] !== "-MD" && rest[i] !== "-MMD") {
      flags.push(rest[i]);
    }
  }
  return { path: isAbsolute(file) ? file : join(directory, file), nvcc, flags, architectures };
}

/** The CUDA sources of the build in `folder`; throws where there is no build. */
export function cudaSources(folder: string): Source[] {
  const { status, stdout, stderr, error } = spawnSync("ninja", ["-C", folder, "-t", "compdb"], {
    encoding: "utf8",
    maxBuffer: 1 << 28,
  });
  if (status !== 0) {
    throw new Error(
      `${folder} holds no configured build (${error?.message ?? stderr.trim()}): run npm run build:native`,
    );
  }
  const entries: { command: string; file: string; directory: string }[] = JSON.parse(stdout.slice(stdout.indexOf("[")));
  const sources = entries.map(({ command, file, directory }) => parseCommand(command, file, directory));
  return sources.filter((source) => source !== undefined).sort((a, b) => (a.path < b.path ? -1 : 1));
}
