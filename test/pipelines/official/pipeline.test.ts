import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import type { PixelClip } from "../../../lib/formats/media/clip.js";
import { readSafetensors, writeSafetensors } from "../../../lib/formats/safetensors.js";
import {
  device,
  type LoadProgress,
  LtxError,
  type LtxGenerateOptions,
  type LtxVideoOptions,
  LtxVideoPipeline,
  type NoiseSource,
  openOfficial,
  ops,
  Tensor,
  type Video,
} from "../../../lib/index.js";
import { Parameter } from "../../../lib/nn/index.js";
import { writeLora } from "../../support/official.js";
import { bare, float, floats, scaledWeight } from "../../support/scaled.js";
import { testFolder } from "../../support/tiny.js";
import { TINY_TIMES, tinyCheckpoint, tinyTextEncoder } from "../../support/tiny-official.js";
import { writeTinyT5 } from "../../support/tiny-t5.js";

const folder = testFolder();
let textEncoder: string;
let pipeline: LtxVideoPipeline;
beforeAll(async () => {
  textEncoder = await tinyTextEncoder(folder);
  pipeline = await LtxVideoPipeline.load({ checkpoint: tinyCheckpoint, textEncoder, precision: "float32" });
});

const live = async () => {
  await device().synchronize();
  return device().memory().live;
};
const bytes = (video: Video) => video.clips.map((clip) => Buffer.from(clip).toString("base64"));
const size = { height: 32, width: 64, numFrames: 9, frameRate: 25 };
const steps = { timesteps: TINY_TIMES, guidanceScale: 3, stgScale: 1, rescalingScale: 0.7, skipBlockList: [1] };
const options: LtxVideoOptions = { prompt: "three and 7", ...size, ...steps, seed: 1 };

/** A clip that changes from frame to frame. */
function clip(frames: number, height = 20, width = 30): PixelClip {
  const length = frames * height * width * 3;
  const data = Float32Array.from({ length }, (_, i) => Math.sin(i * 0.37 + Math.floor((i * frames) / length)));
  return { data, frames, height, width, channels: 3 };
}

/** Gives every sample of a batch the same noise. */
function alike(seed: number): NoiseSource {
  const counts = new Map<string, number>();
  return {
    draw(what, [batch, ...rest]) {
      const step = counts.get(what) ?? 0;
      counts.set(what, step + 1);
      const one = ops.normal([1, rest.reduce((a, b) => a * b, 1)], { seed, step, purpose: 7 });
      let all = one;
      for (let i = 1; i < batch; i++) all = ops.concatLast(all, one);
      return ops.reshape(all, [batch, ...rest]);
    },
    planes: () => ({ seed, step: 0, purpose: 8 }),
  };
}

async function latents(
  more: Partial<LtxVideoOptions & Pick<LtxGenerateOptions, "onStep">>,
  from = pipeline,
): Promise<number[]> {
  const result = await from.generate({ ...options, ...more, outputType: "latent" });
  const values = Array.from(await result.read());
  result.dispose();
  return values;
}

function expectClose(found: readonly number[], expected: readonly number[], digits = 4): void {
  expect(found).toHaveLength(expected.length);
  for (const [i, value] of expected.entries()) expect(found[i]).toBeCloseTo(value, digits);
}

