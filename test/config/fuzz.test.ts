import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { stringify } from "yaml";
import { parseConfig } from "../../lib/config/index.js";
import { LtxError } from "../../lib/errors.js";

const CONFIGS = join(__dirname, "..", "..", "configs");
const texts = ["moving_mnist/autoencoder", "moving_mnist/ltx_video", "quickstart"].map((name) =>
  readFileSync(join(CONFIGS, `${name}.yaml`), "utf8"),
);

/** Whatever the text, a configuration comes out or an LtxError that explains. */
function survives(text: string): void {
  try {
    expect(["vae", "flow", "quickstart"]).toContain(parseConfig(text, "fuzz.yaml").kind);
  } catch (error) {
    expect(error).toBeInstanceOf(LtxError);
    expect((error as LtxError).code).toBe("config");
    expect((error as LtxError).message).toMatch(/^\[config\] fuzz\.yaml: ./);
    expect((error as LtxError).message).not.toMatch(/undefined|\[object/);
  }
}

const token = fc.oneof(
  fc.constantFrom(
    "-1",
    "0",
    "1e400",
    ".nan",
    "null",
    "~",
    "[]",
    "{}",
    "True",
    "None",
    "*a",
    "&a 1",
    "!!set x",
    "'",
    "? x",
  ),
  fc.constantFrom(
    "1000000000000",
    "0.5",
    "[[res_x, 1]]",
    "constructor",
    "__proto__: 1",
    "<<: {a: 1}",
    "- 1",
    "|",
    "\t",
  ),
  fc.integer().map(String),
  fc.double().map(String),
  fc.string({ maxLength: 12 }),
);

describe("any text", () => {
  it("is read or explained when lines of a shipped file are changed", () => {
    const edit = fc.record({
      line: fc.nat(),
      action: fc.constantFrom("value", "key", "drop", "double", "indent", "insert", "cut"),
      token,
    });
    fc.assert(
      fc.property(fc.constantFrom(...texts), fc.array(edit, { minLength: 1, maxLength: 4 }), (text, edits) => {
        const lines = text.split("\n");
        for (const { line, action, token } of edits) {
          const i = line % lines.length;
          if (action === "value") lines[i] = lines[i].replace(/: .*/, () => `: ${token}`);
          else if (action === "key") lines[i] = lines[i].replace(/\w+:/, () => `${token}:`);
          else if (action === "drop") lines.splice(i, 1);
          else if (action === "double") lines.splice(i, 0, lines[i]);
          else if (action === "indent") lines[i] = `  ${lines[i]}`;
          else if (action === "insert") lines.splice(i, 0, token);
          else lines[i] = lines[i].slice(0, token.length * 3);
          if (lines.length === 0) lines.push("");
        }
        survives(lines.join("\n"));
      }),
      { seed: 5, numRuns: 300 },
    );
  });

  it("is read or explained when it is any value under the known sections", () => {
    const key = fc.constantFrom(
      "vae_config",
      "diffusion",
      "data",
      "training",
      "vae",
      "flow",
      "compat",
      "params",
      "target",
    );
    const tree = fc.letrec((tie) => ({
      node: fc.oneof(
        { depthSize: "small" },
        fc.jsonValue({ maxDepth: 1 }),
        fc.array(tie("node"), { maxLength: 3 }),
        fc.dictionary(fc.oneof(key, fc.string({ maxLength: 6 })), tie("node"), { maxKeys: 4 }),
      ),
    })).node;
    fc.assert(
      fc.property(fc.dictionary(key, tree, { maxKeys: 4 }), (value) => survives(stringify(value))),
      { seed: 5, numRuns: 300 },
    );
  });

  it("is read or explained when it is noise", () => {
    fc.assert(fc.property(fc.string({ maxLength: 80, unit: "binary" }), survives), { seed: 5, numRuns: 300 });
  });
});
