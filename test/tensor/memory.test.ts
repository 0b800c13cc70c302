import { afterEach, describe, expect, it } from "vitest";
import { add, full, silu } from "../../lib/ops/index.js";
import { device, empty, scope, withMemoryGroup } from "../../lib/tensor/index.js";
import { expectError, liveBytes } from "../support/gradcheck.js";

const initial = device().memory().limit;
afterEach(() => device().setMemoryLimit(initial));

const MiB = 2 ** 20;

describe("memory", () => {
  it("that is left is what the limit allows, and on the host no more than is free there", () => {
    const { live } = device().memory();
    expect(device().available()).toBeLessThanOrEqual(initial - live);
    expect(device().available()).toBeGreaterThan(0);
    device().setMemoryLimit(live + 3 * MiB);
    expect(device().available()).toBe(3 * MiB);
    device().setMemoryLimit(Math.max(0, live - MiB));
    expect(device().available()).toBe(0);
  });

  it("is counted by group", async () => {
    const before = device().memory().groups;
    const tensors = [
      empty([MiB / 4], { group: "data" }),
      withMemoryGroup("optimizer", () => empty([MiB / 2])),
      empty([MiB / 4], { dtype: "u8" }),
    ];
    const { groups } = device().memory();
    expect(groups.data - before.data).toBe(MiB);
    expect(groups.optimizer - before.optimizer).toBe(2 * MiB);
    expect(groups.activations - before.activations).toBe(MiB / 4);
    for (const t of tensors) t.dispose();
    await liveBytes();
    expect(device().memory().groups).toEqual(before);
  });

  it("is reused: the same sizes need no new allocation", async () => {
    const round = () => scope(() => void add(full([100_000], 1), full([100_000], 2)));
    round();
    await device().synchronize();
    const { allocations } = device().memory();
    for (let i = 0; i < 20; i++) round();
    await device().synchronize();
    expect(device().memory().allocations).toBe(allocations);
  });

  it("counts what tensors take, not more than 256 bytes beyond their values", async () => {
    const base = await liveBytes();
    const sizes = [1, 1000, 70_001, 3_000_001];
    const tensors = sizes.map((size) => empty([size]));
    const taken = (await liveBytes()) - base;
    const values = 4 * sizes.reduce((a, b) => a + b);
    expect(taken).toBeGreaterThanOrEqual(values);
    expect(taken).toBeLessThan(values + sizes.length * 256);
    for (const t of tensors) t.dispose();
  });

  // Under AddressSanitizer every tensor has a block of the system's own.
  it.skipIf(process.env.ASAN_OPTIONS)("serves other sizes than those that left it", async () => {
    const base = await liveBytes();
    const block = (mebibytes: number) => empty([mebibytes * (MiB / 4)]);
    // As a training step does: activations grow, then go, latest first, while gradients of other sizes come.
    const step = () => {
      const activations = Array.from({ length: 60 }, (_, i) => block(4 + (i % 5)));
      const gradients = [];
      while (activations.length > 0) {
        activations.pop()?.dispose();
        if (activations.length % 3 === 0) gradients.push(block(7 + (activations.length % 7)));
      }
      for (const gradient of gradients) gradient.dispose();
    };
    device().resetPeak();
    step();
    const { peak, live, cached, allocations } = device().memory();
    expect(peak - base).toBe(360 * MiB);
    expect(live + cached - peak).toBeLessThan(0.35 * peak);
    for (let i = 0; i < 5; i++) step();
    expect(device().memory()).toMatchObject({ live: base, allocations });
  });

  it("reports the peak since it was reset", async () => {
    const base = await liveBytes();
    device().resetPeak();
    scope(() => void full([MiB / 4], 1));
    expect(device().memory().peak - base).toBe(MiB);
    device().resetPeak();
    expect(device().memory().peak).toBe(await liveBytes());
  });

  it("that exceeds the limit is refused with a report by group, and work goes on", async () => {
    const base = await liveBytes();
    device().setMemoryLimit(base + 8 * MiB);
    const kept = full([MiB], 3, { group: "data" });
    const message =
      /out of memory on \w+: 6\.0 MiB asked for, .* in use of .* \(activations .*, parameters .*, gradients .*, optimizer .*, data \d+\.\d MiB\)/;
    expectError("out_of_memory", message, () => empty([6 * (MiB / 4)]));
    const y = silu(kept);
    expect((await y.read())[MiB - 1]).toBeCloseTo(3 / (1 + Math.exp(-3)), 5);
    y.dispose();
    kept.dispose();
    expect(await liveBytes()).toBe(base);
  });

  it("that is merely cached gives way", async () => {
    const base = await liveBytes();
    device().setMemoryLimit(base + 8 * MiB);
    for (const size of [1, 2, 3, 4, 5, 6, 7]) {
      const t = full([size * (MiB / 4)], size);
      t.dispose();
    }
    const t = full([7 * (MiB / 4)], 2);
    expect(await t.item().catch(() => "many")).toBe("many");
    t.dispose();
    const { live, cached, limit } = device().memory();
    expect(live + cached).toBeLessThanOrEqual(limit);
  });
});
