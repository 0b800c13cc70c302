import { describe, expect, it } from "vitest";
import { Bench } from "../../bench/kernels/case.js";
import { allCases, casesFor, ceilingCases, opNames, scalesOf } from "../../bench/kernels/cases.js";
import { ceilingsOf, fraction, lineOf } from "../../bench/kernels/lines.js";
import { timeCalls } from "../../bench/kernels/timing.js";
import { device } from "../../lib/tensor/index.js";

describe("the kernel lab", () => {
  it("has every op for every device, each case once", () => {
    for (const [name, quick] of [
      ["cuda:0", false],
      ["cuda:0", true],
      ["cpu", false],
      ["emulator", false],
    ] as const) {
      const { ceilings, cases } = casesFor(scalesOf(name, quick));
      const all = [...ceilings, ...cases];
      expect(new Set(all.map(({ id }) => id)).size).toBe(all.length);
      expect([...new Set(all.map(({ op }) => op))].sort()).toEqual([...opNames].sort());
    }
  });

  it("takes the problems that fit the device, bf16 first", () => {
    expect(scalesOf("cuda:0", false)).toEqual(["small", "large"]);
    expect(scalesOf("emulator", false)).toEqual(["tiny"]);
    const { ceilings, cases } = casesFor(["small", "large"]);
    expect(ceilings.every(({ scale }) => scale === "large")).toBe(true);
    expect(ceilings).toEqual(ceilingCases.filter(({ scale }) => scale === "large"));
    expect(ceilings.map(({ op, dtype }) => `${op} ${dtype}`)).toEqual([
      ...["matmul bf16", "matmul f32", "copy bf16", "copy f32", "triad f32"],
    ]);
    const ranks = cases.map(({ rank }) => rank);
    expect(ranks).toEqual([...ranks].sort());
  });

  for (const given of allCases.filter(({ scale }) => scale === "tiny")) {
    it(`runs ${given.id}`, async () => {
      const bench = new Bench(device(), given.dtype);
      const { live } = device().memory();
      const { run, bytes } = given.prepare(bench);
      const seconds = await timeCalls(device(), run, { seconds: 1e-4, rounds: 1 });
      expect(seconds).toBeGreaterThan(0);
      expect(bytes).toBeGreaterThan(0);
      bench.dispose();
      expect(device().memory().live).toBe(live);
    });
  }

  it("sets times against the ceilings", () => {
    const [copy] = allCases.filter(({ op, dtype }) => op === "copy" && dtype === "f32");
    const [matmul] = allCases.filter(({ op, dtype }) => op === "matmul" && dtype === "f32");
    const lines = [
      lineOf(copy, { id: "", seconds: 2, bytes: 100 }, { id: "", seconds: 1 }, null),
      lineOf(matmul, { id: "", error: "broken" }, { id: "", seconds: matmul.flops / 1000 }, null),
    ];
    expect(lines[0]).toMatchObject({ ratio: 0.5, error: null });
    expect(lines[1]).toMatchObject({ seconds: null, ratio: null, error: "broken" });
    const ceilings = ceilingsOf(lines);
    expect(ceilings.bandwidth).toBe(100);
    expect(ceilings.flops.f32).toBeCloseTo(1000);
    expect(ceilings.flops.bf16).toBeUndefined();
    expect(fraction(4, 100, 1000, "f32", ceilings)).toBeCloseTo(0.25);
    expect(fraction(4, 300, 1000, "f32", ceilings)).toBeCloseTo(0.75);
    expect(fraction(4, 100, 1000, "bf16", ceilings)).toBeNull();
  });
});
