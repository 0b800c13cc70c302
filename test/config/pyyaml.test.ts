import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { parseDocument } from "yaml";
import { loadConfig, parseConfig } from "../../lib/config/index.js";
import { indentFlow, pyYamlTags } from "../../lib/config/pyyaml.js";
import { failure } from "../support/failure.js";

const folder = mkdtempSync(join(tmpdir(), "ltx-yaml-"));
afterAll(() => rmSync(folder, { recursive: true }));

const read = (text: string): unknown => {
  const document = parseDocument(text, { customTags: pyYamlTags, merge: true, prettyErrors: false });
  expect([text, document.errors]).toEqual([text, []]);
  return document.toJS();
};

describe("plain scalars, with the values that PyYAML 6.0 gives them", () => {
  it.each<[string, unknown]>([
    ["010", 8],
    ["-0_17", -15],
    ["08", "08"],
    ["0", 0],
    ["1_000", 1000],
    ["1__0", 10],
    ["0b1_01", 5],
    ["-0x1F", -31],
    ["1:30", 90],
    ["190:20:30", 685230],
    ["1:60", "1:60"],
    ["09:30", "09:30"],
    ["190:20:30.15", 685230.15],
    ["1_0.5", 10.5],
    ["6.8523015e+5", 685230.15],
    ["1.", 1],
    ["yes", true],
    ["On", true],
    ["FALSE", false],
    ["off", false],
    ["y", "y"],
    ["nO", "nO"],
    ["~", null],
    ["_1", "_1"],
    ['"010"', "010"],
  ])("%s", (text, value) => {
    expect(read(`key: ${text}`)).toEqual({ key: value });
  });

  it.each([
    ["1e-4", 1e-4],
    ["1.5e3", 1500],
    ["-.5", -0.5],
    ["0o17", 15],
  ])("%s, a text to PyYAML, is the number that its writer meant", (text, value) => {
    expect(read(`key: ${text}`)).toEqual({ key: value });
  });
});

describe("lists in brackets", () => {
  it.each<[string, unknown]>([
    ["a:\n  b: [\n    1,\n    2\n]\nc: 3\n", { a: { b: [1, 2] }, c: 3 }],
    ["a: [\n1,\n2\n]\nb: 2\n", { a: [1, 2], b: 2 }],
    ["a:\n  - b: [1,\n2]\n  - c\n", { a: [{ b: [1, 2] }, "c"] }],
    ["a: {x: 1,\ny: [2,\n3]\n}\nz: 1", { a: { x: 1, y: [2, 3] }, z: 1 }],
    ["a:\n  b: [\"]\", # [[[\n'it''s [',\n3]\n", { a: { b: ["]", "it's [", 3] } }],
    ["a: |\n  b: [\n  c\nd: [\n1]\n", { a: "b: [\nc\n", d: [1] }],
    ["a: some [text\nb: [\n1]\n", { a: "some [text", b: [1] }],
    ['"k [": &x [\n1]\nl: *x\n', { "k [": [1], l: [1] }],
  ])("%j", (text, value) => {
    expect(read(indentFlow(text))).toEqual(value);
    expect(indentFlow(text).split("\n").length).toBe(text.split("\n").length);
  });

  it("keep the lines of what comes behind them", () => {
    const error = () =>
      parseConfig("vae_config:\n  target: video-vae\n  params: {\n  steps: [\n1\n]\n}\ndata: 7\n", "f.yaml");
    expect(error).toThrow(/line 8: data: found 7, expected a section of keys/);
  });
});

const shipped = readFileSync(join(__dirname, "..", "support", "tiny.yaml"), "utf8");

describe("configurations in YAML 1.1", () => {
  it("merges sections, written before and in a list, own keys first", async () => {
    const path = join(folder, "merge.yaml");
    let place = 0;
    const merged = shipped.replace(/^( *)optimizer: (\{.*\})$/gm, (_, indent, first) =>
      place++ === 0
        ? `${indent}optimizer: &first ${first}`
        : `${indent}optimizer:\n${indent}  <<: [*first]\n${indent}  betas: [0.9, 0.99]`,
    );
    writeFileSync(path, merged);
    expect(merged).toContain("<<: [*first]");
    expect(await loadConfig(path)).toEqual(parseConfig(shipped, "tiny.yaml"));
  });

  it("takes mixed_precision: no without quotes", () => {
    const config = (value: string) =>
      parseConfig(shipped.replace(/mixed_precision: \w+/g, `mixed_precision: ${value}`), "t");
    expect(config("no")).toEqual(config('"no"'));
    expect(() => config("yes")).toThrow(/mixed_precision: found true, expected one of no, bf16/);
  });

  it("says that a text which YAML takes for something else needs quotes", () => {
    expect(() => parseConfig(shipped.replace(/prompts: .*/, "prompts: [no, 1]"), "t")).toThrow(
      /prompts\[0\]: found false, expected a text \(in quotes\)/,
    );
  });

  it.each([
    [
      "model.safetensors",
      Buffer.concat([Buffer.from([9, 0, 0, 0, 0, 0, 0, 0]), Buffer.from("{}       ")]),
      "is a safetensors file",
    ],
    ["model.gguf", Buffer.from("GGUF\x03\0\0\0"), "is a GGUF file"],
    ["page.yaml", Buffer.from("<!doctype html>"), "is a web page (HTML)"],
    ["clip.mp4", Buffer.from("\0\0\0\x20ftypisom"), "is an MP4 or MOV video"],
    ["nothing.yaml", Buffer.alloc(0), "is empty (0 bytes)"],
  ])("names %s in the place of a YAML file", async (name, bytes, what) => {
    writeFileSync(join(folder, name), bytes);
    const error = await failure(() => loadConfig(join(folder, name)));
    expect(error.code).toBe("config");
    expect(error.message).toContain(`${join(folder, name)}: ${what}`);
    expect(error.message).toContain(", expected a YAML file");
  });
});
