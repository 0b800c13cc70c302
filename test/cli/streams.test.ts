/** Signals, and standard streams that can't be written: no work is lost, and the exit code says what happened. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { barFormat } from "../../lib/cli/output.js";
import { eventsOf, newestCheckpoint, start, testFolder, tinyVaeYaml, writeYaml } from "../support/tiny.js";

const folder = testFolder();
// Long enough that no machine ends it before the signal comes.
const long = writeYaml(
  folder,
  "long.yaml",
  tinyVaeYaml((file) => {
    Object.assign(file.training, { steps: 5000, save_every: 5000, validate_every: 5000, sample_every: 5000 });
  }),
);
const short = writeYaml(folder, "short.yaml", tinyVaeYaml());

const train = (config: string, out: string, ...more: string[]) => ["train", "--config", config, "--out", out, ...more];
const stepOf = (run: string) => Number(newestCheckpoint(run).step.slice("step-".length));

describe("a run that is asked to end", () => {
  for (const signal of ["SIGHUP", "SIGTERM", "SIGINT"] as const) {
    it(`by ${signal} writes a checkpoint and exits with 130`, async () => {
      const run = join(folder, signal);
      const started = start(train(long, run, "--json"), {
        onLine: (line) => {
          if (JSON.parse(line).step === 3) started.child.kill(signal);
        },
      });
      const ended = await started.done;
      expect(ended).toMatchObject({ code: 130, signal: null });
      expect(ended.stderr).toContain(`continue with: ltx-native train --resume ${run}`);
      expect(stepOf(run)).toBeGreaterThanOrEqual(3);
      expect(readdirSync(run)).not.toContain("run.lock");
    });
  }

  it("by the same key twice, as npx passes it on, still writes a checkpoint", async () => {
    const run = join(folder, "twice");
    const started = start(train(long, run, "--json"), {
      onLine: (line) => {
        if (JSON.parse(line).step !== 3) return;
        started.child.kill("SIGINT");
        started.child.kill("SIGINT");
      },
    });
    expect(await started.done).toMatchObject({ code: 130, signal: null });
    expect(stepOf(run)).toBeGreaterThanOrEqual(3);
  });
});

describe("standard output", () => {
  it("whose reader goes away ends a run with a checkpoint and 130", async () => {
    const run = join(folder, "head");
    const shell = `exec > >(head -n 2 > ${join(folder, "head.txt")})`;
    const ended = await start(train(long, run, "--json"), { shell }).done;
    expect(ended).toMatchObject({ code: 130, signal: null });
    expect(ended.stderr).toContain("a checkpoint will be written");
    expect(stepOf(run)).toBeGreaterThanOrEqual(1);
    expect(eventsOf(readFileSync(join(folder, "head.txt"), "utf8"))[0]).toMatchObject({ type: "start" });
  });

  it("that is full stops no work, is told, and makes the exit code 1", async () => {
    const run = join(folder, "full");
    const ended = await start(train(short, run, "--json"), { shell: "exec > /dev/full" }).done;
    expect(ended.code).toBe(1);
    expect(ended.stderr).toMatch(
      /^ltx-native: cannot write standard output, going on without it: ENOSPC: no space left on device, write\n$/,
    );
    expect(stepOf(run)).toBe(12);
    expect(readdirSync(run)).toContain("reconstructions.gif");
  });
});

describe("the progress bar", () => {
  it.each([
    [200, 40, true],
    [100, 40, true],
    [80, 20, true],
    [67, 8, false],
    [15, 8, false],
  ])("of a terminal of %d columns", (columns, size, bar) => {
    expect(barFormat(columns)).toEqual({
      format: `${bar ? "{bar} " : ""}{value}/{total} {text}`,
      barsize: size,
    });
  });
});