describe("generate", () => {
  it("draws a video of the size, rate and prompt that were asked for, the same for the same seed", async () => {
    const video = await pipeline.generate(options);
    expect(video).toMatchObject({ frames: 9, height: 32, width: 64, channels: 3, prompts: ["three and 7"], fps: 25 });
    expect(bytes(await pipeline.generate(options))).toEqual(bytes(video));
    expect(bytes(await pipeline.generate({ ...options, seed: 2 }))).not.toEqual(bytes(video));
    expect(bytes(await pipeline.generate({ ...options, prompt: "one" }))).not.toEqual(bytes(video));
  });

  it("tells of each step, and of its tokens while it lasts", async () => {
    const heard: [number, number, number][] = [];
    await pipeline.generate({
      ...options,
      onStep: async ({ step, steps, timestep, tokens, pass }) => {
        heard.push([step, steps, timestep]);
        expect([tokens.shape, pass]).toEqual([[1, 4, 8], 1]);
        expect((await tokens.read()).every(Number.isFinite)).toBe(true);
      },
    });
    expect(heard).toEqual(TINY_TIMES.map((t, i) => [i + 1, 3, Math.fround(t)]));
  });

  it("gives latents that decode to the video, and pixels as numbers", async () => {
    const plain = { ...options, decodeNoiseScale: 0 };
    const pixels = await pipeline.generate({ ...plain, outputType: "tensor" });
    expect(pixels.shape).toEqual([1, 9, 32, 64, 3]);
    const values = Array.from(await pixels.read());
    expect(values.every((v) => v >= 0 && v <= 1)).toBe(true);
    const [own] = (await pipeline.generate(plain)).clips;
    for (const [i, v] of values.entries()) expect(own[i]).toBe(Math.trunc(v * 255));
    pixels.dispose();
  });

  it.each([["attention_values"], ["attention_skip"], ["residual"], ["transformer_block"]] as const)(
    "perturbs each sample of a batch by %s as it would alone",
    async (stgMode) => {
      const more = { stgMode, noise: alike(3) };
      const one = await latents({ ...more, noise: alike(3) });
      const two = await latents({ ...more, noise: alike(3), prompt: "one" });
      const both = await latents({ ...more, prompt: ["three and 7", "one"] });
      expectClose(both, [...one, ...two]);
      const none = await latents({ ...more, noise: alike(3), stgScale: 0 });
      expect(one.some((v, i) => Math.abs(v - none[i]) > 1e-3)).toBe(true);
    },
  );

  it("draws several videos of a prompt, and of features as of their texts", async () => {
    const many = await latents({ numImagesPerPrompt: 2 });
    expect(many.slice(0, many.length / 2)).not.toEqual(many.slice(many.length / 2));
    const request = pipeline.request(options);
    const { positive, negative } = await pipeline.features(request);
    const embeds = {
      prompt: undefined,
      promptEmbeds: positive.embeddings,
      promptAttentionMask: positive.mask,
      negativePromptEmbeds: negative?.embeddings,
      negativePromptAttentionMask: negative?.mask,
    };
    expect(await latents({ ...embeds, numImagesPerPrompt: 2 })).toEqual(many);
  });

  it("holds what is given at full strength, and lets the rest follow it", async () => {
    const free = await latents({});
    const held = { conditioningItems: [{ mediaItem: clip(1), mediaFrameNumber: 0 }], imageCondNoiseScale: 0 };
    const still = await latents(held);
    const strong = { ...held, negativePrompt: "nine", guidanceScale: 5 };
    // The first frame's 2 tokens of 8 channels are the encoded image, whatever guides the others.
    expect((await latents(strong)).slice(0, 16)).toEqual(still.slice(0, 16));
    expect(still.slice(16)).not.toEqual(free.slice(16));
    expect(await latents({ ...held, imageCondNoiseScale: 0.15 })).not.toEqual(still);
  });

  it("takes keyframes, sequences and clips for each sample", async () => {
    const seen: number[] = [];
    const onStep = ({ tokens }: { tokens: Tensor }) => void seen.push(tokens.shape[1]);
    const numFrames = 25;
    const conditioningItems = [
      { mediaItem: clip(1), mediaFrameNumber: 0, conditioningStrength: 0.5 },
      { mediaItem: [clip(1), clip(1, 40, 40)], mediaFrameNumber: 11 },
      { mediaItem: clip(17), mediaFrameNumber: 8, conditioningStrength: 0.9 },
    ];
    await latents({ prompt: ["one", "two"], numFrames, conditioningItems, onStep });
    // 4 frames of 2 tokens, beside one of the image and two of the sequence.
    expect(seen).toEqual([14, 14, 14]);
  });

  it("starts from a video, or from its latents", async () => {
    const timesteps = TINY_TIMES.slice(1);
    const mediaItems = clip(9);
    const close = await latents({ timesteps, mediaItems });
    expect(close).not.toEqual(await latents({ timesteps, mediaItems: clip(9, 32, 64) }));
    const start = Tensor.from(close, [1, 2, 1, 2, 8]);
    expect((await latents({ timesteps, latents: start })).every(Number.isFinite)).toBe(true);
    start.dispose();
  });

  it("makes stochastic steps, tone maps and single images", async () => {
    expect(await latents({ stochasticSampling: true })).not.toEqual(await latents({}));
    const mapped = await pipeline.generate({ ...options, toneMapCompressionRatio: 1 });
    expect(bytes(mapped)).not.toEqual(bytes(await pipeline.generate(options)));
    expect(await pipeline.generate({ ...options, numFrames: 1 })).toMatchObject({ frames: 1 });
  });
});

