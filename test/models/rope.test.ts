import { describe, expect, it } from "vitest";
import {
  absolutePositions,
  gridPositions,
  prepareRope,
  type RopeSpacing,
  ropeFrequencies,
  ropeTables,
} from "../../lib/models/transformer/index.js";
import { device } from "../../lib/tensor/index.js";

const maxPos: [number, number, number] = [20, 2048, 2048];

describe("gridPositions", () => {
  it("counts width fastest, frames slowest", () => {
    const [frames, rows, columns] = gridPositions([2, 2, 3]).map((list) => Array.from(list));
    expect(frames).toEqual([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
    expect(rows).toEqual([0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]);
    expect(columns).toEqual([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
  });
});

describe("ropeFrequencies", () => {
  it.each([
    ["exp", [1, 100, 10000]],
    ["linear", [1, 5000.5, 10000]],
    ["sqrt", [1, Math.sqrt((1 + 1e8) / 2), 10000]],
    ["exp_2", [1, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]],
  ] as [RopeSpacing, number[]][])("spaced %s", (spacing, expected) => {
    const frequencies = ropeFrequencies({ dim: 18, theta: 10000, maxPos, spacing });
    expect(frequencies).toHaveLength(3);
    for (const [i, f] of frequencies.entries()) expect(f / ((expected[i] * Math.PI) / 2)).toBeCloseTo(1, 12);
  });
});

describe("ropeTables", () => {
  it("leaves the first D mod 6 channels and turns pairs by axis", () => {
    const { cos, sin } = ropeTables([[3], [100], [7]], { dim: 16, theta: 100, maxPos });
    expect(Array.from(cos.slice(0, 4))).toEqual([1, 1, 1, 1]);
    expect(Array.from(sin.slice(0, 4))).toEqual([0, 0, 0, 0]);
    const places = [3 / 20, 100 / 2048, 7 / 2048].map((p) => 2 * p - 1);
    for (let pair = 0; pair < 6; pair++) {
      const angle = ((pair < 3 ? 1 : 100) * Math.PI * places[pair % 3]) / 2;
      for (const at of [4 + 2 * pair, 5 + 2 * pair]) {
        expect(cos[at]).toBeCloseTo(Math.cos(angle), 6);
        expect(sin[at]).toBeCloseTo(Math.sin(angle), 6);
      }
    }
  });

  it("refuses widths that it can't turn", () => {
    expect(() => ropeTables([[0], [0], [0]], { dim: 4, theta: 100, maxPos })).toThrow("an even number from 6, got 4");
    expect(() => ropeTables([[0], [0], [0]], { dim: 9, theta: 100, maxPos })).toThrow("an even number from 6, got 9");
  });
});

describe("absolutePositions", () => {
  it("puts width, height and frame behind one another, sines before cosines", () => {
    const dim = 12;
    const table = absolutePositions([2, 2, 3], dim);
    const token = 1 * 6 + 1 * 3 + 2; // frame 1, row 1, column 2
    const features = (p: number) => [Math.sin(p), Math.sin(p / 100), Math.cos(p), Math.cos(p / 100)];
    const expected = [...features(2), ...features(1), ...features(1)];
    for (const [i, value] of expected.entries()) expect(table[token * dim + i]).toBeCloseTo(value, 6);
  });
});

describe("prepareRope", () => {
  const positions = [0, 1, 2].map((axis) => Float64Array.from({ length: 5000 }, (_, i) => ((i * (axis + 3)) % 71) / 3));
  const options = { dim: 130, theta: 10000, maxPos: [20, 2048, 2048] as const, angles: "f32" as const };

  it("makes the same tables in parts", async () => {
    const before = device().memory().live;
    const { cos, sin } = ropeTables(positions as never, options);
    const tables = await prepareRope(positions as never, options, device());
    expect(tables.cos.shape).toEqual([5000, 130]);
    expect(await tables.cos.read()).toEqual(cos);
    expect(await tables.sin.read()).toEqual(sin);
    tables.cos.dispose();
    tables.sin.dispose();
    expect(device().memory().live).toBe(before);
  });

  it("lets others have their turn, and stops at the signal with nothing left", async () => {
    const before = device().memory().live;
    const stop = new AbortController();
    const long = [0, 1, 2].map(() => Float64Array.from({ length: 40_000 }, (_, i) => i / 7));
    setImmediate(() => stop.abort());
    const making = prepareRope(long as never, { ...options, dim: 1024 }, device(), stop.signal);
    await expect(making).rejects.toMatchObject({ code: "aborted" });
    await device().synchronize();
    expect(device().memory().live).toBe(before);
  });
});
