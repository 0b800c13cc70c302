import { beforeAll, describe, expect, it } from "vitest";
import { type FlowRunConfig, parseConfig, type SamplingSchemeConfig } from "../../lib/config/index.js";
import { MovingMnist } from "../../lib/data/index.js";
import { createFlowModel } from "../../lib/models/index.js";
import {
  extendVideo,
  generateLong,
  planAutoregressive,
  planScheme,
  TextToVideo,
  Video,
} from "../../lib/pipelines/index.js";
import { encodeObserved, legalOverlaps } from "../../lib/pipelines/observed.js";
import { defaultOverlap } from "../../lib/pipelines/schemes.js";
import { device, noGrad, scope } from "../../lib/tensor/index.js";
import { testFolder, tinyFlowYaml } from "../support/tiny.js";
import { trainTiny } from "../support/tiny-models.js";

const folder = testFolder();
let pipeline: TextToVideo;
// Clips of 5 frames, 16 x 16, whose VAE makes 3 latent frames of them.
beforeAll(async () => {
  pipeline = await TextToVideo.load(await trainTiny(folder));
  return () => pipeline.dispose();
});

function source(frames: number, count = 1, height = 16): Video {
  const data = new MovingMnist({
    seed: 4,
    frames,
    height,
    width: 16,
    digits: 1,
    digitSize: 10,
    minSpeed: 1,
    maxSpeed: 2,
  });
  const clips = Array.from({ length: count }, (_, i) => data.clip(i));
  const videos = clips.map(({ video }) => video);
  return new Video(
    videos,
    frames,
    height,
    16,
    1,
    clips.map(({ prompt }) => prompt),
  );
}

const part = (clip: Uint8Array, from: number, to: number) => Buffer.from(clip.subarray(from * 256, to * 256));
/** A model whose clips have so many frames, the VAE's blocks dividing time by 2 once for each of `halvings`. */
const sized = (frames: number, halvings: number) =>
  ({
    config: {
      sampling: { frames },
      latent_encoder: { encoder_blocks: Array(halvings).fill(["compress_all", 1]), patch_size: 1 },
    },
  }) as unknown as TextToVideo["model"];

describe("overlaps", () => {
  it("are whole latent frames and leave room for new ones", () => {
    expect(legalOverlaps(sized(5, 1))).toEqual([1, 3]);
    expect(legalOverlaps(sized(9, 1))).toEqual([1, 3, 5, 7]);
    expect(legalOverlaps(sized(25, 3))).toEqual([1, 9, 17]);
    expect(legalOverlaps(sized(1, 3))).toEqual([]);
    const pixels = { config: { sampling: { frames: 4 }, latent_encoder: null } } as unknown as TextToVideo["model"];
    expect(legalOverlaps(pixels)).toEqual([1, 2, 3]);
  });

  it("are at least four frames by default, where there are so many", () => {
    expect([sized(9, 1), sized(25, 3), sized(5, 1), sized(9, 0)].map(defaultOverlap)).toEqual([5, 9, 3, 4]);
  });
});

describe("encodeObserved", () => {
  it("gives the first latents of any clip that begins so", async () => {
    const whole = source(5, 2);
    const clips = whole.clips.map((clip) => new Uint8Array(part(clip, 0, 3)));
    const begun = new Video(clips, 3, 16, 16, 1);
    const read = async (video: Video) => {
      const z = scope(() => noGrad(() => encodeObserved(sizedPipeline(video.frames + 2), video, 2, pipeline.device)));
      const values = (await z.read()) as Float32Array;
      z.dispose();
      return { shape: z.shape, values };
    };
    const sizedPipeline = (frames: number) => {
      const { model } = pipeline;
      return { ...model, config: { ...model.config, sampling: { ...model.config.sampling, frames } } };
    };
    const [all, first] = [await read(whole), await read(begun)];
    expect([all.shape, first.shape]).toEqual([
      [2, 3, 2, 2, 8],
      [2, 2, 2, 2, 8],
    ]);
    for (let i = 0; i < first.values.length; i++) {
      const sample = Math.floor(i / 64);
      expect(first.values[i]).toBeCloseTo(all.values[sample * 96 + (i % 64)], 1);
    }
  });
});

