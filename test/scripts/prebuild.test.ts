import { execFileSync, spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  compareVersions,
  foreignFiles,
  inspect,
  type Library,
  libraryProblems,
  ownFiles,
  parseReadelf,
} from "../../scripts/prebuild/libraries.js";
import { maxPackedBytes, packProblems, requiredFiles } from "../../scripts/prebuild/pack.js";
import { testFolder } from "../support/folder.js";

const own = (name: string): Library => ({
  name,
  bytes: 1,
  needs: ["libdnnl.so.2", "libstdc++.so.6", "libc.so.6"],
  rpath: "$ORIGIN",
  symbols: { GLIBC: "2.34" },
});
const foreign = (name: string): Library => ({ name, bytes: 1, needs: ["libc.so.6"], symbols: { GLIBC: "2.34" } });
const good = () => [...Object.values(ownFiles).map(own), ...foreignFiles.map(foreign)];

describe("the libraries of a prebuild", () => {
  it("may be on their own, and with CUDA", () => {
    expect(libraryProblems(good(), false)).toEqual([]);
    expect(libraryProblems([...good(), own("libltx_cuda.so")], true)).toEqual([]);
  });

  it("are complete and no more than that", () => {
    expect(libraryProblems(good(), true)).toEqual(["libltx_cuda.so is missing"]);
    expect(libraryProblems([...good(), own("libltx_cuda.so")], false)).toEqual([
      "libltx_cuda.so does not belong in a prebuild",
    ]);
    expect(libraryProblems([...good(), foreign("libltx_emulator.so")], false)).toEqual([
      "libltx_emulator.so does not belong in a prebuild",
    ]);
    const lacking = good().filter(({ name }) => name !== "libgomp.so.1");
    lacking[0].needs.push("libgomp.so.1");
    expect(libraryProblems(lacking, false)).toEqual([
      "libgomp.so.1 is missing",
      "ltx-native.glibc.node needs libgomp.so.1, which is not beside it",
    ]);
  });

  it("look for each other beside them, and ask for nothing newer than promised", () => {
    const libraries = good();
    libraries[0].rpath = undefined;
    libraries[1].runpath = "$ORIGIN";
    libraries[2].symbols = { GLIBC: "2.38", GLIBCXX: "3.4.9" };
    libraries[3].symbols = { GLIBCXX: "3.4.31" };
    expect(libraryProblems(libraries, false)).toEqual([
      "ltx-native.glibc.node has RPATH none and RUNPATH none, expected RPATH $ORIGIN alone",
      "libltx_cpu_avx2.so has RPATH $ORIGIN and RUNPATH $ORIGIN, expected RPATH $ORIGIN alone",
      "libltx_cpu_avx512.so needs GLIBC_2.38, newer than 2.34: build on an older image",
      "libdnnl.so.2 needs GLIBCXX_3.4.31, newer than 3.4.30: build on an older image",
    ]);
  });

  it("compares versions by their numbers", () => {
    expect(["2.4", "2.34", "2.3.4"].sort(compareVersions)).toEqual(["2.3.4", "2.4", "2.34"]);
  });

  const tools = ["g++", "readelf"].every((name) => spawnSync(name, ["--version"]).status === 0);
  it.skipIf(!tools)("are read from real files", () => {
    const folder = testFolder();
    const source = join(folder, "a.cc");
    writeFileSync(
      source,
      "#include <cmath>\n#include <string>\nstd::string f(float x) { return std::to_string(sinf(x)); }\n",
    );
    const flags = ["-shared", "-fPIC", source, "-o", join(folder, "liba.so")];
    execFileSync("g++", [...flags, "-Wl,--disable-new-dtags,-rpath,$ORIGIN"]);
    const [library, ...others] = inspect(folder);
    expect(others).toEqual([]);
    expect(library).toMatchObject({ name: "liba.so", rpath: "$ORIGIN", runpath: undefined });
    expect(library.needs).toContain("libstdc++.so.6");
    expect(library.symbols.GLIBC).toMatch(/^2\.\d/);
    expect(library.symbols.GLIBCXX).toMatch(/^3\.4/);
    execFileSync("g++", [...flags, "-Wl,--enable-new-dtags,-rpath,/x"]);
    expect(inspect(folder)[0]).toMatchObject({ rpath: undefined, runpath: "/x" });
  });

  it("have symbol versions of their own that do not count", () => {
    const output = `Version definition section '.gnu.version_d' contains 1 entry:
  0x001c: Rev: 1  Flags: none  Index: 2  Cnt: 1  Name: GLIBC_2.99
Version needs section '.gnu.version_r' contains 1 entry:
  0x0010:   Name: GLIBC_2.4  Flags: none  Version: 2
  0x0020:   Name: GLIBC_2.17  Flags: none  Version: 3
`;
    expect(parseReadelf(output).symbols).toEqual({ GLIBC: "2.17" });
  });
});

describe("the packed package", () => {
  const files = [...requiredFiles, "prebuilds/linux-x64/libdnnl.so.2"].map((path, index) => ({
    path,
    size: 1e6 * (index + 1),
  }));

  it("is complete, small, and holds no test tool", () => {
    expect(packProblems({ size: maxPackedBytes, files }, requiredFiles)).toEqual([]);
    expect(packProblems({ size: 1, files: files.slice(1) }, requiredFiles)).toEqual([
      "the package lacks dist/entry.js",
    ]);
    const emulator = [...files, { path: "build/emulator/libltx_emulator.so", size: 1 }];
    expect(packProblems({ size: 1, files: emulator }, requiredFiles)).toEqual([
      "the package holds build/emulator/libltx_emulator.so, a test tool",
    ]);
  });

  it("names its biggest files when it is too big", () => {
    const [problem] = packProblems({ size: 60_100_000, files }, requiredFiles);
    const [words, first, second] = problem.split("\n");
    expect(words).toBe("the package is 60.1 MB packed, at most 60 MB are allowed; its biggest files, unpacked:");
    expect(first.trim()).toBe("7.0 MB  prebuilds/linux-x64/libdnnl.so.2");
    expect(second.trim()).toBe("6.0 MB  NOTICE");
  });
});
