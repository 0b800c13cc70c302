import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

const script = resolve(__dirname, "../../scripts/check-imports.mjs");
let root: string;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "check-imports-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

/** Runs the lint on a made-up lib/ and returns its exit status and the reported violations without the count. */
function lint(tree: Record<string, string>): { status: number | null; lines: string[] } {
  for (const [file, text] of Object.entries(tree)) {
    const path = join(root, "lib", file);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
  }
  const { status, stderr } = spawnSync(process.execPath, [script, root], { encoding: "utf8" });
  return { status, lines: stderr.split("\n").filter((line) => line.startsWith("lib/")) };
}

describe("check-imports", () => {
  it("accepts downward imports, siblings, errors.ts, packages and package.json", () => {
    const tree = {
      "index.ts": 'export * from "./cli/main.js";\nexport * from "./errors.js";\n',
      "cli/main.ts": 'import "../pipelines/a.js";\nimport "../training/run/b.js";\nimport "../../package.json";\n',
      "training/run/b.ts": 'import "../../pipelines/a.js";\nimport "../../config/schema.js";\n',
      "pipelines/a.ts": 'import "../models/m.js";\nimport "../tensor/tensor.js";\n',
      "models/m.ts": 'import "../losses/l.js";\nimport "../nn/module.js";\nimport "../errors.js";\n',
      "config/schema.ts": 'import { z } from "zod";\nimport "../errors.js";\nimport "./defaults.js";\n',
      "nn/module.ts": 'import "../optim/adam.js";\nimport "../ops/conv.js";\n',
      "ops/conv.ts": 'import "../tensor/tensor.js";\nimport "../native.js";\n',
      "tensor/tensor.ts": 'import "../native.js";\nimport "../errors.js";\n',
      "native.ts":
        'import { join } from "node:path";\nconst load = require("node-gyp-build");\nload(join(__dirname, ".."));\n',
      "errors.ts": "export class E extends Error {}\n",
    };
    expect(lint(tree)).toEqual({ status: 0, lines: [] });
  });

  it("rejects upward imports and names both layers", () => {
    const cases = [
      ["native.ts", "./tensor/tensor.js", "native.ts", "tensor"],
      ["tensor/a.ts", "../ops/conv.js", "tensor", "ops"],
      ["ops/a.ts", "../nn/module.js", "ops", "nn"],
      ["nn/a.ts", "../models/m.js", "nn", "models"],
      ["optim/a.ts", "../config/schema.js", "optim", "config"],
      ["data/a.ts", "../training/run.js", "data", "training"],
      ["models/vae/a.ts", "../../pipelines/p.js", "models", "pipelines"],
      ["pipelines/a.ts", "../cli/main.js", "pipelines", "cli"],
      ["cli/a.ts", "../index.js", "cli", "index.ts"],
      ["cli/a.ts", "ltx-native", "cli", "index.ts"],
      ["config/a.ts", "../formats/f.js", "config", "formats"],
      ["config/a.ts", "../tensor/t.js", "config", "tensor"],
      ["errors.ts", "./native.js", "errors.ts", "native.ts"],
      ["models/a.ts", "../../test/helper.js", "models", "outside lib/"],
      ["models/a.ts", "../utils.js", "models", "utils.ts (in no layer)"],
      ["helpers/a.ts", "../errors.js", "helpers (in no layer)", "errors.ts"],
    ];
    // One file a case, so that one run of the script judges them all.
    const files = cases.map(([file], index) => file.replace("/a.ts", `/a${index}.ts`));
    const text = (specifier: string) => `// first line\nimport { x } from "${specifier}";\n`;
    const { status, lines } = lint(Object.fromEntries(cases.map(([, specifier], i) => [files[i], text(specifier)])));
    expect(status).toBe(1);
    const expected = cases.map(
      ([, specifier, from, to], i) =>
        `lib/${files[i]}:2 imports ${specifier}: layer ${from} may not import layer ${to}`,
    );
    expect(lines.sort()).toEqual(expected.sort());
  });

  it("sees every way to import, and nothing in comments or strings", () => {
    const text = [
      'import type { A } from "../cli/a.js";',
      'export * from "../cli/b.js";',
      'const c = () => import("../cli/c.js");',
      'import d = require("../cli/d.js");',
      'const e = require("../cli/e.js");',
      '// import "../cli/no.js";',
      'const no = `import "../cli/no.js"`;',
    ].join("\n");
    const { lines } = lint({ "ops/a.ts": text });
    expect(lines.map((line) => line.split(": ")[0]).sort()).toEqual([
      "lib/ops/a.ts:1 imports ../cli/a.js",
      "lib/ops/a.ts:2 imports ../cli/b.js",
      "lib/ops/a.ts:3 imports ../cli/c.js",
      "lib/ops/a.ts:4 imports ../cli/d.js",
      "lib/ops/a.ts:5 imports ../cli/e.js",
    ]);
  });

  it("lets only native.ts load the addon", () => {
    const { status, lines } = lint({
      "native.ts": 'require("../build/Release/ltx_native.node");\n',
      "tensor/a.ts": 'import load from "node-gyp-build";\n',
      "cli/b.ts": 'require("../../build/Release/ltx_native.node");\n',
    });
    expect(status).toBe(1);
    expect(lines).toEqual([
      "lib/cli/b.ts:1 imports ../../build/Release/ltx_native.node: layer cli may not load the addon, only native.ts may",
      "lib/tensor/a.ts:1 imports node-gyp-build: layer tensor may not load the addon, only native.ts may",
    ]);
  });

  it("says so when there is no lib folder", () => {
    const { status, stderr } = spawnSync(process.execPath, [script, root], { encoding: "utf8" });
    expect(status).toBe(2);
    expect(stderr).toContain("does not exist");
  });
});