describe("extendVideo", () => {
  it("keeps the source and adds new frames that depend on its last ones", async () => {
    const start = source(5, 2);
    const live = async () => {
      await device().synchronize();
      return device().memory().live;
    };
    await pipeline.generate({ prompts: ["1"], steps: 1 });
    const before = await live();
    const steps: string[] = [];
    const options = {
      overlap: 3,
      rounds: 2,
      steps: 3,
      seed: 2,
      onStep: (d: number, n: number) => steps.push(`${d}/${n}`),
    };
    const longer = await extendVideo(pipeline, start, options);
    expect(await live()).toBe(before);
    expect(longer).toMatchObject({ frames: 5 + 2 * 2, height: 16, width: 16, channels: 1, prompts: start.prompts });
    expect(steps).toEqual(["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]);
    for (const [i, clip] of longer.clips.entries()) {
      expect(clip).toHaveLength(9 * 256);
      expect(part(clip, 0, 5)).toEqual(Buffer.from(start.clips[i]));
    }
    // What came before the overlap does not matter, the overlap does.
    const other = start.clips.map((clip) => clip.slice());
    for (const clip of other) clip.fill(255, 0, 2 * 256);
    const blind = await extendVideo(pipeline, new Video(other, 5, 16, 16, 1, start.prompts), { ...options, rounds: 1 });
    for (const [i, clip] of blind.clips.entries()) expect(part(clip, 5, 7)).toEqual(part(longer.clips[i], 5, 7));
    for (const clip of other) clip.fill(255, 2 * 256);
    const changed = await extendVideo(pipeline, new Video(other, 5, 16, 16, 1, start.prompts), {
      ...options,
      rounds: 1,
    });
    expect(part(changed.clips[0], 5, 7)).not.toEqual(part(longer.clips[0], 5, 7));
    const first = await extendVideo(pipeline, start, { ...options, rounds: 1 });
    for (const [i, clip] of first.clips.entries()) expect(Buffer.from(clip)).toEqual(part(longer.clips[i], 0, 7));
  });

  it("begins its windows with what it was given, as far as the VAE can tell", async () => {
    const start = source(3, 1);
    const observed = await pipeline.generate({ prompts: ["1"], steps: 5, seed: 1, observed: start });
    const free = await pipeline.generate({ prompts: ["1"], steps: 5, seed: 1 });
    const distance = (video: Video) =>
      start.clips[0].reduce((sum, value, i) => sum + Math.abs(value - video.clips[0][i]), 0);
    expect(distance(observed)).toBeLessThan(distance(free));
  });

  it("refuses what does not fit", async () => {
    const refused = (video: Video, options: object, message: string) =>
      expect(extendVideo(pipeline, video, options)).rejects.toMatchObject({
        code: "invalid_argument",
        message: expect.stringContaining(message),
      });
    await refused(
      source(5),
      { overlap: 4 },
      "4 frames are no whole number of latent frames; clips of 5 frames can share 1, 3",
    );
    await refused(source(5), { overlap: 5 }, "can share 1, 3");
    await refused(source(2), {}, "the source has 2 frames, fewer than the overlap of 3");
    await refused(source(5), { rounds: 0 }, "rounds must be a positive whole number, got 0");
    await refused(
      source(5, 1, 24),
      {},
      "the model's frames are 16x16 with 1 channels (height x width), got 24x16 with 1",
    );
    await refused(source(5), { prompts: ["1", "2"] }, "a clip for each of the 2 prompts is needed, got 1");
  });
});

describe("on pixels", () => {
  it("frames are the tokens that are held, and come back as they were given", async () => {
    const text = tinyFlowYaml((f) => {
      delete f.diffusion.latent_encoder;
      Object.assign(f.data, { height: 8, width: 8, digit_size: 8 });
      Object.assign(f.diffusion.sampling, { output_height: 8, output_width: 8 });
      const { params } = f.diffusion.score_network;
      Object.assign(params, { input_channels: 1, out_channels: 1, input_number_of_frames: 5, input_spatial_size: 8 });
    });
    const config = parseConfig(text, "pixels.yaml") as FlowRunConfig;
    const model = await createFlowModel(config, device());
    const pixels = new TextToVideo(model, device(), true);
    const clip = Uint8Array.from({ length: 4 * 64 }, (_, i) => (i * 37) % 256);
    const longer = await extendVideo(pixels, new Video([clip], 4, 8, 8, 1, ["1"]), { overlap: 2, steps: 3 });
    expect(longer.frames).toBe(4 + 3);
    const observed = new Video([clip.subarray(2 * 64)], 2, 8, 8, 1);
    const window = await pixels.generate({ prompts: ["1"], observed, steps: 3 });
    expect([...window.clips[0].subarray(0, 2 * 64)]).toEqual([...clip.subarray(2 * 64)]);
    expect(Buffer.from(longer.clips[0].subarray(4 * 64))).toEqual(Buffer.from(window.clips[0].subarray(2 * 64)));
    pixels.dispose();
  });
});

describe("windows", () => {
  const scheme = (change: Partial<SamplingSchemeConfig>) =>
    planScheme(pipeline.model, { video_length: 12, num_observed_frames: 0, max_frames: 5, step_size: 2, ...change });

  it("are planned for any length", () => {
    const { model } = pipeline;
    expect(planAutoregressive(model, 12)).toEqual({ frames: 12, first: 5, overlap: 3, step: 2 });
    expect(planAutoregressive(model, 12, 1)).toEqual({ frames: 12, first: 5, overlap: 1, step: 4 });
    expect(planAutoregressive(model, 2)).toMatchObject({ frames: 2, first: 2 });
    expect(scheme({})).toEqual({ frames: 12, first: 5, overlap: 3, step: 2 });
    expect(scheme({ max_frames: 4, step_size: 1 })).toEqual({ frames: 12, first: 4, overlap: 3, step: 1 });
  });

  it("that the model cannot follow are refused", () => {
    expect(() => planAutoregressive(pipeline.model, 6, 2)).toThrow("clips of 5 frames can share 1, 3");
    expect(() => scheme({ num_observed_frames: 3 })).toThrow("extend continues given ones");
    expect(() => scheme({ max_frames: 6 })).toThrow("max_frames 6: the model's clips have 5 frames");
    expect(() => scheme({ step_size: 3 })).toThrow("max_frames 5 - step_size 3 = 2 observed frames");
  });

  it("give as many frames as planned, each window growing out of the one before", async () => {
    const options = { prompts: ["1", "two"], steps: 2, seed: 7 };
    const long = await generateLong(pipeline, planAutoregressive(pipeline.model, 8), options);
    expect(long).toMatchObject({ frames: 8, prompts: ["1", "two"] });
    const alone = await pipeline.generate(options);
    for (const [i, clip] of long.clips.entries()) {
      expect(clip).toHaveLength(8 * 256);
      expect(part(clip, 0, 5)).toEqual(Buffer.from(alone.clips[i]));
    }
    const short = await generateLong(pipeline, planAutoregressive(pipeline.model, 2), options);
    expect(short.clips.map((clip) => Buffer.from(clip))).toEqual(alone.clips.map((clip) => part(clip, 0, 2)));
  });
});