describe("memory", () => {
  it("is what it was after a video, a stop and a failure", async () => {
    await pipeline.generate(options);
    const before = await live();
    await pipeline.generate({ ...options, conditioningItems: [{ mediaItem: clip(1), mediaFrameNumber: 8 }] });
    expect(await live()).toBe(before);
    const stop = new AbortController();
    const stopped = pipeline.generate({ ...options, signal: stop.signal, onStep: () => stop.abort() });
    await expect(stopped).rejects.toMatchObject({ code: "aborted" });
    expect(await live()).toBe(before);
    const failed = pipeline.generate({ ...options, onStep: () => Promise.reject(new Error("mine")) });
    await expect(failed).rejects.toThrow("mine");
    expect(await live()).toBe(before);
  });

  it("belongs to two requests at once, of which one is stopped", async () => {
    const alone = bytes(await pipeline.generate(options));
    const before = await live();
    const stop = new AbortController();
    const onStep = ({ step }: { step: number }) => void (step === 2 && stop.abort());
    const [done, stopped] = await Promise.allSettled([
      pipeline.generate(options),
      pipeline.generate({ ...options, seed: 5, signal: stop.signal, onStep }),
    ]);
    expect(stopped).toMatchObject({ status: "rejected", reason: { code: "aborted" } });
    expect(done.status === "fulfilled" && bytes(done.value)).toEqual(alone);
    expect(await live()).toBe(before);
  });

  it("holds one model at a time where they take turns, for the same video", async () => {
    const expected = bytes(await pipeline.generate(options));
    const before = await live();
    const turns = await LtxVideoPipeline.load({
      checkpoint: tinyCheckpoint,
      textEncoder,
      precision: "float32",
      offload: true,
    });
    expect(await live()).toBe(before);
    const conditioned = { ...options, conditioningItems: [{ mediaItem: clip(1), mediaFrameNumber: 0 }] };
    const [first, , again] = await Promise.all([options, conditioned, options].map((o) => turns.generate(o)));
    expect(bytes(first)).toEqual(expected);
    expect(bytes(again)).toEqual(expected);
    turns.dispose();
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(await live()).toBe(before);
    await expect(turns.generate(options)).rejects.toMatchObject({ code: "disposed" });
  });
});

