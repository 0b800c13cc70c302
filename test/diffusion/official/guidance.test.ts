import { describe, expect, it } from "vitest";
import {
  branchCount,
  type GuidanceOptions,
  guide,
  planGuidance,
  usesNegative,
  usesPerturbed,
} from "../../../lib/diffusion/official/index.js";
import { normal } from "../../../lib/ops/index.js";
import { device, Tensor } from "../../../lib/tensor/index.js";

const cpu = device("cpu");
const plan = (options: GuidanceOptions, timesteps: readonly number[] = [1, 0.5]) => planGuidance(timesteps, options, 4);
const off = { guidanceScale: 1, stgScale: 0, rescalingScale: 1 };

describe("planGuidance", () => {
  it("holds one number for all steps, and lists from their times on", () => {
    const plans = plan(
      {
        guidanceScale: [1, 4],
        stgScale: [0, 2],
        rescalingScale: [1, 0.5],
        skipBlockList: [[0], [1, 2, 2]],
        guidanceTimesteps: [1, 0.6],
      },
      [1, 0.9, 0.6, 0.1],
    );
    expect(plans.map(({ guidanceScale }) => guidanceScale)).toEqual([1, 4, 4, 4]);
    expect(plans.map(({ skipBlocks }) => skipBlocks)).toEqual([[], [1, 2], [1, 2], [1, 2]]);
    expect(plans.map(({ rescalingScale }) => rescalingScale)).toEqual([1, 0.5, 0.5, 0.5]);
    expect(plans.map(branchCount)).toEqual([1, 3, 3, 3]);
    expect(plan({ ...off, guidanceScale: [3] })[1].guidanceScale).toBe(3);
  });

  it("asks for no branch that changes nothing", () => {
    expect(plan(off).map(branchCount)).toEqual([1, 1]);
    const [stg] = plan({ ...off, stgScale: 1, skipBlockList: [] });
    expect([usesNegative(stg), usesPerturbed(stg)]).toEqual([false, false]);
    // Blocks that no step perturbs may be another model's.
    expect(plan({ ...off, skipBlockList: [42] }).map(usesPerturbed)).toEqual([false, false]);
  });

  it.each([
    [{ guidanceScale: Number.NaN }, "guidanceScale must be a number or a list of numbers, got null"],
    [{ guidanceScale: [1, 2] }, "guidanceScale is a list of 2 entries: give guidanceTimesteps"],
    [{ stgScale: [1, 2], guidanceTimesteps: [1, 0.5, 0.2] }, "stgScale has 2 entries, guidanceTimesteps has 3"],
    [{ guidanceTimesteps: [0.5, 1] }, "guidanceTimesteps must be a list of falling numbers, got [0.5,1]"],
    [{ stgScale: 1, skipBlockList: [4] }, "skipBlockList names [4], the transformer's blocks are 0 to 3"],
    [{ stgScale: 1, skipBlockList: [-1] }, "names [-1]"],
    [{ skipBlockList: [1, [2]] }, "skipBlockList must be a list of block numbers, or a list of such lists"],
  ])("refuses %j", (options, message) => {
    expect(() => plan({ ...off, ...(options as GuidanceOptions) })).toThrow(message);
  });
});

describe("guide", () => {
  const shape = [2, 3, 5];
  const draws = (branches: number) =>
    normal([branches * shape[0], ...shape.slice(1)], { seed: 3, step: 0, purpose: 0 }, { device: cpu });

  /** The same in plain numbers, sample by sample. */
  async function expected(answers: Tensor, options: GuidanceOptions & { g: number; s: number; r: number }) {
    const values = Array.from(await answers.read());
    const size = 15;
    const branches = answers.shape[0] / 2;
    const of = (branch: number, b: number) => values.slice((branch * 2 + b) * size, (branch * 2 + b + 1) * size);
    const std = (x: number[]) => {
      const mean = x.reduce((a, c) => a + c, 0) / size;
      return Math.sqrt(x.reduce((a, c) => a + (c - mean) ** 2, 0) / (size - 1));
    };
    return [0, 1].flatMap((b) => {
      const { g, s, r, cfgStarRescale } = options;
      let [u, c] = [of(0, b), of(g > 1 ? 1 : 0, b)];
      const p = of(branches - 1, b);
      if (cfgStarRescale) {
        const dot = u.reduce((a, x, i) => a + x * c[i], 0);
        const norm = u.reduce((a, x) => a + x * x, 0);
        u = u.map((x) => (x * dot) / norm);
      }
      const guided = c.map((x, i) => (g > 1 ? u[i] + g * (x - u[i]) : x) + s * (x - p[i]));
      const factor = r * (std(c) / std(guided)) + (1 - r);
      return guided.map((x) => (s > 0 && r !== 1 ? x * factor : x));
    });
  }

  it.each([
    [{ g: 3, s: 0, r: 1 }],
    [{ g: 3, s: 0, r: 1, cfgStarRescale: true }],
    [{ g: 1, s: 2, r: 1 }],
    [{ g: 1, s: 2, r: 0.7 }],
    [{ g: 4, s: 1, r: 0.5, cfgStarRescale: true }],
  ])("steers as the formula says: %j", async (options) => {
    const { g, s, r, ...more } = options;
    const [guidance] = plan({ guidanceScale: g, stgScale: s, rescalingScale: r, skipBlockList: [1], ...more });
    const answers = draws(branchCount(guidance));
    const found = Array.from(await guide(answers, guidance).read());
    for (const [i, value] of (await expected(answers, options)).entries()) expect(found[i]).toBeCloseTo(value, 4);
  });

  it("leaves a single branch as it is", async () => {
    const [guidance] = plan(off);
    const answers = Tensor.from([1, 2, 3, 4], [2, 1, 2], { device: cpu });
    expect(Array.from(await guide(answers, guidance).read())).toEqual([1, 2, 3, 4]);
  });
});
