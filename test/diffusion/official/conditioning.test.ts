import { describe, expect, it } from "vitest";
import { Conditioning, flowStep, mixTokens, stirGiven, videoLatents } from "../../../lib/diffusion/official/index.js";
import { full, normal } from "../../../lib/ops/index.js";
import { device, type Shape, type Tensor } from "../../../lib/tensor/index.js";

const cpu = device("cpu");
const values = async (x: Tensor) => Array.from(await x.read());
const filled = (shape: Shape, value: number) => full(shape, value, { device: cpu });
const noise =
  (value = 9) =>
  (shape: Shape) =>
    filled(shape, value);
/** Two samples of four latent frames of one token with one channel. */
const start = () => filled([2, 4, 1, 1, 1], 0);

describe("Conditioning", () => {
  it("leaves a start without media as it is", async () => {
    const state = new Conditioning(start(), 8).finish();
    expect(state.strengths).toBe(null);
    expect(state.tokens.shape).toEqual([2, 4, 1]);
    expect(state.groups).toEqual([{ grid: [4, 1, 1], frameNumber: 0 }]);
  });

  it("mixes media at the beginning into the start of every sample", async () => {
    const conditioning = new Conditioning(start(), 8);
    conditioning.add({ latents: filled([1, 2, 1, 1, 1], 4), frameNumber: 0, strength: 0.5 }, noise());
    const state = conditioning.finish();
    expect(await values(state.tokens)).toEqual([2, 2, 0, 0, 2, 2, 0, 0]);
    expect(Array.from(state.strengths ?? [])).toEqual([0.5, 0.5, 0, 0]);
  });

  it("puts an image further on in front of the tokens, with noise for what its strength leaves", async () => {
    const conditioning = new Conditioning(start(), 8);
    conditioning.add({ latents: filled([1, 1, 1, 1, 1], 4), frameNumber: 11, strength: 0.75 }, noise(8));
    const state = conditioning.finish();
    expect(await values(state.tokens)).toEqual([5, 0, 0, 0, 0, 5, 0, 0, 0, 0]);
    expect(Array.from(state.strengths ?? [])).toEqual([0.75, 0, 0, 0, 0]);
    expect(state.groups).toEqual([
      { grid: [1, 1, 1], frameNumber: 11 },
      { grid: [4, 1, 1], frameNumber: 0 },
    ]);
    expect(await values(videoLatents(state.tokens, state.groups))).toEqual(Array(8).fill(0));
  });

  it("divides a sequence further on into tokens of its own and frames of the start", async () => {
    const conditioning = new Conditioning(start(), 8);
    conditioning.add({ latents: filled([2, 3, 1, 1, 1], 4), frameNumber: 8, strength: 1 }, noise());
    const state = conditioning.finish();
    expect(await values(state.tokens)).toEqual([4, 4, 0, 0, 0, 4, 4, 4, 0, 0, 0, 4]);
    expect(Array.from(state.strengths ?? [])).toEqual([1, 1, 0, 0, 0, 1]);
    expect(state.groups[0]).toEqual({ grid: [2, 1, 1], frameNumber: 8 });
  });

  it("lets items act one after the other", async () => {
    const conditioning = new Conditioning(start(), 8);
    conditioning.add({ latents: filled([1, 1, 1, 1, 1], 4), frameNumber: 0, strength: 1 }, noise());
    conditioning.add({ latents: filled([1, 1, 1, 1, 1], 2), frameNumber: 0, strength: 0.5 }, noise());
    const state = conditioning.finish();
    expect(await values(state.tokens)).toEqual([3, 0, 0, 0, 3, 0, 0, 0]);
    expect(Array.from(state.strengths ?? [])).toEqual([0.5, 0, 0, 0]);
  });

  it.each([
    [[1, 5, 1, 1, 1], 0, "do not fit"],
    [[1, 1, 1, 1, 1], 25, "do not fit"],
    [[1, 1, 2, 1, 1], 0, "do not fit"],
    [[3, 1, 1, 1, 1], 0, "do not fit"],
    [[1, 2, 1, 1, 1], 4, "must begin at a multiple of 8 frames, got frame 4"],
  ])("refuses latents %j at frame %i", (shape, frameNumber, message) => {
    const conditioning = new Conditioning(start(), 8);
    const add = () => conditioning.add({ latents: filled(shape, 0), frameNumber, strength: 1 }, noise());
    expect(add).toThrow(message);
  });
});

it("stirs what is given at full strength, from where it began, and nothing else", async () => {
  const stirred = stirGiven(filled([1, 3, 1], 7), {
    start: filled([1, 3, 1], 1),
    strengths: Float32Array.of(1, 0.9, 0),
    noise: filled([1, 3, 1], 2),
    scale: 0.5,
    time: 0.5,
  });
  expect(await values(stirred)).toEqual([1.25, 7, 7]);
});

describe("flowStep", () => {
  const shape = [2, 3, 4];
  const draw = (purpose: number) => normal(shape, { seed: 1, step: 0, purpose }, { device: cpu });
  const timesteps = [1, 0.6, 0.2];

  it("makes of one time for all what it makes of that time for each token", async () => {
    for (const noise of [null, draw(2)]) {
      const whole = await values(flowStep(draw(0), draw(1), { timesteps, time: 0.6, noise }));
      const each = await values(flowStep(draw(0), draw(1), { timesteps, time: [0.6, 0.6, 0.6], noise }));
      for (const [i, value] of whole.entries()) expect(each[i]).toBeCloseTo(value, 5);
    }
  });

  it.each([[null], [draw(2)]])("leaves tokens alone that do not take part", async (noise) => {
    const active = [true, false, true];
    const after = await values(flowStep(draw(0), draw(1), { timesteps, time: [0.6, 0.3, 0.6], noise, active }));
    const before = await values(draw(0));
    for (const [i, value] of after.entries()) {
      const stays = Math.floor(i / 4) % 3 === 1;
      expect(value === before[i]).toBe(stays);
    }
  });

  it("refuses times that fit neither tokens nor rows", () => {
    expect(() => mixTokens(draw(0), draw(1), null, [1, 2])).toThrow(
      "a number for each of 3 tokens, or of 6 rows, got 2",
    );
  });
});
