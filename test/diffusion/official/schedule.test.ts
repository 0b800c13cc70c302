import { describe, expect, it } from "vitest";
import { parseOfficialScheduler } from "../../../lib/config/official/scheduler.js";
import { entryAt, inferenceTimesteps, nextTime, takesPart } from "../../../lib/diffusion/official/index.js";

const parse = (value: object = {}) => parseOfficialScheduler(value, "file");
const sd3 = parse({ shifting: "SD3", target_shift_terminal: 0.1 });

describe("inferenceTimesteps", () => {
  it("spreads evenly, with at most as many steps as the model was trained on", () => {
    expect(inferenceTimesteps(parse(), { numInferenceSteps: 4, tokens: 1 })).toEqual([1, 0.75, 0.5, 0.25]);
    expect(inferenceTimesteps(parse({ num_train_timesteps: 2 }), { numInferenceSteps: 4, tokens: 1 })).toEqual([
      1, 0.5,
    ]);
  });

  it("goes a fortieth of the way in the first half of linear-quadratic steps, and never back", () => {
    const times = inferenceTimesteps(parse({ sampler: "LinearQuadratic" }), { numInferenceSteps: 40, tokens: 1 });
    expect(times[20]).toBeCloseTo(0.975, 6);
    expect(times[10]).toBeCloseTo(0.9875, 6);
    expect(times.every((t, i) => t > 0 && (i === 0 || t < times[i - 1]))).toBe(true);
    expect(inferenceTimesteps(parse({ sampler: "LinearQuadratic" }), { numInferenceSteps: 1, tokens: 1 })).toEqual([1]);
  });

  it("ends at the terminal time, and moves towards the noise the more tokens there are", () => {
    const [few, many] = [1024, 4096].map((tokens) => inferenceTimesteps(sd3, { numInferenceSteps: 8, tokens }));
    for (const times of [few, many]) expect(times[7]).toBeCloseTo(0.1, 6);
    expect(few.slice(1, 7).every((t, i) => t < many[i + 1])).toBe(true);
    // One step has nothing to stretch.
    expect(inferenceTimesteps(sd3, { numInferenceSteps: 1, tokens: 1024 })).toEqual([1]);
  });

  it("keeps the times of very many tokens apart, which the official float32 does not", () => {
    const many = { numInferenceSteps: 30, tokens: 53504 };
    expect(new Set(inferenceTimesteps(sd3, many)).size).toBe(30);
    expect(new Set(inferenceTimesteps(sd3, { ...many, float32: true })).size).toBe(2);
  });

  it("rounds the first time as officially, by which entries of guidance lists are chosen", () => {
    // What the official code computed for a video of 4 tokens (see golden-more's two-pass case).
    const times = inferenceTimesteps(sd3, { numInferenceSteps: 6, skipFinalInferenceSteps: 2, tokens: 4 });
    expect(times[0]).toBe(0.9999999403953552);
    expect(entryAt([1, 0.99, 0.8], times[0])).toBe(1);
    const official = [0.8773648738861084, 0.7334963083267212, 0.562357485294342];
    for (const [i, t] of official.entries()) expect(Math.abs(times[i + 1] - t)).toBeLessThan(2e-7);
  });

  it("leaves steps out at both ends, of given times too", () => {
    const skips = { skipInitialInferenceSteps: 1, skipFinalInferenceSteps: 1, tokens: 1 };
    expect(inferenceTimesteps(parse(), { numInferenceSteps: 4, ...skips })).toEqual([0.75, 0.5]);
    expect(inferenceTimesteps(parse(), { timesteps: [1, 0.5, 0.25], ...skips })).toEqual([0.5]);
  });

  it.each([
    [{ numInferenceSteps: 0 }, "numInferenceSteps must be a whole number from 1, got 0"],
    [{ numInferenceSteps: 1.5 }, "got 1.5"],
    [{ numInferenceSteps: 3, skipInitialInferenceSteps: 3 }, "leave one of the 3 steps, got 3 and 0"],
    [{ numInferenceSteps: 3, skipFinalInferenceSteps: -1 }, "got 0 and -1"],
    [{ timesteps: [] }, "falling numbers in (0, 1], got []"],
    [{ timesteps: [0.5, 0.5] }, "got [0.5,0.5]"],
    [{ timesteps: [1.5] }, "got [1.5]"],
    [{ timesteps: [0.5, 0] }, "got [0.5,0]"],
  ])("refuses %j", (options, message) => {
    expect(() => inferenceTimesteps(parse(), { tokens: 1, ...options })).toThrow(message);
  });
});

describe("parseOfficialScheduler", () => {
  it("reads the schedulers of diffusers folders", () => {
    const dynamic = { _class_name: "FlowMatchEulerDiscreteScheduler", use_dynamic_shifting: true, shift_terminal: 0.1 };
    expect(parse(dynamic)).toEqual(sd3);
    expect(parse({ ...dynamic, use_dynamic_shifting: false })).toMatchObject({
      sampler: "LinearQuadratic",
      shifting: null,
    });
  });

  it.each([
    [{ sampler: "Cosine" }, 'file (scheduler): sampler: found "Cosine" (text), expected one of'],
    [{ shifting: "SD4" }, "did you mean SD3?"],
    [{ sampler: "Constant" }, "shift: the sampler Constant needs a number here"],
    [{ target_shift_terminal: 1 }, "target_shift_terminal: found 1, expected less than 1"],
    [{ _class_name: "FlowMatchEulerDiscreteScheduler", shift: 3 }, "shift: found 3, only 1 is supported"],
  ])("refuses %j", (value, message) => {
    expect(() => parse(value)).toThrow(message);
  });
});

it("finds the time that a step leads to, and who takes part in it", () => {
  const times = [1, 0.7, 0.2];
  expect([1, 0.9, 0.7, 0.2, 0.1].map((t) => nextTime(times, t))).toEqual([0.7, 0.7, 0.2, 0, 0]);
  expect([0.3, 0.7, 1].map((limit) => takesPart(0.7, limit))).toEqual([false, true, true]);
});

it("maps times to the entries of lists", () => {
  expect([1, 0.95, 0.93, 0.5, 0.1].map((t) => entryAt([1, 0.93, 0.4], t))).toEqual([0, 1, 1, 2, 2]);
});