describe("what is refused", () => {
  const image = (more: object = {}) => ({ conditioningItems: [{ mediaItem: clip(1), mediaFrameNumber: 0, ...more }] });

  it.each<[string, Partial<LtxGenerateOptions>]>([
    ["height 700: needs a multiple of 32, nearest 672 or 704", { height: 700 }],
    ["width 33: needs a multiple of 32, nearest 32 or 64", { width: 33 }],
    ["numFrames 24: needs 8k+1, nearest 17 or 25", { numFrames: 24 }],
    ["frameRate 0: needs a number above 0", { frameRate: 0 }],
    ["prompt must be a text or a list of them, or give promptEmbeds; got undefined", { prompt: undefined }],
    ["or one for each of 2 prompts", { prompt: ["a", "b"], negativePrompt: ["c"] }],
    ["1 prompts with numImagesPerPrompt 100000000: at most 4096 videos", { numImagesPerPrompt: 1e8 }],
    ["5000 prompts with numImagesPerPrompt 1: at most 4096", { prompt: Array(5000).fill("one") }],
    ["numImagesPerPrompt 0: needs a whole number from 1", { numImagesPerPrompt: 0 }],
    ["seed -1: needs a whole number from 0", { seed: -1 }],
    ["distilled for the times 1, 0.9937", { timesteps: [1, 0.5] }],
    ["is none of them: give timesteps from these", { timesteps: undefined, numInferenceSteps: 4 }],
    ['stgMode "values": needs one of attention_values', { stgMode: "values" as never }],
    ["skipBlockList names [2], the transformer's blocks are 0 to 1", { skipBlockList: [2] }],
    ["decodeTimestep has 2 entries, the batch 1", { decodeTimestep: [0, 0] }],
    ["decodeTimestep 2: needs a number from 0 to 1", { decodeTimestep: 2 }],
    ["toneMapCompressionRatio -1: needs a number from 0 to 1", { toneMapCompressionRatio: -1 }],
    ["imageCondNoiseScale -1: needs a number from 0", { imageCondNoiseScale: -1 }],
    ['outputType "gif": needs "video", "tensor" or "latent"', { outputType: "gif" as never }],
    ["mediaItems would be replaced by noise, as the first step begins at time 1", { mediaItems: clip(9) }],
    ["mediaItems has 1 frames, needs 9 frames", { mediaItems: clip(1), timesteps: [0.725] }],
    ["mediaFrameNumber 9: an image must begin at 0 to 8, the video has 9 frames", image({ mediaFrameNumber: 9 })],
    ["a sequence of 17 frames is longer than the video, which has 9", image({ mediaItem: clip(17) })],
    ["conditioningItems[0].mediaItem has 8 frames, needs 1 or 8k+1 frames", image({ mediaItem: clip(8) })],
    ["a multiple of 8, nearest 0 or 8", { numFrames: 25, ...image({ mediaItem: clip(9), mediaFrameNumber: 4 }) }],
    ["conditioningItems[0].conditioningStrength 1.5: needs a number from 0 to 1", image({ conditioningStrength: 1.5 })],
    ["must be one clip, or one for each of 1 samples, got 2", image({ mediaItem: [clip(1), clip(1)] })],
    ["must be a clip of frames x height x width x 3 values", image({ mediaItem: { ...clip(1), channels: 4 } })],
    ["mediaX and mediaY are not supported", image({ mediaX: 3 })],
  ])("%s", async (message, more) => {
    await expect(pipeline.generate({ ...options, ...more } as LtxGenerateOptions)).rejects.toMatchObject({
      code: "invalid_argument",
      message: expect.stringContaining(message),
    });
  });

  it("features of another shape", async () => {
    const wrong = Tensor.from(new Float32Array(24), [1, 2, 12]);
    const request = { ...options, prompt: undefined, promptEmbeds: wrong };
    await expect(pipeline.generate(request)).rejects.toThrow("promptEmbeds must be f32 [batch, tokens, 24], got");
    wrong.dispose();
  });

  it.each([
    [{ checkpoint: join(folder, "none.safetensors") }, "checkpoint", "does not exist"],
    [{ precision: "float8_e4m3fn" as const }, "unavailable", "bfloat16"],
    [{ precision: "float16" as never }, "config", 'unknown precision "float16"'],
    [{ sampler: "euler" as never }, "invalid_argument", 'sampler "euler": needs from_checkpoint, uniform or'],
    [{ textEncoder: join(folder, "nowhere") }, "unavailable", "was not found"],
  ])("loading with %j", async (more, code, message) => {
    const before = await live();
    const loaded = LtxVideoPipeline.load({ checkpoint: tinyCheckpoint, ...more });
    await expect(loaded).rejects.toMatchObject({ code, message: expect.stringContaining(message) });
    expect(await live()).toBe(before);
  });

  it("a text encoder of another width, and a LoRA for another model", async () => {
    const other = await writeTinyT5(join(folder, "other-t5"), { width: 16 });
    const loaded = LtxVideoPipeline.load({ checkpoint: tinyCheckpoint, textEncoder: other });
    await expect(loaded).rejects.toThrow("gives 16 features, the transformer takes 24");
    const lora = await writeLora(join(folder, "wide.safetensors"), { dim: 64 });
    const merged = LtxVideoPipeline.load({ checkpoint: tinyCheckpoint, loras: [lora] });
    await expect(merged).rejects.toMatchObject({
      code: "checkpoint",
      message: expect.stringContaining("another model"),
    });
  });
});

