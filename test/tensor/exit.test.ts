/** The end of a process whose kernels run. oneDNN frees its code in static destructors: nothing may run in it then. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Compiled, compileLibrary } from "../support/compiled.js";
import { buildPause, end, preloaded, WAYS } from "../support/exits.js";

let library: Compiled;
let folder: string;
let pause: string;
beforeAll(() => {
  library = compileLibrary();
  folder = mkdtempSync(join(tmpdir(), "ltx-exit-"));
  pause = buildPause(folder);
}, 180_000);
afterAll(() => {
  library.remove();
  rmSync(folder, { recursive: true, force: true });
});

describe("with kernels in flight a process ends cleanly", () => {
  it.each(WAYS.map((way) => [way.name, way] as const))("%s", { timeout: 120_000 }, async (_, way) => {
    for (const env of [{}, preloaded(pause), preloaded(pause)]) {
      const { code, signal, stderr } = await end(way, library, env);
      expect({ code, signal }).toEqual({ code: way.code, signal: null });
      expect(stderr).toMatch(way.says ?? /^$/);
    }
  });
});
