/** Which files a prebuild is made of, and whether they will load on a machine that has nothing but Node. */
import { execFileSync } from "node:child_process";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";

/** What the build makes, stripped on the way; the addon under the name that node-gyp-build looks for. */
export const ownFiles: Record<string, string> = {
  "ltx_native.node": "ltx-native.glibc.node",
  "libltx_cpu_avx2.so": "libltx_cpu_avx2.so",
  "libltx_cpu_avx512.so": "libltx_cpu_avx512.so",
};
export const cudaFile = "libltx_cuda.so";
/** Others' libraries, unchanged: what is shipped is what the distribution tested and its notices describe. */
export const foreignFiles = ["libdnnl.so.2", "libOpenCL.so.1", "libgomp.so.1"];

/** What every Linux has that can run Node's own binaries. */
const systemLibraries = new Set([
  "libc.so.6",
  "libm.so.6",
  "libdl.so.2",
  "librt.so.1",
  "libpthread.so.0",
  "ld-linux-x86-64.so.2",
  "libstdc++.so.6",
  "libgcc_s.so.1",
]);

/** The newest symbol versions that a prebuild may ask for: those of Debian 12, Ubuntu 22.04 and later. */
export const newestSymbols: Record<string, string> = { GLIBC: "2.34", GLIBCXX: "3.4.30", CXXABI: "1.3.13" };

export interface Library {
  name: string;
  bytes: number;
  needs: string[];
  rpath?: string;
  runpath?: string;
  /** The highest version asked of each family, as in GLIBC: 2.34. */
  symbols: Record<string, string>;
}

export const compareVersions = (a: string, b: string): number => a.localeCompare(b, "en", { numeric: true });

/** Reads what `readelf -dV` prints of a file. */
export function parseReadelf(output: string): Pick<Library, "needs" | "rpath" | "runpath" | "symbols"> {
  const entries = (tag: string) =>
    [...output.matchAll(new RegExp(`\\(${tag}\\)[^\\[]*\\[(.*)\\]`, "g"))].map((match) => match[1]);
  const needed = output.slice(output.indexOf(".gnu.version_r"));
  const symbols: Record<string, string> = {};
  for (const [, family, version] of needed.matchAll(/Name: (GLIBC|GLIBCXX|CXXABI)_([\d.]+)\s/g)) {
    if (symbols[family] === undefined || compareVersions(version, symbols[family]) > 0) symbols[family] = version;
  }
  return { needs: entries("NEEDED"), rpath: entries("RPATH")[0], runpath: entries("RUNPATH")[0], symbols };
}

export function inspect(folder: string): Library[] {
  const names = readdirSync(folder).filter((name) => /\.node$|\.so(\.\d+)*$/.test(name));
  return names.sort().map((name) => {
    const file = join(folder, name);
    const output = execFileSync("readelf", ["-dVW", file], { encoding: "utf8", maxBuffer: 1 << 26 });
    return { name, bytes: statSync(file).size, ...parseReadelf(output) };
  });
}

/** Why the folder would not load, a line each; an empty list where it would. */
export function libraryProblems(libraries: Library[], withCuda: boolean): string[] {
  const problems: string[] = [];
  const own = [...Object.values(ownFiles), ...(withCuda ? [cudaFile] : [])];
  const expected = [...own, ...foreignFiles];
  const present = new Set(libraries.map(({ name }) => name));
  for (const name of expected) if (!present.has(name)) problems.push(`${name} is missing`);
  for (const { name, needs, rpath, runpath, symbols } of libraries) {
    if (!expected.includes(name)) problems.push(`${name} does not belong in a prebuild`);
    for (const need of needs) {
      if (!present.has(need) && !systemLibraries.has(need))
        problems.push(`${name} needs ${need}, which is not beside it`);
    }
    // DT_RUNPATH would not do: it does not hold for what the libraries beside it need in turn.
    if (own.includes(name) && (rpath !== "$ORIGIN" || runpath !== undefined)) {
      problems.push(
        `${name} has RPATH ${rpath ?? "none"} and RUNPATH ${runpath ?? "none"}, expected RPATH $ORIGIN alone`,
      );
    }
    for (const [family, version] of Object.entries(symbols)) {
      if (compareVersions(version, newestSymbols[family]) > 0) {
        problems.push(
          `${name} needs ${family}_${version}, newer than ${newestSymbols[family]}: build on an older image`,
        );
      }
    }
  }
  return problems;
}

/** A line a library for the log. */
export function describe(libraries: Library[]): string {
  return libraries
    .map(({ name, bytes, needs, rpath, symbols }) => {
      const versions = Object.entries(symbols).map(([family, version]) => `${family}_${version}`);
      const beside = needs.filter((need) => !systemLibraries.has(need));
      return `  ${name.padEnd(24)} ${(bytes / 1e6).toFixed(1).padStart(5)} MB  ${versions.join(" ")}, RPATH ${rpath ?? "none"}${
        beside.length > 0 ? `, needs ${beside.join(" ")}` : ""
      }`;
    })
    .join("\n");
}