it("draws with scaled fp8 weights what it draws with the numbers that they stand for", async () => {
  const file = await readSafetensors(tinyCheckpoint);
  const scaled = (name: string) =>
    /transformer_blocks\.\d\.(attn1|attn2|ff)\..*\.weight$/.test(name) && !/norm/.test(name);
  const tensors = [...file.tensors].map(([name, { dtype, shape }], i) => {
    const plain = { name, dtype, shape, data: () => file.read(name) };
    if (!scaled(name)) return { codes: [plain], values: plain };
    const { weight, scales, values } = scaledWeight(name, shape, i, i % 3 === 0);
    const scale = float(name.replace(/weight$/, "scale_weight"), scales, scales.length > 1 ? [shape[0]] : []);
    return { codes: [weight, scale], values: { name, dtype: "F32" as const, shape, data: floats([...values]) } };
  });
  const [codes, values] = ["codes", "values"].map((name) => join(folder, `${name}.safetensors`));
  const marker = bare("model.diffusion_model.scaled_fp8", "F8_E4M3", [0]);
  await writeSafetensors(codes, [...tensors.flatMap((tensor) => tensor.codes), marker], file.metadata);
  await writeSafetensors(
    values,
    tensors.map((tensor) => tensor.values),
    file.metadata,
  );
  await file.close();
  expect(tensors.filter((tensor) => tensor.codes.length > 1).length).toBeGreaterThan(10);
  const drawn: number[][] = [];
  for (const checkpoint of [codes, values]) {
    const own = await LtxVideoPipeline.load({ checkpoint, textEncoder, precision: "float32" });
    drawn.push(await latents({}, own));
    own.dispose();
  }
  expect(drawn[0].every(Number.isFinite)).toBe(true);
  expect(drawn[0]).toEqual(drawn[1]);
  expect(drawn[0]).not.toEqual(await latents({}));
});

it("tells what of a LoRA is left out or taken for granted", async () => {
  const path = await writeLora(join(folder, "adapter_model.safetensors"), { prefix: "base_model.model." });
  const notices: string[] = [];
  const onNotice = (notice: string) => notices.push(notice);
  const own = await LtxVideoPipeline.load({ checkpoint: tinyCheckpoint, textEncoder, loras: [path], onNotice });
  expect(notices).toEqual([expect.stringMatching(/adapter_config\.json beside them, which is missing/)]);
  await own.setLoras([{ path, weight: 2 }]);
  expect(notices).toHaveLength(2);
  own.dispose();
});

it("merges LoRAs by their weights", async () => {
  const path = await writeLora(join(folder, "lora.safetensors"));
  const load = (weight: number) =>
    LtxVideoPipeline.load({ checkpoint: tinyCheckpoint, textEncoder, precision: "float32", loras: [{ path, weight }] });
  const plain = await latents({});
  const off = await load(0);
  expectClose(await latents({}, off), plain);
  off.dispose();
  const on = await load(40);
  const merged = await latents({}, on);
  expect(merged).not.toEqual(plain);
  await on.setLoras([]);
  expect(await latents({}, on)).toEqual(plain);
  await on.setLoras([{ path, weight: 40 }]);
  expect(await latents({}, on)).toEqual(merged);
  on.dispose();
});

