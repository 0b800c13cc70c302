import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { batchIndices } from "../../lib/data/order.js";

const range = (n: number) => Array.from({ length: n }, (_, i) => i);
const sorted = (values: number[]) => [...values].sort((a, b) => a - b);

describe("batchIndices", () => {
  it("visits every sample once an epoch, for any length and batch size", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 300 }),
        fc.integer({ min: 1, max: 40 }),
        fc.maxSafeNat(),
        (length, batchSize, seed) => {
          const steps = Math.ceil((2 * length) / batchSize);
          const seen = range(steps).flatMap((step) => batchIndices({ seed, step, batchSize, length }));
          expect(sorted(seen.slice(0, length))).toEqual(range(length));
          expect(sorted(seen.slice(length, 2 * length))).toEqual(range(length));
        },
      ),
      { seed: 1, numRuns: 60 },
    );
  });

  it("does not depend on how the samples of a step are split over ranks", () => {
    const alone = batchIndices({ seed: 5, step: 13, batchSize: 12, length: 100 });
    const split = range(3).flatMap((rank) =>
      batchIndices({ seed: 5, step: 13, batchSize: 4, length: 100, rank, worldSize: 3 }),
    );
    expect(split).toEqual(alone);
  });

  it("shuffles: another order each epoch and seed, and not the identity", () => {
    const epoch = (seed: number, step: number) => batchIndices({ seed, step, batchSize: 1000, length: 1000 });
    const orders = [range(1000), epoch(0, 0), epoch(0, 1), epoch(1, 0)];
    expect(new Set(orders.map(String)).size).toBe(4);
    // A random permutation of n has one fixed point on average; neighbours stay neighbours twice on average.
    const order = epoch(0, 0);
    expect(order.filter((value, i) => value === i).length).toBeLessThan(8);
    expect(order.filter((value, i) => i > 0 && Math.abs(value - order[i - 1]) === 1).length).toBeLessThan(12);
  });

  it("puts each sample in each place equally often", () => {
    const counts = new Array(9).fill(0);
    for (let step = 0; step < 3000; step++) {
      for (const [place, value] of batchIndices({ seed: 3, step, batchSize: 3, length: 3 }).entries()) {
        counts[3 * place + value]++;
      }
    }
    for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(110);
  });

  it("stays the same from version to version", () => {
    expect(batchIndices({ seed: 1, step: 0, batchSize: 8, length: 10000 })).toMatchInlineSnapshot(`
      [
        1878,
        7511,
        3473,
        2789,
        2635,
        6576,
        8721,
        1009,
      ]
    `);
  });

  it("works far into training on a large set", () => {
    const batch = batchIndices({ seed: 2 ** 53 - 1, step: 10_000_000, batchSize: 128, length: 123_456_789 });
    expect(new Set(batch).size).toBe(128);
    expect(Math.max(...batch)).toBeLessThan(123_456_789);
  });

  it.each([
    [{ seed: -1 }, "seed must be a whole number"],
    [{ step: 1.5 }, "step must be a whole number"],
    [{ batchSize: 0 }, "batchSize must be a positive whole number, got 0"],
    [{ length: 0 }, "length must be a positive whole number, got 0"],
    [{ rank: 2, worldSize: 2 }, "rank must be from 0 to worldSize - 1 = 1, got 2"],
    [{ step: 2 ** 52 }, "passes 2^53 samples"],
  ])("refuses %j", (wrong, message) => {
    expect(() => batchIndices({ seed: 0, step: 0, batchSize: 4, length: 10, ...wrong })).toThrow(message);
  });
});
