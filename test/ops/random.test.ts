import { describe, expect, it } from "vitest";
import { philox4x32, words } from "../../lib/data/philox.js";
import * as ops from "../../lib/ops/index.js";
import { device } from "../../lib/tensor/index.js";
import { arr, draw, generate } from "../support/arrays.js";
import { checkOp, expectError, some } from "../support/gradcheck.js";

/** Word i of the stream: key = seed, counter = (block low, block high, step, purpose). */
function word(i: number, { seed, step, purpose }: ops.RandomKey): number {
  return philox4x32([...words(Math.floor(i / 4)), step, purpose], words(seed))[i % 4];
}

const keys = [
  { seed: 0, step: 0, purpose: 0 },
  { seed: 1, step: 2, purpose: 3 },
  { seed: 2 ** 53 - 1, step: 2 ** 32 - 1, purpose: 2 ** 32 - 1 },
];

describe("uniform", () => {
  it("is Philox 4x32-10 to the bit", async () => {
    for (const key of keys) {
      const values = await ops.uniform([4099], key).read();
      for (let i = 0; i < values.length; i++) expect(values[i]).toBe((word(i, key) >>> 8) / 2 ** 24);
    }
  });

  it("lies in [0, 1) with the moments of its distribution", async () => {
    const values = await ops.uniform([1_000_000], { seed: 5, step: 1, purpose: 2 }).read();
    let [low, high, sum, squares] = [1, 0, 0, 0];
    for (const v of values) {
      low = Math.min(low, v);
      high = Math.max(high, v);
      sum += v;
      squares += (v - 0.5) ** 2;
    }
    expect(low).toBeGreaterThanOrEqual(0);
    expect(high).toBeLessThan(1);
    expect(Math.abs(sum / 1e6 - 0.5)).toBeLessThan(4 / Math.sqrt(12e6));
    expect(Math.abs(squares / 1e6 - 1 / 12)).toBeLessThan(4 / Math.sqrt(180e6));
  });
});

describe("normal", () => {
  it("is the Box-Muller transform of the same words", async () => {
    for (const key of keys) {
      const values = await ops.normal([2050], key).read();
      for (let i = 0; i < values.length; i++) {
        const pair = i - (i % 2);
        const radius = Math.sqrt(-2 * Math.log(((word(pair, key) >>> 8) + 1) / 2 ** 24));
        const angle = ((word(pair + 1, key) >>> 8) / 2 ** 24) * 2 * Math.PI;
        const expected = radius * (i % 2 === 0 ? Math.cos(angle) : Math.sin(angle));
        expect(Math.abs(values[i] - expected)).toBeLessThan(2e-6 * Math.max(1, Math.abs(expected)));
      }
    }
  });

  it("has the moments of its distribution and no correlation of neighbours", async () => {
    const n = 1_000_000;
    const values = await ops.normal([n], { seed: 9, step: 0, purpose: 1 }).read();
    const moments = [0, 0, 0, 0];
    let neighbours = 0;
    values.forEach((v, i) => {
      for (let k = 0; k < 4; k++) moments[k] += v ** (k + 1) / n;
      neighbours += (v * values[(i + 1) % n]) / n;
    });
    const sigma = (variance: number) => 4 * Math.sqrt(variance / n);
    expect(Math.abs(moments[0])).toBeLessThan(sigma(1));
    expect(Math.abs(moments[1] - 1)).toBeLessThan(sigma(2));
    expect(Math.abs(moments[2])).toBeLessThan(sigma(15));
    expect(Math.abs(moments[3] - 3)).toBeLessThan(sigma(96));
    expect(Math.abs(neighbours)).toBeLessThan(sigma(1));
  });

  it("draws bf16 as the rounded f32 values", async () => {
    const key = { seed: 3, step: 4, purpose: 5 };
    const rounded = await ops.normal([1001], key, { dtype: "bf16" }).read();
    const cast = await ops.cast(ops.normal([1001], key), "bf16").read();
    expect([...rounded]).toEqual([...cast]);
  });
});