it("changes LoRAs where models take turns, and only between videos", async () => {
  const path = await writeLora(join(folder, "turn.safetensors"));
  const wide = await writeLora(join(folder, "turn-wide.safetensors"), { dim: 64 });
  const files = { checkpoint: tinyCheckpoint, textEncoder, precision: "float32" as const };
  const turns = await LtxVideoPipeline.load({ ...files, offload: true });
  const plain = await latents({}, turns);
  await turns.setLoras([{ path, weight: 40 }]);
  const merged = await latents({}, turns);
  expect(merged).not.toEqual(plain);
  await expect(turns.setLoras([wide])).rejects.toThrow("another model");
  expect(await latents({}, turns)).toEqual(merged);
  const drawing = latents({}, turns);
  await expect(turns.setLoras([])).rejects.toThrow("LoRAs can't be changed while a video is drawn");
  await drawing;
  await turns.setLoras([]);
  expect(await latents({}, turns)).toEqual(plain);
  turns.dispose();
});

it("draws with the old LoRAs or with the new ones while they are changed, never with a mixture", async () => {
  const path = await writeLora(join(folder, "between.safetensors"));
  const files = { checkpoint: tinyCheckpoint, textEncoder, precision: "float32" as const };
  const own = await LtxVideoPipeline.load(files);
  const plain = await latents({}, own);
  await own.setLoras([{ path, weight: 40 }]);
  const merged = await latents({}, own);
  for (let i = 0; i < 6; i++) {
    const changing = own.setLoras(i % 2 === 0 ? [] : [{ path, weight: 40 }]);
    const drawn = latents({}, own);
    await changing;
    expect(await drawn).toEqual(i % 2 === 0 ? plain : merged);
  }
  own.dispose();
});

it("refuses other LoRAs at any point of a video", async () => {
  const path = await writeLora(join(folder, "within.safetensors"));
  const files = { checkpoint: tinyCheckpoint, textEncoder, precision: "float32" as const };
  const own = await LtxVideoPipeline.load(files);
  let done = false;
  const drawing = own.generate({ ...options, seed: 9 }).finally(() => {
    done = true;
  });
  let refused = 0;
  while (!done) {
    await new Promise((resolve) => setImmediate(resolve));
    if (done) break;
    await expect(own.setLoras([path])).rejects.toThrow("can't be changed while a video is drawn");
    refused++;
  }
  expect(refused).toBeGreaterThan(2);
  expect(bytes(await drawing)).toEqual(bytes(await pipeline.generate({ ...options, seed: 9 })));
  own.dispose();
});

it("is as it was after a change that fails half way", async () => {
  const path = await writeLora(join(folder, "half.safetensors"));
  const own = await LtxVideoPipeline.load({ checkpoint: tinyCheckpoint, textEncoder, precision: "float32" });
  const plain = await latents({}, own);
  const before = await live();
  const write = Parameter.prototype.write;
  for (const after of [0, 1, 3]) {
    let written = 0;
    Parameter.prototype.write = function (values) {
      if (written++ === after) throw new LtxError("out_of_memory", "planted");
      return write.call(this, values);
    };
    try {
      await expect(own.setLoras([{ path, weight: 40 }])).rejects.toThrow("planted");
    } finally {
      Parameter.prototype.write = write;
    }
    expect(await latents({}, own)).toEqual(plain);
    expect(await live()).toBe(before);
  }
  await own.setLoras([{ path, weight: 40 }]);
  expect(await latents({}, own)).not.toEqual(plain);
  own.dispose();
});

it("takes the VAE from a file of its own", async () => {
  const models = await openOfficial(tinyCheckpoint);
  const alone = async (kind: "transformer" | "vae", prefix: string) => {
    const file = models.module(kind);
    const path = join(folder, `only-${kind}.safetensors`);
    const tensors = [];
    for (const [name, { dtype, shape }] of file.tensors) {
      tensors.push({ name: prefix + name, dtype, shape, data: await file.read(name) });
    }
    const { config } = models.metadata;
    await writeSafetensors(path, tensors as never, config === undefined ? {} : { config });
    return path;
  };
  const checkpoint = await alone("transformer", "model.diffusion_model.");
  const vae = await alone("vae", "vae.");
  await models.close();
  await expect(LtxVideoPipeline.load({ checkpoint, textEncoder })).rejects.toMatchObject({
    code: "checkpoint",
    message: expect.stringContaining("has a transformer and no VAE: name the VAE's file too (vae, --vae-path)"),
  });
  const both = await LtxVideoPipeline.load({ checkpoint, vae, textEncoder, precision: "float32" });
  expect(bytes(await both.generate(options))).toEqual(bytes(await pipeline.generate(options)));
  both.dispose();
  await new Promise((resolve) => setTimeout(resolve, 10));
});

