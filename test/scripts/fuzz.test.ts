import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import { runTarget } from "../../scripts/fuzz/run.js";
import type { Outcome } from "../../scripts/fuzz/target.js";
import { targetNamed } from "../../scripts/fuzz/targets/index.js";
import { root } from "../support/folder.js";

// Each starts several processes, which takes long on a busy machine.
vi.setConfig({ testTimeout: 300_000 });

/** The command line, by the arguments that follow `npm run fuzz --`. */
function fuzz(...args: string[]) {
  const command = ["--import", "tsx", join(root, "scripts", "fuzz.ts"), ...args];
  const { status, stdout, stderr } = spawnSync(process.execPath, command, { cwd: root, encoding: "utf8" });
  return { status, stdout, stderr };
}

describe("the fuzzer finds", () => {
  // A seed by which each of these has its fault among the first eight cases.
  const planted: [name: string, outcome: Outcome, what: RegExp][] = [
    ["crash", "crash", /ended by SIGSEGV/],
    ["exit", "crash", /ended with exit 3/],
    ["never", "crash", /a promise that nobody settles/],
    ["hang", "hang", /no end after 2 s/],
    ["rejection", "crash", /nobody awaits this \(thrown where nobody catches it\)/],
    ["callback", "crash", /TypeError: .* \(thrown where nobody catches it\)/],
    ["class", "wrong class", /^TypeError: Cannot read properties of null/],
    ["garbage", "silent", /1 \+ 1 is 2, expected 3/],
    ["prototype", "silent", /Object\.prototype was changed/],
    ["memory", "memory", /MiB resident, bound 512/],
    ["handle", "memory", /left 1 files open/],
  ];
  it.each(planted)("a planted fault of the kind %s, which the case alone repeats", async (name, outcome, what) => {
    const hang = name === "hang" ? 2000 : undefined;
    const tally = await runTarget(await targetNamed(`planted-${name}`), { cases: 8 }, { seed: 32, hang });
    expect(tally.cases).toBe(8);
    expect(tally.counts[outcome]).toBeGreaterThan(0);
    expect(tally.counts.accepted + tally.counts.refused + tally.counts[outcome]).toBe(8);
    expect(tally.faults).toHaveLength(1);
    expect(tally.faults[0]).toMatchObject({ outcome, what: expect.stringMatching(what), count: tally.counts[outcome] });
    expect(tally.faults[0].cases).toBe(String(tally.faults[0].index));
  });
});

describe("npm run fuzz", () => {
  it("prints the command that repeats a fault, which shows the error's stack", () => {
    const found = fuzz("--reader", "planted-class", "--cases", "8", "--seed", "3");
    expect(found.status).toBe(1);
    const [, again] = /npm run fuzz -- (.*)/.exec(found.stdout) as RegExpExecArray;
    expect(again).toMatch(/^--reader planted-class --seed 3 --case \d+$/);
    const repeated = fuzz(...again.split(" "));
    expect(repeated.status).toBe(1);
    expect(repeated.stdout).toContain("wrong class: TypeError: Cannot read properties of null (reading 'length')");
    expect(repeated.stdout).toMatch(/at .*planted\.ts/);
  });

  it("gives the same cases for the same seed, and ends with 0 where nothing is wrong", () => {
    const [first, again, other] = ["5", "5", "6"].map((seed) =>
      fuzz("--reader", "ppm", "--cases", "60", "--seed", seed),
    );
    expect([first.status, first.stdout.includes("seed 5: 0 faults")]).toEqual([0, true]);
    const counts = ({ stdout }: typeof first) => /^ppm +60 +(\d+) +(\d+)/m.exec(stdout)?.slice(1).map(Number);
    expect(counts(first)?.reduce((a, b) => a + b)).toBe(60);
    expect(counts(again)).toEqual(counts(first));
    expect(other.status).toBe(0);
  });

  it("names the readers when it does not know one, and refuses numbers that are none", () => {
    expect(fuzz("--reader", "nothing")).toMatchObject({
      status: 2,
      stderr: expect.stringContaining("safetensors, pt-zip"),
    });
    expect(fuzz("--cases", "many")).toMatchObject({ status: 2, stderr: expect.stringContaining("--cases many") });
  });
});
