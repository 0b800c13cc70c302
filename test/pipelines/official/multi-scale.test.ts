import { beforeAll, describe, expect, it } from "vitest";
import { device, LtxMultiScalePipeline, type MultiScaleOptions } from "../../../lib/index.js";
import { testFolder } from "../../support/tiny.js";
import { TINY_TIMES, tinyCheckpoint, tinyTextEncoder, tinyUpscaler } from "../../support/tiny-official.js";

const folder = testFolder();
let pipeline: LtxMultiScalePipeline;
beforeAll(async () => {
  const textEncoder = await tinyTextEncoder(folder);
  const spatialUpscaler = tinyUpscaler;
  pipeline = await LtxMultiScalePipeline.load({
    checkpoint: tinyCheckpoint,
    textEncoder,
    spatialUpscaler,
    precision: "float32",
  });
});

const options: Omit<MultiScaleOptions, "outputType"> = {
  prompt: "three and 7",
  height: 50,
  width: 100,
  numFrames: 9,
  frameRate: 24,
  downscaleFactor: 2 / 3,
  guidanceScale: 1,
  stgScale: 0,
  firstPass: { timesteps: TINY_TIMES },
  secondPass: { timesteps: TINY_TIMES.slice(1), toneMapCompressionRatio: 0.6 },
};
const live = async () => {
  await device().synchronize();
  return device().memory().live;
};

describe("LtxMultiScalePipeline", () => {
  it("draws twice and brings the result to any size", async () => {
    await pipeline.generate(options);
    const before = await live();
    const seen: [number, number, number][] = [];
    const onStep = ({ pass, step, tokens }: { pass: number; step: number; tokens: { shape: readonly number[] } }) =>
      void seen.push([pass, step, tokens.shape[1]]);
    const video = await pipeline.generate({ ...options, onStep });
    expect(video).toMatchObject({ frames: 9, height: 50, width: 100, channels: 3, fps: 24 });
    // 32 x 64 pixels, then 64 x 128.
    expect(seen).toEqual([...[1, 2, 3].map((step) => [1, step, 4]), ...[1, 2].map((step) => [2, step, 16])]);
    expect(await live()).toBe(before);
  });

  it("gives numbers and latents too", async () => {
    const pixels = await pipeline.generate({ ...options, outputType: "tensor" });
    expect(pixels.shape).toEqual([1, 9, 50, 100, 3]);
    const latents = await pipeline.generate({ ...options, outputType: "latent" });
    expect(latents.shape).toEqual([1, 2, 2, 4, 8]);
    for (const tensor of [pixels, latents]) tensor.dispose();
  });

  it("stops in the second pass and frees all", async () => {
    await pipeline.generate(options);
    const before = await live();
    const stop = new AbortController();
    const onStep = ({ pass }: { pass: number }) => void (pass === 2 && stop.abort());
    const stopped = pipeline.generate({ ...options, signal: stop.signal, onStep });
    await expect(stopped).rejects.toMatchObject({ code: "aborted" });
    expect(await live()).toBe(before);
  });

  it.each<[Partial<MultiScaleOptions>, string]>([
    [{ downscaleFactor: 0 }, "downscaleFactor 0: needs a number above 0, at most 1"],
    [{ height: 40 }, "height 40: with downscaleFactor 0.66"],
    [{ secondPass: { timesteps: TINY_TIMES } }, "the first pass's latents would be replaced by noise"],
    [{ numFrames: 8 }, "numFrames 8: needs 8k+1"],
  ])("refuses %j", async (more, message) => {
    await expect(pipeline.generate({ ...options, ...more } as MultiScaleOptions)).rejects.toThrow(message);
  });
});