describe("streams", () => {
  it("are a function of the index alone: a longer tensor starts with the shorter one", async () => {
    const key = { seed: 11, step: 12, purpose: 13 };
    for (const make of [ops.normal, ops.uniform]) {
      const long = await make([3, 50_001], key).read();
      for (const shape of [[1], [2, 3], [1023], [1025], [50_001]]) {
        const short = await make(shape, key).read();
        expect([...short]).toEqual([...long.subarray(0, short.length)]);
      }
    }
  });

  it.skipIf(device().name === "cpu")(`are the same on ${device().name} as on cpu, to the bit`, async () => {
    for (const key of keys) {
      for (const make of [ops.normal, ops.uniform]) {
        for (const dtype of ["f32", "bf16"] as const) {
          const here = await make([50_003], key, { dtype }).read();
          const cpu = await make([50_003], key, { dtype, device: device("cpu") }).read();
          expect(Buffer.compare(Buffer.from(here.buffer), Buffer.from(cpu.buffer))).toBe(0);
        }
      }
    }
  });

  it("differ by seed, step and purpose", async () => {
    const base = { seed: 1, step: 1, purpose: 1 };
    const variants = [
      base,
      { ...base, seed: 2 },
      { ...base, step: 2 },
      { ...base, purpose: 2 },
      { ...base, seed: 1 + 2 ** 32 },
    ];
    const firsts = await Promise.all(variants.map(async (key) => (await ops.uniform([4], key).read()).join()));
    expect(new Set(firsts).size).toBe(variants.length);
  });

  it("reject keys out of range", () => {
    for (const key of [{ seed: -1 }, { seed: 2 ** 53 }, { step: 1.5 }, { step: 2 ** 32 }, { purpose: Number.NaN }]) {
      expectError("invalid_argument", /\[random\] seed .*non-negative integers/, () =>
        ops.normal([1], { seed: 0, step: 0, purpose: 0, ...key }),
      );
    }
  });
});

describe("sinusoid", () => {
  it("embeds times", async () => {
    for (const [n, dim, maxPeriod] of [
      [5, 8, 10000],
      [1, 2, 100],
      [3, 256, 10000],
      [0, 4, 10000],
    ]) {
      await checkOp({
        operands: { t: { role: "parameter" as const, value: draw([n], 1, 0, 3) } },
        run: ({ t }) => ops.sinusoid(t, dim, maxPeriod),
        reference: ({ t }) =>
          generate([n, dim], (i, j) => {
            const half = dim / 2;
            const angle = t.data[i] * maxPeriod ** (-(j % half) / half);
            return j < half ? Math.cos(angle) : Math.sin(angle);
          }),
        tolerance: { f32: 1e-6 },
        dtypes: ["f32"],
      });
    }
  });

  it("is accurate for large times", async () => {
    await checkOp({
      operands: { t: { role: "parameter" as const, value: arr([4], [999.5, 1000, 12345.678, 1]) } },
      run: ({ t }) => ops.sinusoid(t, 64),
      reference: ({ t }) =>
        generate([4, 64], (i, j) => {
          const angle = t.data[i] * 10000 ** (-(j % 32) / 32);
          return j < 32 ? Math.cos(angle) : Math.sin(angle);
        }),
      tolerance: { f32: 1e-6 },
      dtypes: ["f32"],
      gradient: false,
    });
  });

  it("rejects odd widths and other dtypes", () => {
    expectError("invalid_argument", /\[sinusoid\] needs f32 times and an even width, got f32, 3/, () =>
      ops.sinusoid(some([2]), 3),
    );
    expectError("invalid_argument", /\[sinusoid\].*got bf16, 4/, () => ops.sinusoid(some([2], "bf16"), 4));
  });
});
