/** The end of a process whose kernels run. oneDNN frees its code in static destructors: nothing may run in it then. */
import { existsSync, mkdtempSync, rmSync, statSync } from "node:fs";
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

const emulator = join(__dirname, "..", "..", "build", "emulator");
const missing = existsSync(join(emulator, "libltx_emulator.so")) ? "" : " (skipped: npm run test:emulator builds it)";

describe.skipIf(missing !== "")(`on the emulator, which writes a trace${missing}`, () => {
  const on = (trace: string) => ({ LTX_BACKEND_PATH: emulator, LTX_DEVICE: "emulator", LTX_EMULATOR_TRACE: trace });

  it("a process ends cleanly while it is written", { timeout: 120_000 }, async () => {
    for (let i = 0; i < 3; i++) {
      const { code, signal, stderr } = await end(WAYS[0], library, {
        ...on(join(folder, "trace")),
        ...preloaded(pause),
      });
      expect({ code, signal, stderr }).toEqual({ code: WAYS[0].code, signal: null, stderr: "" });
    }
    expect(statSync(join(folder, "trace")).size).toBeGreaterThan(0);
  });

  it("a trace that can't be written is an error that names it", async () => {
    const trace = join(folder, "nowhere", "trace");
    const { code, stderr } = await end(WAYS[0], library, on(trace));
    expect(code).toBe(1);
    expect(stderr).toContain(`LTX_EMULATOR_TRACE: ${trace}: No such file or directory`);
  });
});
