import { existsSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, it } from "vitest";
import { cases } from "./cases/index.js";
import { checkFixture } from "./support/check.js";
import { Fixture } from "./support/fixture.js";

/** The whole collection stands beside a checkout where it is available; a handful of small files are always here. */
const collection = join(__dirname, "..", "..", "..", "shared", "golden");
const own = join(__dirname, "fixtures");

/** Whole-size models take minutes: the runner checks those. */
const LARGEST_MODEL = 5e6;

function fixturesIn(folder: string): string[] {
  const files = readdirSync(folder).filter((name) => name.endsWith(".safetensors"));
  return files
    .filter((name) => Object.keys(cases).some((kind) => name.startsWith(kind)))
    .map((name) => join(folder, name));
}

async function expectReproduced(path: string): Promise<void> {
  const fixture = await Fixture.open(path);
  const size = fixture.parameterShapes().reduce((n, [, shape]) => n + shape.reduce((m, d) => m * d, 1), 0);
  if (size > LARGEST_MODEL) return;
  const results = await checkFixture(fixture);
  expect(results.length).toBeGreaterThan(0);
  expect(results.filter(({ ok }) => !ok)).toEqual([]);
}

describe("golden fixtures of this repository", () => {
  it.each(fixturesIn(own).map((path) => [basename(path), path]))("%s", (_, path) => expectReproduced(path));
});

describe("golden collection", () => {
  if (!existsSync(collection)) {
    it.skip("needs the folder ../shared/golden beside this checkout, which is not there");
    return;
  }
  it.each(fixturesIn(collection).map((path) => [basename(path), path]))("%s", (_, path) => expectReproduced(path));
});