it("decodes without noise at time 0 unless it is told otherwise, as the official pipeline", async () => {
  const plain = bytes(await pipeline.generate(options));
  expect(bytes(await pipeline.generate({ ...options, decodeTimestep: 0, decodeNoiseScale: 0 }))).toEqual(plain);
  const noisy = bytes(await pipeline.generate({ ...options, decodeTimestep: 0.3 }));
  expect(noisy).not.toEqual(plain);
  expect(bytes(await pipeline.generate({ ...options, decodeTimestep: 0.3, decodeNoiseScale: 0.3 }))).toEqual(noisy);
});

it("tells what of a long prompt the model does not read", async () => {
  const heard: string[] = [];
  const onNotice = (message: string) => heard.push(message);
  const read = "three ".repeat(10);
  await pipeline.generate({ ...options, prompt: read, onNotice });
  expect(heard).toEqual([]);
  await pipeline.generate({ ...options, prompt: `${"three ".repeat(400)}and then the boat`, onNotice });
  expect(heard).toHaveLength(1);
  expect(heard[0]).toMatch(
    /^the model reads 256 tokens of a prompt: of "three three .*…" it does not see the end, \d+ /,
  );
});

describe("loading", () => {
  it("tells how far it is, and stops with nothing left", async () => {
    const before = await live();
    const heard: LoadProgress[] = [];
    const load = (more: object) => LtxVideoPipeline.load({ checkpoint: tinyCheckpoint, textEncoder, ...more });
    const own = await load({ onLoad: (progress: LoadProgress) => heard.push(progress) });
    expect(heard.map(({ model }) => model)).toEqual(["transformer", "VAE"]);
    for (const { done, total } of heard) expect([done, total > 1000]).toEqual([total, true]);
    await own.generate(options);
    expect(heard[2]).toMatchObject({ model: "text encoder", done: heard[2].total });
    own.dispose();
    await new Promise((resolve) => setTimeout(resolve, 10));

    await expect(load({ signal: AbortSignal.abort() })).rejects.toMatchObject({ code: "aborted" });
    const stop = new AbortController();
    const onLoad = () => stop.abort();
    await expect(load({ signal: stop.signal, onLoad })).rejects.toMatchObject({ code: "aborted" });
    expect(await live()).toBe(before);
  });
});

it("ends a video that is stopped at its very end with `aborted`", async () => {
  const before = await live();
  for (const outputType of ["video", "tensor"] as const) {
    const stop = new AbortController();
    const drawing = pipeline.generate({ ...options, outputType, signal: stop.signal } as LtxGenerateOptions);
    const read = Tensor.prototype.read;
    let reads = 0;
    // The frames are read last, nine of them.
    Tensor.prototype.read = function () {
      if (this.shape.join() === "1,32,64,3" && ++reads === 9) stop.abort();
      return read.call(this);
    };
    try {
      await expect(drawing).rejects.toMatchObject({ code: "aborted" });
    } finally {
      Tensor.prototype.read = read;
    }
    expect(await live()).toBe(before);
  }
});

it("computes in bf16 nearly what it computes in f32", async () => {
  const half = await LtxVideoPipeline.load({ checkpoint: tinyCheckpoint, textEncoder });
  const [rough, exact] = [await latents({}, half), await latents({})];
  const norm = (values: readonly number[]) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));
  expect(norm(rough.map((v, i) => v - exact[i])) / norm(exact)).toBeLessThan(0.1);
  half.dispose();
});
