/** What `npm pack` would publish. */
import { execFileSync } from "node:child_process";

/** npm refuses packages of some 200 MB, and nobody should wait for one half that size. */
export const maxPackedBytes = 60e6;

export interface Packed {
  size: number;
  files: { path: string; size: number }[];
}

/** npm's answer for the package in `folder` as it stands: nothing is built or written. */
export function dryPack(folder: string): Packed {
  const output = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
    cwd: folder,
    encoding: "utf8",
    maxBuffer: 1 << 26,
    stdio: ["ignore", "pipe", "ignore"],
  });
  return Object.values(JSON.parse(output) as Record<string, Packed>)[0];
}

/** What no package may lack, beside its prebuild. */
export const requiredFiles = [
  "dist/entry.js",
  "dist/index.d.ts",
  "dist/signatures.json",
  "bin/ltx-native.js",
  "LICENSE",
  "NOTICE",
];

/** Why the package may not be published, a line each. */
export function packProblems({ size, files }: Packed, required: string[], limit = maxPackedBytes): string[] {
  const problems: string[] = [];
  const paths = new Set(files.map(({ path }) => path));
  for (const path of required) if (!paths.has(path)) problems.push(`the package lacks ${path}`);
  for (const path of paths) {
    if (/emulator\.so/.test(path)) problems.push(`the package holds ${path}, a test tool`);
  }
  if (size > limit) {
    const biggest = [...files].sort((a, b) => b.size - a.size).slice(0, 8);
    const lines = biggest.map((file) => `    ${(file.size / 1e6).toFixed(1).padStart(6)} MB  ${file.path}`);
    problems.push(
      `the package is ${(size / 1e6).toFixed(1)} MB packed, at most ${limit / 1e6} MB are allowed; its biggest files, unpacked:\n` +
        lines.join("\n"),
    );
  }
  return problems;
}
