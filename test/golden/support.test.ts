import { spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { writeSafetensors } from "../../lib/formats/safetensors.js";
import { caseOf, cases } from "./cases/index.js";
import { relativeError } from "./support/check.js";
import { hashParameter, hashUniform } from "./support/hash-params.js";

describe("hash parameters", () => {
  it("draws the published values for key a", () => {
    expect([...hashUniform("a", 3)].map((u) => Number(u.toFixed(8)))).toEqual([-0.25653815, 0.99624455, 0.98421299]);
  });

  it("agrees with 64-bit integer arithmetic", () => {
    const mask = (1n << 64n) - 1n;
    const key = "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight";
    let h = 0xcbf29ce484222325n;
    for (const byte of new TextEncoder().encode(key)) h = ((h ^ BigInt(byte)) * 0x100000001b3n) & mask;
    const expected = Array.from({ length: 200 }, (_, i) => {
      let z = (h + BigInt(i + 1) * 0x9e3779b97f4a7c15n) & mask;
      z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
      z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & mask;
      z ^= z >> 31n;
      return (2 * Number(z >> 40n)) / 2 ** 24 - 1;
    });
    expect([...hashUniform(key, 200)]).toEqual(expected);
  });

  it("scales by name and shape", () => {
    const [u] = hashUniform("x.weight", 1);
    expect(hashParameter("x.weight", [1])[0]).toBe(Math.fround(1 + 0.1 * u));
    expect(hashParameter("x.weight", [2, 12])[0]).toBe(Math.fround(0.5 * u));
    expect(hashParameter("x.bias", [1])[0]).toBe(Math.fround(0.1 * hashUniform("x.bias", 1)[0]));
    expect(hashParameter("t.scale_shift_table", [4, 2])[0]).toBe(
      Math.fround(0.3 * hashUniform("t.scale_shift_table", 1)[0]),
    );
    expect([...hashParameter("d.timestep_scale_multiplier", [])]).toEqual([1000]);
    expect(hashParameter("n.running_var", [3]).every((v) => v >= 0.5 && v <= 0.6)).toBe(true);
  });
});

describe("a kind", () => {
  it("has a case of its own, or that of the kinds that begin as it does", () => {
    expect(caseOf("o-vae-decode-0.9.7-video33")).toBe(cases["o-vae-decode"]);
    expect(caseOf("o-t5-small")).toBe(cases["o-t5-small"]);
    expect(caseOf("x-resnet-block-mid")).toBe(cases["x-resnet-block-mid"]);
    for (const kind of ["", "o", "o-vae", "o-vae-decoder-x", "constructor"]) expect(caseOf(kind), kind).toBeUndefined();
  });
});

describe("relative error", () => {
  it("divides by the reference's norm, unless that is 0", () => {
    expect(relativeError([3, 0], [3, 4])).toBeCloseTo(0.8);
    expect(relativeError([3, 4], [0, 0])).toBeCloseTo(5);
    expect(relativeError([Number.NaN], [1])).toBeNaN();
  });
});

describe("the runner", () => {
  let folder: string;
  const root = join(__dirname, "..", "..");
  const run = (...options: string[]) => {
    const tsx = join(root, "node_modules", ".bin", "tsx");
    const { status, stdout } = spawnSync(tsx, [join(__dirname, "run.ts"), ...options], { cwd: root, encoding: "utf8" });
    return { status, lines: stdout.trimEnd().split("\n") };
  };
  const patchify = join(__dirname, "fixtures", "x-patchify-2d.safetensors");

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "golden-"));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it("prints a line a tensor and a summary, and fails on what it does not know", async () => {
    copyFileSync(patchify, join(folder, "x-patchify-2d.safetensors"));
    const passed = run(folder);
    expect(passed.lines).toHaveLength(3);
    expect(passed.lines[0]).toMatch(/^x-patchify-2d output\/\w+ \d\.\d\de[+-]\d+ 1\.00e-4 ok$/);
    expect(passed.lines[2]).toBe("2 passed, 0 failed");
    expect(passed.status).toBe(0);

    const one = new Uint8Array(new Float32Array([1]).buffer);
    const metadata = { case: "x-unheard-of", config: "{}", tolerance: "1e-4" };
    await writeSafetensors(
      join(folder, "strange.safetensors"),
      [{ name: "output/y", dtype: "F32", shape: [1], data: one }],
      metadata,
    );
    writeFileSync(join(folder, "torn.safetensors"), "no header");
    const failed = run(folder);
    expect(failed.lines.at(-1)).toBe("2 passed, 2 failed");
    expect(failed.status).toBe(1);
    expect(run(folder, "--only", "x-patch").lines.at(-1)).toBe("2 passed, 1 failed");
  });

  it("fails when a tensor is out of its bound", async () => {
    const values = new Uint8Array(new Float32Array(16).fill(7).buffer);
    const tensor = (name: string, shape: number[]) => ({ name, dtype: "F32" as const, shape, data: values });
    const metadata = { case: "x-patchify", config: '{"patch_size_hw": 2, "patch_size_t": 1}', tolerance: "1e-4" };
    const wrong = new Uint8Array(new Float32Array(16).fill(8).buffer);
    const path = mkdtempSync(join(folder, "wrong-"));
    await writeSafetensors(
      join(path, "case.safetensors"),
      [tensor("input/x", [1, 1, 4, 4]), { ...tensor("output/patchified", [1, 4, 2, 2]), data: wrong }],
      metadata,
    );
    const { status, lines } = run(path);
    expect(lines).toEqual(["case output/patchified 1.25e-1 1.00e-4 FAIL", "0 passed, 1 failed"]);
    expect(status).toBe(1);
  });

  it("explains its usage", () => {
    expect(run().status).toBe(2);
    expect(run(join(folder, "missing")).status).toBe(2);
  });
});
