import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { caseOf, cases } from "./cases/index.js";
import { checkFixture } from "./support/check.js";
import { Fixture } from "./support/fixture.js";

/** The whole collection stands beside a checkout where it is available; one small file of every kind is always here. */
const collection = join(__dirname, "..", "..", "..", "shared", "golden");
const own = join(__dirname, "fixtures");

/** Whole-size models take minutes: the runner checks those. */
const LARGEST_MODEL = 5e6;

async function fixturesIn(folder: string): Promise<Fixture[]> {
  const names = readdirSync(folder).filter((name) => Object.keys(cases).some((kind) => name.startsWith(kind)));
  const files = names.filter((name) => name.endsWith(".safetensors")).sort();
  const fixtures = await Promise.all(files.map((name) => Fixture.open(join(folder, name))));
  return fixtures.filter((fixture) => caseOf(fixture.kind) && modelSize(fixture) <= LARGEST_MODEL);
}

function modelSize(fixture: Fixture): number {
  return fixture.parameterShapes().reduce((n, [, shape]) => n + shape.reduce((m, d) => m * d, 1), 0);
}

async function expectReproduced(fixture: Fixture): Promise<void> {
  const results = await checkFixture(fixture);
  expect(results.length).toBeGreaterThan(0);
  expect(results.filter(({ ok }) => !ok)).toEqual([]);
}

describe("golden fixtures of this repository", async () => {
  it("show every kind of the reference's example", async () => {
    const files = readdirSync(own).filter((name) => name.endsWith(".safetensors"));
    const kinds = await Promise.all(files.map(async (name) => (await Fixture.open(join(own, name))).kind));
    expect(Object.keys(cases).filter((kind) => kind.startsWith("x-") && !kinds.includes(kind))).toEqual([]);
  });
  it.each((await fixturesIn(own)).map((fixture) => [fixture.name, fixture] as const))("%s", (_, fixture) =>
    expectReproduced(fixture),
  );
});

describe("golden collection", async () => {
  if (!existsSync(collection)) {
    if (process.env.CI) it("is there in CI", () => expect(existsSync(collection)).toBe(true));
    else it.skip("needs the folder ../shared/golden beside this checkout, which is not there");
    return;
  }
  it.each((await fixturesIn(collection)).map((fixture) => [fixture.name, fixture] as const))("%s", (_, fixture) =>
    expectReproduced(fixture),
  );
});
