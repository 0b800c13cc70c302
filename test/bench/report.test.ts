import { createWriteStream, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { runChild } from "../../bench/report/child.js";
import { markdown } from "../../bench/report/markdown.js";
import { summarize } from "../../bench/report/parts.js";
import type { Report } from "../../bench/report/report.js";
import { testFolder } from "../support/tiny.js";

const folder = testFolder();

/** Runs a script in a process of its own. */
async function run(script: string, limitSeconds = 30) {
  const path = join(folder, "child.log");
  const log = createWriteStream(path);
  const values: unknown[] = [];
  const command = [process.execPath, "-e", script];
  const result = await runChild(command, { cwd: folder, limitSeconds, log, onValue: (value) => values.push(value) });
  await new Promise((done) => log.end(done));
  return { ...result, values, log: readFileSync(path, "utf8") };
}

/** A process that was killed may stay listed (Z) until someone asks for its exit code. */
function isRunning(pid: number): boolean {
  try {
    return !readFileSync(`/proc/${pid}/stat`, "utf8").includes(") Z ");
  } catch {
    return false;
  }
}

describe("a part of the report", () => {
  it("hands on its lines, and logs what is no JSON", async () => {
    const { failure, values, log } = await run(
      "console.log('{\"a\":1}'); console.log('hello'); console.error('aside')",
    );
    expect(failure).toBeNull();
    expect(values).toEqual([{ a: 1 }]);
    expect(log).toContain("hello");
    expect(log).toContain("aside");
  });

  it("that fails says why", async () => {
    const { failure, late } = await run("throw new Error('no such kernel')");
    expect(failure).toMatch(/^exit code 1: .*no such kernel/);
    expect(late).toBe(false);
  });

  it("that can't be started says why", async () => {
    const log = createWriteStream(join(folder, "none.log"));
    const { failure } = await runChild([join(folder, "nothing")], { cwd: folder, limitSeconds: 9, log });
    log.end();
    expect(failure).toMatch(/ENOENT/);
  });

  it("that hangs is ended with its children and keeps its lines", async () => {
    const child = "setInterval(() => {}, 1000)";
    const { failure, late, values, seconds } = await run(
      `const { pid } = require("node:child_process").spawn(process.execPath, ["-e", "${child}"]);
       console.log(JSON.stringify({ pid })); ${child}`,
      2,
    );
    expect(failure).toBe("cut off after 2 s");
    expect(late).toBe(true);
    expect(seconds).toBeLessThan(20);
    const [{ pid }] = values as { pid: number }[];
    expect(isRunning(pid)).toBe(false);
  });
});

describe("the report", () => {
  const line = (value: object) => `${JSON.stringify(value)}\n`;

  it("sums up tests, those of a file that was cut off too", () => {
    const text =
      line({ kind: "file", file: "a" }) +
      line({ kind: "test", file: "a", name: "x", state: "passed" }) +
      line({ kind: "end", file: "a" }) +
      line({ kind: "file", file: "b" }) +
      line({ kind: "test", file: "b", name: "y", state: "failed", error: "expected 1\ngot 2" }) +
      line({ kind: "test", file: "b", name: "z", state: "skipped" });
    expect(summarize(text)).toEqual({
      passed: 1,
      failed: 1,
      skipped: 1,
      failures: [{ file: "b", name: "y", error: "expected 1" }],
      unfinished: ["b"],
    });
  });

  it("shows what is there, and why something is not", () => {
    const report: Report = {
      ...{ date: "today", device: "cuda", minutes: 8, machine: "m", gpu: null, version: "1", commit: null },
      about: { ours: null, peer: "no peer: python3 cannot import torch" },
      parts: { tests: { state: "cut off", reason: "cut off after 9 s", seconds: 9 } },
      tests: null,
      ceilings: { bandwidth: 5e11, flops: { bf16: 1e14 } },
      kernels: [],
      steps: [
        {
          ...{ kind: "step", name: "vae-step", dtype: "bf16", batch: 8, ours_s: 0.25, peer_s: null, ratio: null },
          ...{ "GFLOP/s": 5e4, peak_bytes: 2 ** 30, peer_peak_bytes: null, rss_bytes: 1, peer_rss_bytes: null },
          ...{ peer: null, peer_others: null, error: null, peer_error: "out of | memory" },
          ...{ floor_s: null, floor_fraction: null },
        },
      ],
    };
    const page = markdown(report);
    expect(page).toContain("| tests | cut off | 9 s | cut off after 9 s |");
    expect(page).toContain("python3 cannot import torch");
    expect(page).toContain("| vae-step | bf16 | batch 8 | 250.00 ms | out of \\| memory |  |  | 50 % | 1024.0 MiB |");
    expect(page).toContain("| 500 | not measured | 100000 |");
  });
});
