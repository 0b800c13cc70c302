import { describe, expect, it } from "vitest";
import { clipBytes, clipTimeGrowth, epochRatio, predictBytes } from "../../bench/ratios.js";

const sized = (...times: [number, number][]) => times.map(([batch, seconds]) => ({ batch, seconds }));
const weighed = (...sizes: [number, number][]) => sizes.map(([batch, bytes]) => ({ batch, bytes }));

describe("clipTimeGrowth", () => {
  it("compares the seconds of a clip with those at the first size", () => {
    expect(clipTimeGrowth([sized([4, 2], [8, 4], [32, 24])])).toEqual([1, 1, 1.5]);
  });

  it("takes the median of the rounds' own ratios, so that a slow round counts as any other", () => {
    const rounds = [sized([1, 1], [4, 4]), sized([1, 10], [4, 44]), sized([1, 1], [4, 8])];
    expect(clipTimeGrowth(rounds)[1]).toBeCloseTo(1.1, 12);
  });
});

describe("clipBytes", () => {
  it("is what a clip takes where the rest is constant", () => {
    expect(clipBytes(weighed([4, 116], [8, 132], [16, 164], [32, 228]))).toEqual([4, 4, 4]);
  });

  it("shows what grows faster, and what does not grow yet", () => {
    expect(clipBytes(weighed([4, 100], [8, 100], [16, 124], [32, 252]))).toEqual([0, 3, 8]);
  });
});

describe("predictBytes", () => {
  it("goes on as the last two sizes did, with a tenth of room", () => {
    expect(predictBytes(weighed([1, 500], [4, 600], [8, 700]), 16)).toBeCloseTo(1.1 * 900, 9);
  });

  it("knows nothing from one size", () => {
    expect(predictBytes(weighed([4, 600]), 8)).toBeNull();
  });
});

describe("epochRatio", () => {
  it("spreads the first epoch's caches over all of them", () => {
    const times = { first: 50, later: 10, peer: 100 };
    expect(epochRatio(times, 1)).toBe(2);
    expect(epochRatio(times, 6)).toBe(6);
    expect(epochRatio(times, 1e9)).toBeCloseTo(10, 6);
  });
});
