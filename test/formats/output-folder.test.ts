import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { statfs } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { checkOutputFolder, reserveName } from "../../lib/formats/output-folder.js";
import { failure } from "../support/failure.js";
import { testFolder } from "../support/folder.js";

const folder = testFolder();
const at = (...parts: string[]) => join(folder, ...parts);

describe("checkOutputFolder", () => {
  it("passes folders that can be made, and leaves nothing behind", async () => {
    mkdirSync(at("there"));
    await checkOutputFolder(at("there"), "--out");
    await checkOutputFolder(at("there", "a", "b"), "--out");
    expect(readdirSync(at("there"))).toEqual([]);
  });

  it("refuses a file in a folder's place, at any depth", async () => {
    writeFileSync(at("file"), "");
    for (const path of [at("file"), at("file", "a"), at("file", "a", "b")]) {
      expect(await failure(() => checkOutputFolder(path, "[x] --out"))).toMatchObject({
        code: "io",
        message: `[x] --out ${path} cannot be written to: a file is in its place; name another folder`,
      });
    }
  });

  it("refuses a name that the file system does not take", async () => {
    const error = await failure(() => checkOutputFolder(at("n".repeat(300)), "--out"));
    expect(error).toMatchObject({ code: "io", message: expect.stringContaining("ENAMETOOLONG") });
  });

  it("refuses what has more bytes than the disk has free", async () => {
    const { bavail, bsize } = await statfs(folder);
    await checkOutputFolder(at("new"), "--out", 1000);
    const error = await failure(() => checkOutputFolder(at("new"), "--out", 2 * bavail * bsize));
    expect(error.code).toBe("io");
    expect(error.message).toMatch(/has [\d.]+ GiB free, the result may take [\d.]+ GiB; name another folder$/);
  });
});

describe("reserveName", () => {
  it("gives everybody who asks at once another name", async () => {
    const out = at("many", "deep");
    const ask = (_: unknown, i: number) => reserveName(out, (k) => `a_${k}`, [".json", ".mp4"], `{"n":${i}}`);
    const names = await Promise.all(Array.from({ length: 20 }, ask));
    const paths = names.map((name) => name.path(".json"));
    expect(new Set(paths).size).toBe(20);
    expect([...paths].sort()).toEqual(Array.from({ length: 20 }, (_, i) => join(out, `a_${i}.json`)).sort());
    for (const [i, path] of paths.entries()) expect(readFileSync(path, "utf8")).toBe(`{"n":${i}}`);
  });

  it("passes over names of which any file is there", async () => {
    mkdirSync(at("some"));
    writeFileSync(at("some", "a_0.mp4"), "");
    writeFileSync(at("some", "a_1.json"), "");
    const name = await reserveName(at("some"), (i) => `a_${i}`, [".json", ".mp4"]);
    expect(name.path(".mp4")).toBe(at("some", "a_2.mp4"));
  });

  it("takes back the file, and the folders that it made, but no others", async () => {
    mkdirSync(at("mine"));
    const name = await reserveName(at("mine", "a", "b"), () => "x", [".gif"]);
    expect(existsSync(at("mine", "a", "b", "x.gif"))).toBe(true);
    await name.release();
    expect(readdirSync(at("mine"))).toEqual([]);
    const first = await reserveName(at("mine", "c"), (i) => `x_${i}`, [".gif"]);
    await reserveName(at("mine", "c"), (i) => `x_${i}`, [".gif"]);
    await first.release();
    expect(readdirSync(at("mine", "c"))).toEqual(["x_1.gif"]);
  });

  it("says what it cannot write", async () => {
    const error = await failure(() => reserveName(folder, () => "n".repeat(300), [".gif"]));
    expect(error).toMatchObject({ code: "io", message: expect.stringContaining("ENAMETOOLONG") });
  });
});
