/** Each way of ending a process with kernels in flight, 200 times (LTX_EXIT_RUNS), every other time with the window wide open. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Compiled, compileLibrary } from "../support/compiled.js";
import { buildPause, end, preloaded, WAYS } from "../support/exits.js";

const RUNS = Number(process.env.LTX_EXIT_RUNS ?? 200);
const AT_ONCE = 3;

let library: Compiled;
let folder: string;
let pause: string;
beforeAll(() => {
  library = compileLibrary();
  folder = mkdtempSync(join(tmpdir(), "ltx-exit-"));
  pause = buildPause(folder);
});
afterAll(() => {
  library.remove();
  rmSync(folder, { recursive: true, force: true });
});

describe(`with kernels in flight ${RUNS} of ${RUNS} processes end cleanly`, () => {
  it.each(WAYS.map((way) => [way.name, way] as const))("%s", { timeout: 3_600_000 }, async (_, way) => {
    const wrong: string[] = [];
    let started = 0;
    const lane = async () => {
      while (started < RUNS) {
        const run = started++;
        const { code, signal, stderr } = await end(way, library, run % 2 === 0 ? {} : preloaded(pause));
        const clean = code === way.code && signal === null && (way.says ?? /^$/).test(stderr);
        if (!clean) wrong.push(`run ${run}: code ${code}, ${signal}: ${stderr}`);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, lane));
    expect(wrong).toEqual([]);
  });
});
