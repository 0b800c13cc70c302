import { describe, expect, it } from "vitest";
import { PhiloxRandom, philox4x32 } from "../../lib/data/philox.js";

const hex = (block: Uint32Array) => Array.from(block, (word) => word.toString(16).padStart(8, "0")).join(" ");
const ONES = 0xffffffff;

describe("philox4x32", () => {
  // Known answers published with Random123 (kat_vectors, philox4x32 10).
  it.each([
    [[0, 0, 0, 0], [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"],
    [[ONES, ONES, ONES, ONES], [ONES, ONES], "408f276d 41c83b0e a20bc7c6 6d5451fd"],
    [[0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0], "d16cfe09 94fdcceb 5001e420 24126ea1"],
  ] as [[number, number, number, number], [number, number], string][])("counter %j key %j", (counter, key, answer) => {
    expect(hex(philox4x32(counter, key))).toBe(answer);
  });
});

describe("PhiloxRandom", () => {
  it("takes the words of successive blocks in order", () => {
    const random = new PhiloxRandom(2 ** 32 * 5 + 7, 3, 2 ** 32 * 9 + 11);
    const expected = [0, 1].flatMap((block) => Array.from(philox4x32([block, 3, 11, 9], [7, 5])));
    expect(Array.from({ length: 8 }, () => random.uint32())).toEqual(expected);
  });

  it("differs by seed, stream and index, and takes the greatest seed", () => {
    const first = (...key: [number, number, number]) => new PhiloxRandom(...key).uint32();
    const draws = [first(1, 0, 0), first(0, 1, 0), first(0, 0, 1), first(0, 0, 0), first(2 ** 53 - 1, 0, 0)];
    expect(new Set(draws).size).toBe(5);
  });

  it("is uniform in mean and variance", () => {
    const random = new PhiloxRandom(1);
    const values = Array.from({ length: 20000 }, () => random.uniform());
    const mean = values.reduce((a, b) => a + b) / values.length;
    const variance = values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length;
    expect(Math.abs(mean - 0.5)).toBeLessThan(4 * Math.sqrt(1 / 12 / values.length));
    expect(Math.abs(variance - 1 / 12)).toBeLessThan(0.002);
    expect(Math.min(...values)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...values)).toBeLessThan(1);
  });

  it("draws whole numbers evenly", () => {
    const random = new PhiloxRandom(2);
    const counts = new Array(6).fill(0);
    for (let i = 0; i < 6000; i++) counts[random.int(6)]++;
    // Chi-square with 5 degrees of freedom passes 20.5 once in a thousand seeds.
    expect(counts.reduce((sum, c) => sum + (c - 1000) ** 2 / 1000, 0)).toBeLessThan(20.5);
    expect(random.int(1)).toBe(0);
  });

  it.each([[-1], [0.5], [2 ** 53], [Number.NaN]])("refuses seed %s", (seed) => {
    expect(() => new PhiloxRandom(seed)).toThrow(
      `[random] seed must be a whole number from 0 to 2^53 - 1, got ${seed}`,
    );
  });

  it("refuses wrong streams, indices and bounds", () => {
    expect(() => new PhiloxRandom(0, 2 ** 32)).toThrow("stream");
    expect(() => new PhiloxRandom(0, 0, -1)).toThrow("index");
    expect(() => new PhiloxRandom(0).int(0)).toThrow("bound from 1 to 2^32, got 0");
  });
});
