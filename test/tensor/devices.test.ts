import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { backendFolders } from "../../lib/native.js";
import { backends, device } from "../../lib/tensor/index.js";
import { type Compiled, compileLibrary } from "../support/compiled.js";
import { expectError } from "../support/gradcheck.js";

describe("a device's name", () => {
  it("stands for one device", () => {
    expect(device("cpu")).toBe(device("cpu"));
    expect(device("cpu").name).toBe("cpu");
    expect(device()).toBe(device("auto"));
  });

  for (const name of ["", "gpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:1.5", "cuda:12345", "emulator:1"]) {
    it(`is not ${JSON.stringify(name)}`, () => {
      const expected = `unknown device ${JSON.stringify(name)}: expected auto, cpu, cuda or cuda:N`;
      expectError("invalid_argument", new RegExp(`^${expected}`), () => device(name));
    });
  }
});

describe("backend libraries", () => {
  let library: Compiled;
  const folder = mkdtempSync(join(tmpdir(), "ltx-backends-"));
  const release = backendFolders().at(-1) as string;
  beforeAll(() => {
    library = compileLibrary();
  });
  afterAll(() => {
    library.remove();
    rmSync(folder, { recursive: true, force: true });
  });

  /** What `script` prints as JSON, with these environment variables. */
  async function evaluate(env: Record<string, string>, expression: string): Promise<unknown> {
    const { code, stdout, stderr } = await library.run(`
      Object.assign(process.env, ${JSON.stringify({ LTX_DEVICE: "", ...env })});
      const attempt = (name) => {
        try {
          return tensor.device(name).name;
        } catch (error) {
          return error.code + ": " + error.message;
        }
      };
      console.log(JSON.stringify(${expression}));`);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    return JSON.parse(stdout);
  }

  it("that cannot be used are passed over by auto, and say why to those who ask", async () => {
    const broken = join(folder, "libltx_cuda.so");
    writeFileSync(broken, "not a library");
    const env = { LTX_BACKEND_PATH: `/nonexistent:${folder}` };
    const [auto, cuda, states] = (await evaluate(env, `[attempt("auto"), attempt("cuda"), tensor.backends()]`)) as [
      string,
      string,
      { name: string; available: boolean; detail: string }[],
    ];
    rmSync(broken);
    if (backends().some(({ name, available }) => name === "cuda" && available)) return; // beside the addon comes first
    expect(auto).toBe("cpu");
    expect(cuda).toMatch(/^unavailable: device cuda:0 cannot be used: cuda: /);
    expect(states.find(({ name }) => name === "cuda")).toMatchObject({ available: false });
  });

  it("need not be backends", async () => {
    const other = join(folder, "libltx_emulator.so");
    symlinkSync(join(release, "libgomp.so.1"), other);
    const reason = await evaluate({ LTX_BACKEND_PATH: folder }, `attempt("emulator")`);
    rmSync(other);
    expect(reason).toMatch(/^unavailable: device emulator cannot be used: emulator: .* exports no ltx_backend$/);
  });

  it("that are not there are said to be missing, and where they were looked for", async () => {
    const reason = await evaluate({ LTX_BACKEND_PATH: folder }, `attempt("emulator")`);
    const searched = `no libltx_emulator.so in ${folder} or \\S+/build/Release; it belongs to the tests`;
    expect(reason).toMatch(new RegExp(`^unavailable: device emulator cannot be used: ${searched}`));
    expect(await evaluate({ LTX_CPU_ISA: "sse2" }, `attempt("cpu")`)).toMatch(
      /^unavailable: device cpu cannot be used: no libltx_cpu_sse2.so in [^;]+; LTX_CPU_ISA may be avx2 or avx512/,
    );
  });

  it("auto is what LTX_DEVICE names", async () => {
    expect(await evaluate({ LTX_DEVICE: "cpu" }, `[attempt("auto"), attempt()]`)).toEqual(["cpu", "cpu"]);
    expect(await evaluate({ LTX_DEVICE: "tpu" }, `attempt()`)).toMatch(
      /^invalid_argument: LTX_DEVICE names an unknown device "tpu": expected auto, cpu, cuda or cuda:N/,
    );
  });
});
