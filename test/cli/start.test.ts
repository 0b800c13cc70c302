import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

const root = join(__dirname, "..", "..");

/** What a script prints that sees the sources as CommonJS; `packages()` names what has been loaded from node_modules. */
function run(script: string): unknown {
  const prelude = `const packages = () => [...new Set(Object.keys(require.cache)
    .map((file) => /.*node_modules\\/((?:@[^/]+\\/)?[^/]+)/.exec(file)?.[1])
    .filter((name) => name && !/^(tsx|esbuild|get-tsconfig|resolve-pkg-maps)$/.test(name)))].sort();\n`;
  const args = ["--import", "tsx", "-e", prelude + script];
  return JSON.parse(execFileSync(process.execPath, args, { cwd: root, encoding: "utf8" }));
}

describe("the start", () => {
  it("loads no library that only some calls need", () => {
    expect(run('require("./lib/index.ts"); console.log(JSON.stringify(packages()))')).toEqual([]);
    expect(run('require("./lib/cli/main.ts"); console.log(JSON.stringify(packages()))')).toEqual(["commander"]);
  });

  it("loads the configuration's checks with the first call, for all that the package's index shows of them", () => {
    const result = run(`
      const ltx = require("./lib/index.ts");
      const config = require("./lib/config/index.ts");
      const missing = Object.keys(config).filter((name) => typeof ltx[name] !== "function");
      const messageOf = (call) => { try { call(); } catch (error) { return error.message; } };
      const answers = ["parseVaeParams", "parseTransformerParams", "parseLossParams"].map((name) => {
        return messageOf(() => ltx[name](3, "some file", 1));
      });
      const other = [messageOf(() => ltx.parseConfig("vae: [", "a.yaml")), messageOf(() => ltx.parseStoredConfig("{", "b"))];
      console.log(JSON.stringify({ missing, answers, other, loaded: packages() }));
    `);
    expect(result).toEqual({
      missing: [],
      answers: Array(3).fill("[config] some file: found 3, expected a section of keys"),
      other: [expect.stringContaining("[config] a.yaml: line 1"), expect.stringContaining("b")],
      loaded: ["yaml", "zod"],
    });
  });

  it("gives the same configuration by the deferred functions", () => {
    const result = run(`
      const ltx = require("./lib/index.ts");
      const { readFileSync } = require("node:fs");
      const { isDeepStrictEqual } = require("node:util");
      const file = "configs/moving_mnist/autoencoder.yaml";
      ltx.loadConfig(file).then((config) => {
        const stored = ltx.parseStoredConfig(JSON.stringify(config), "a");
        const parsed = ltx.parseConfig(readFileSync(file, "utf8"), file);
        const same = [stored, parsed].map((other) => isDeepStrictEqual(other, config));
        console.log(JSON.stringify({ kind: config.kind, same }));
      });
    `);
    expect(result).toEqual({ kind: "vae", same: [true, true] });
  });
});
