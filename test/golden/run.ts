/**
 * `npm run --silent golden -- DIR [--only kind,kind]`: checks the fixtures in DIR, one line a tensor, then a summary.
 * `--only` keeps the case kinds that start with one of those given. Exit code 1 when anything fails, 2 for wrong usage.
 */
import { readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { parseArgs } from "node:util";
import { checkFixture, failed, type Result } from "./support/check.js";
import { Fixture } from "./support/fixture.js";

function usage(problem: string): never {
  process.stderr.write(`golden: ${problem}\nusage: npm run --silent golden -- DIR [--only kind,kind]\n`);
  process.exit(2);
}

function parse(): { folder: string; only: string[] | null } {
  try {
    const { values, positionals } = parseArgs({ options: { only: { type: "string" } }, allowPositionals: true });
    if (positionals.length !== 1) usage(`expected one folder, got ${positionals.length}`);
    const only =
      values.only
        ?.split(",")
        .map((kind) => kind.trim())
        .filter((kind) => kind.length > 0) ?? null;
    return { folder: positionals[0], only };
  } catch (error) {
    usage((error as Error).message);
  }
}

function fixtureFiles(folder: string): string[] {
  try {
    return readdirSync(folder)
      .filter((name) => name.endsWith(".safetensors"))
      .sort()
      .map((name) => join(folder, name));
  } catch (error) {
    usage(`cannot list ${folder}: ${(error as Error).message}`);
  }
}

async function results(path: string, only: string[] | null): Promise<Result[]> {
  let fixture: Fixture;
  try {
    fixture = await Fixture.open(path);
  } catch (error) {
    return [failed(basename(path, ".safetensors"), "file", (error as Error).message)];
  }
  if (only && !only.some((kind) => fixture.kind.startsWith(kind))) return [];
  return checkFixture(fixture);
}

const number = (value: number): string => (Number.isNaN(value) ? "-" : value.toExponential(2));

async function main(): Promise<void> {
  const { folder, only } = parse();
  const files = fixtureFiles(folder);
  let passed = 0;
  let wrong = 0;
  for (const path of files) {
    for (const { fixture, tensor, error, tolerance, ok, reason } of await results(path, only)) {
      if (ok) passed++;
      else wrong++;
      process.stdout.write(`${fixture} ${tensor} ${number(error)} ${number(tolerance)} ${ok ? "ok" : "FAIL"}\n`);
      if (reason) process.stderr.write(`${fixture} ${tensor}: ${reason}\n`);
    }
  }
  if (passed + wrong === 0) {
    process.stderr.write(`golden: no fixture in ${folder}${only ? ` is of kind ${only.join(", ")}` : ""}\n`);
    wrong = 1;
  }
  process.stdout.write(`${passed} passed, ${wrong} failed\n`);
  process.exitCode = wrong > 0 ? 1 : 0;
}

main().catch((error) => {
  process.stderr.write(`${error?.stack ?? error}\n`);
  process.exitCode = 1;
});
