/** Every exported function, constructor and method but the ops: with right arguments where a recipe has them, else any. */
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { guard } from "../../../lib/guard.js";
import * as api from "../../../lib/index.js";
import { transformerConfig, vaeConfig, vaeShapes, writeLora } from "../../../test/support/official.js";
import { tinyTokenizerJson, writeTinyT5 } from "../../../test/support/tiny-t5.js";
import { anything, checkSanity, choice, flag, Maker, number, text, tryCall, whole, wholes } from "../arguments.js";
import type { Random } from "../random.js";
import type { Target } from "../target.js";

const ROOT = join(__dirname, "..", "..", "..");
const TINY = join(ROOT, "test", "support", "tiny.yaml");
const CHECKPOINT = join(
  ROOT,
  "test",
  "golden",
  "fixtures",
  "checkpoints",
  "tiny-0.9.5",
  "ltxv-tiny-0.9.5-bfloat16.safetensors",
);

/** What calls work on. */
interface Things {
  folder: string;
  cpu: api.Device;
  quickstart: ReturnType<typeof api.parseConfig> & { kind: "quickstart" };
  pipeline: api.LtxVideoPipeline;
  vae: api.VideoVae;
  transformer: api.LtxVideoTransformer;
  official: api.CausalVideoAutoencoder;
  video: api.Video;
  mnist: api.MovingMnist;
  tokenizer: api.T5Tokenizer;
  events: api.EventWriter;
  parameter: api.nn.Parameter;
  source: { data: Uint8Array; frames: number; height: number; width: number; channels: number };
}

type Recipe = (t: Maker, things: Things, random: Random) => unknown[];
type Call = (...args: unknown[]) => unknown;

const png = (f: Things) => text(join(f.folder, "a.png"));
const stop = () => AbortSignal.timeout(2000);
const request = (t: Maker) => ({
  prompts: [text("zero and one")],
  height: whole(64),
  width: whole(96),
  numFrames: whole(9),
  frameRate: number(25),
  timesteps: [number(1), number(0.725), number(0.4219)],
  guidanceScale: number(1),
  seed: whole(1),
  outputType: choice("pixels", "latent", "video", "pt", "np", "pil"),
  signal: t.random.chance(0.9) ? stop() : AbortSignal.abort(),
});
const transformerParams = {
  input_channels: 4,
  input_number_of_frames: 1,
  input_spatial_size: 2,
  out_channels: 4,
  num_layers: 1,
  num_attention_heads: 2,
  attention_head_dim: 12,
  cross_attention_dim: 24,
  caption_channels: 16,
};

const functions: Record<string, Recipe> = {
  applyLoras: () => [],
  innerDim: () => [{ num_attention_heads: whole(2), attention_head_dim: whole(8) }],
  textWidth: () => [
    { kind: choice("byte", "t5"), width: whole(16), layers: number(1), heads: number(1), max_length: number(8) },
  ],
  loadConfig: () => [text(TINY)],
  loadPipelineConfig: () => [text(join(ROOT, "configs", "official", "ltxv-2b-0.9.5.yaml")), {}],
  loadSamplingScheme: () => [text(TINY)],
  parseConfig: () => [text(readFileSync(TINY, "utf8")), text("tiny.yaml")],
  parseLossParams: () => [{ rec_loss: choice("l2", "l1") }, text("x"), whole(1)],
  parseOfficialTransformer: () => [transformerConfig, text("x")],
  parseOfficialVae: () => [vaeConfig("0.9.5"), text("x")],
  parseOfficialUpsampler: () => [{ in_channels: whole(8), mid_channels: whole(32), dims: whole(3) }, text("x")],
  parseStoredConfig: (_, f) => [text(JSON.stringify(f.quickstart.vae)), text("x")],
  parseTransformerParams: () => [transformerParams, text("x")],
  parseVaeParams: (_, f) => [f.quickstart.vae.vae, text("x")],
  openLora: (_, f) => [text(join(f.folder, "lora.safetensors"))],
  openOfficial: () => [text(CHECKPOINT)],
  openTensorFile: () => [text(CHECKPOINT)],
  readSafetensors: () => [text(CHECKPOINT)],
  writeSafetensors: (_, f) => [
    text(join(f.folder, "out.safetensors")),
    [{ name: text("a"), dtype: choice("F32", "U8"), shape: wholes(2), data: new Uint8Array(8) }],
    { a: text("b") },
  ],
  upsamplerConfigFromKeys: () => [
    new Map([
      ["initial_conv.weight", { shape: [8, 4, 3, 3] }],
      ["upsampler.0.weight", { shape: [32, 8, 3, 3] }],
    ]),
    text("x"),
  ],
  vaeConfigFromKeys: () => [new Map([...vaeShapes("0.9.5")].map(([name, shape]) => [name, { shape }])), text("x")],
  vaeFactors: (_, { quickstart: { vae } }) => [
    { encoder_blocks: vae.vae.encoder_blocks, patch_size: vae.vae.patch_size },
  ],
  withLoras: () => [],
  batchIndices: () => [
    { seed: whole(1), step: whole(2), batchSize: whole(2), length: whole(8), rank: whole(0), worldSize: whole(1) },
  ],
  loadClips: (_, f) => [f.mnist, wholes(0, 1)],
  loadDigits: () => [choice("train", "test")],
  openData: (_, f) => [f.quickstart.vae.data, choice("train", "test")],
  promptFor: () => [wholes(1, 2), whole(1), whole(0)],
  withFrames: (_, f) => [f.mnist, whole(4)],
  conditioningFrames: () => [whole(0), whole(5), whole(9)],
  firstFrames: (_, f) => [f.source, whole(1)],
  paddedSize: () => [{ height: whole(64), width: whole(64), frames: whole(9) }],
  prepareMedia: (_, f) => [
    f.source,
    { height: whole(32), width: whole(32) },
    choice("conditioning", "source"),
    { crf: whole(0) },
  ],
  readMedia: (_, f) => [png(f), { maxFrames: whole(1) }],
  writeVideo: (_, f) => [
    text(join(f.folder, "out.webp")),
    f.source,
    { fps: number(8), crf: whole(20), comment: text("x") },
  ],
  byteTokens: () => [text("zero"), whole(8)],
  findT5Folder: (_, f) => [{ version: text("google/t5-v1_1-base"), path: text(join(f.folder, "t5")) }],
  paddedLength: () => [whole(3), whole(8)],
  relativeBucket: () => [whole(3), whole(8), whole(16)],
  createFlowModel: (_, f) => [f.quickstart.flow, new api.nn.Initializer(f.cpu, 1)],
  absolutePositions: () => [wholes(1, 2, 2), whole(12)],
  gridPositions: () => [wholes(1, 2, 2)],
  latentCoordinates: () => [
    wholes(1, 2, 2),
    { causal: flag(true), frameRate: number(25), spatialFactor: whole(32), temporalFactor: whole(8) },
  ],
  ropeFrequencies: () => [{ dim: whole(12), theta: number(10000), maxPos: [number(20), number(20), number(20)] }],
  skipMask: () => [
    choice("attention_skip", "attention_values", "residual", "transformer_block"),
    wholes(0),
    whole(2),
    whole(1),
  ],
  fitFrames: () => [whole(9), whole(8)],
  decoderConfig: (_, f) => [f.quickstart.vae.vae],
  posteriorLogvars: (t) => [t.f32(1, 1, 2, 2, 8)],
  posteriorMean: (t) => [t.f32(1, 1, 2, 2, 8)],
  posteriorStd: (t) => [t.f32(1, 1, 2, 2, 8)],
  checkFits: () => [],
  convert: (_, f) => [
    text(join(f.folder, "lora.safetensors")),
    text(join(f.folder, "converted.safetensors")),
    { to: choice("official", "diffusers", "comfyui"), force: flag(true) },
  ],
  drawPrompts: () => [{ digits: whole(1), num_classes: whole(10) }, whole(2), whole(1)],
  findModelFile: () => [text(CHECKPOINT), choice("vae", "flow")],
  openCheckpoint: () => [text(CHECKPOINT), choice("vae", "flow")],
  gradientMagnitude: () => [new Float32Array(16), [1, 4, 4, 1]],
  ssim: () => [new Float32Array(256), new Float32Array(256), [1, 16, 16, 1]],
  psnr: () => [number(2), whole(16)],
  planGeneration: () => [
    {
      pipelineConfig: text(join(ROOT, "configs", "official", "ltxv-2b-0.9.5.yaml")),
      size: { height: whole(64), width: whole(64), numFrames: whole(9) },
    },
  ],
  generateRelease: (t) => [{ pipelineConfig: text("ltxv-2b-0.9.5"), signal: stop() }, request(t)],
  sideBySide: () => [],
  reconstruct: () => [text("nothing"), { signal: stop() }],
  evaluate: () => [{ checkpoint: text("nothing") }],
  extendVideo: () => [],
  train: (_, f) => [{ out: text(join(f.folder, "run")), config: f.quickstart.vae, force: flag(true), signal: stop() }],
  keptDigitClassifier: () => [],
  trainDigitClassifier: () => [],
  backends: () => [],
  backward: (t) => [t.f32(1)],
  checkpoint: (t) => [[t.f32(2)], () => t.f32(2)],
  device: () => [choice("cpu", "auto")],
  empty: () => [wholes(2, 3), { dtype: choice("f32", "bf16", "i32", "u8"), group: choice("data") }],
  gradients: (t) => [t.f32(1), [t.f32(1)]],
  keep: (t) => [t.f32(1)],
  narrow: () => [new Float32Array(4)],
  widen: () => [new Uint16Array(4)],
  noGrad: () => [() => 1],
  scope: () => [() => 1],
  sizeOf: () => [wholes(2, 3)],
  withMemoryGroup: () => [choice("data", "parameters"), () => 1],
  "diffusion.addNoise": (t) => [t.f32(2, 3), t.f32(2, 3), t.f32(2)],
  "diffusion.adainFilterLatent": (t) => [t.f32(1, 2, 2, 2, 4), t.f32(1, 2, 2, 2, 4), number(0.5)],
  "diffusion.toneMapLatents": (t) => [t.f32(1, 2, 2, 2, 4), number(0.5)],
  "diffusion.guided": (t) => [t.f32(1, 2), t.f32(1, 2), number(2)],
  "diffusion.joinSamples": (t) => [t.f32(1, 2), t.f32(1, 2)],
  "diffusion.sampleTimes": (_, f) => [
    whole(4),
    choice("logit-normal", "uniform"),
    { seed: whole(1), step: whole(1), purpose: whole(1) },
    f.cpu,
  ],
  "diffusion.velocityTarget": (t) => [t.f32(2, 3), t.f32(2, 3)],
  "diffusion.velocityError": (t) => [t.f32(2, 3), t.f32(2, 3)],
  "diffusion.modelTime": () => [number(0.5), whole(1000)],
  "diffusion.remainingNoise": () => [number(0.5)],
  "optim.scheduleFactor": () => [
    { name: choice("cosine", "constant", "linear"), warmup_steps: whole(1), final_fraction: number(0.1) },
    whole(2),
    whole(10),
  ],
};

const constructors: Record<string, Recipe> = {
  MovingMnist: () => [
    {
      split: choice("train", "test"),
      size: whole(4),
      frames: whole(3),
      height: whole(16),
      width: whole(16),
      digits: whole(1),
      digitSize: whole(10),
      seed: whole(1),
    },
  ],
  Video: () => [[new Uint8Array(48)], whole(1), whole(4), whole(4), whole(3), [text("x")], number(8)],
  Device: () => [],
  Tensor: () => [],
  SeededNoise: (_, f) => [whole(1), f.cpu],
  VideoVae: (_, f) => [f.quickstart.vae.vae, { device: f.cpu }],
  LtxVideoTransformer: (_, f) => [f.quickstart.flow.transformer, new api.nn.Initializer(f.cpu, 1)],
  "optim.Adam": (_, f) => [
    [f.parameter],
    { lr: number(0.1), betas: [number(0.9), number(0.99)], eps: number(1e-8), maxGradNorm: number(1) },
  ],
  "optim.Ema": (_, f) => [[f.parameter], number(0.9)],
  "nn.Linear": (_, f) => [whole(3), whole(4), new api.nn.Initializer(f.cpu, 1), { bias: flag(true) }],
  "nn.Conv3d": (_, f) => [whole(2), whole(3), wholes(3, 3, 3), new api.nn.Initializer(f.cpu, 1), {}],
  "nn.Conv2d": (_, f) => [
    whole(2),
    whole(3),
    whole(3),
    new api.nn.Initializer(f.cpu, 1),
    { stride: whole(1), padding: whole(1) },
  ],
  "nn.LayerNorm": (_, f) => [whole(4), new api.nn.Initializer(f.cpu, 1)],
  "nn.BatchNorm": (_, f) => [whole(4), new api.nn.Initializer(f.cpu, 1)],
  "nn.TimestepEmbedding": (_, f) => [whole(8), new api.nn.Initializer(f.cpu, 1)],
  "nn.Initializer": (_, f) => [f.cpu, whole(1)],
};

const statics: Record<string, Recipe> = {
  "Tensor.from": (_, f) => [
    new Float32Array(6),
    wholes(2, 3),
    { dtype: choice("f32", "bf16"), device: f.cpu, group: choice("data") },
  ],
  "Video.fromFloats": () => [new Float32Array(48), wholes(1, 1, 4, 4, 3), [text("x")], number(8)],
  "EventWriter.open": (_, f) => [text(join(f.folder, "events"))],
  "T5Folder.open": (_, f) => [text(join(f.folder, "t5"))],
  "T5TextEncoder.open": (_, f) => [{ path: text(join(f.folder, "t5")), device: f.cpu, maxLength: whole(8) }],
  "T5Tokenizer.fromJson": () => [text(JSON.stringify(tinyTokenizerJson()))],
  "T5Tokenizer.fromSentencePiece": () => [new Uint8Array(4)],
  "Lpips.load": () => [text("nothing.safetensors")],
  "TextToVideo.load": () => [text("nothing"), { device: choice("cpu") }],
  "LtxVideoPipeline.load": (_, f) => [
    {
      checkpoint: text(CHECKPOINT),
      textEncoder: text(join(f.folder, "t5")),
      device: choice("cpu"),
      precision: choice("float32", "bfloat16"),
      offload: flag(false),
    },
  ],
  "LtxMultiScalePipeline.load": (_, f) => [
    {
      checkpoint: text(CHECKPOINT),
      spatialUpscaler: text("nothing"),
      textEncoder: text(join(f.folder, "t5")),
      device: choice("cpu"),
    },
  ],
  "RunDirectory.open": () => [text("nothing")],
  "RunDirectory.exists": () => [text("nothing")],
  "RunDirectory.checkFree": () => [text("nothing"), flag(false)],
  "RunDirectory.create": (_, f) => [
    text(join(f.folder, "made")),
    f.quickstart.vae,
    { force: flag(true), version: text("0") },
  ],
  "VaeTrainer.create": (_, f) => [{ config: f.quickstart.vae, device: choice("cpu") }],
  "FlowTrainer.create": (_, f) => [{ config: f.quickstart.flow, device: choice("cpu") }],
};

/** Methods of objects that live through all cases; those that would end them are left out. */
const methods: Record<string, [on: (f: Things, t: Maker) => object, recipe: Recipe]> = {
  "device.setMemoryLimit": [(f) => f.cpu, () => [whole(2 ** 27)]],
  "device.step": [(f) => f.cpu, () => [() => 1]],
  "tensor.write": [(_, t) => t.f32(4), () => [new Float32Array(4)]],
  "tensor.item": [(_, t) => t.f32(1), () => []],
  "tensor.read": [(_, t) => t.f32(3), () => []],
  "pipeline.generate": [(f) => f.pipeline, (t) => [request(t)]],
  "pipeline.setLoras": [
    (f) => f.pipeline,
    (_, f) => [[{ path: text(join(f.folder, "lora.safetensors")), weight: number(1) }]],
  ],
  "vae.encodeMoments": [(f) => f.vae, (t) => [t.f32(1, 5, 16, 16, 1)]],
  "vae.decode": [(f) => f.vae, (t) => [t.f32(1, 3, 2, 2, 8), number(0.05)]],
  "vae.mode": [(f) => f.vae, (t) => [t.f32(1, 3, 2, 2, 16)]],
  "vae.kl": [(f) => f.vae, (t) => [t.f32(1, 3, 2, 2, 16)]],
  "vae.fitFrames": [(f) => f.vae, (t) => [t.f32(1, 5, 16, 16, 1)]],
  "vae.loadStateDict": [(f) => f.vae, () => [new Map()]],
  "vae.requiresGrad": [(f) => f.vae, () => [flag(true)]],
  "vae.train": [(f) => f.vae, () => [flag(true)]],
  "transformer.forward": [
    (f) => f.transformer,
    (t) => [t.f32(1, 3, 2, 2, 8), t.f32(1), { context: t.f32(1, 4, 16), mask: t.f32(1, 4) }],
  ],
  "official.encode": [(f) => f.official, (t) => [t.f32(1, 9, 32, 32, 3)]],
  "official.normalize": [(f) => f.official, (t) => [t.f32(1, 1, 1, 1, 8)]],
  "official.denormalize": [(f) => f.official, (t) => [t.f32(1, 1, 1, 1, 8)]],
  "official.planDecode": [(f) => f.official, () => [wholes(1, 1, 1, 1, 8), number(1e8)]],
  "video.save": [
    (f) => f.video,
    (_, f) => [
      text(join(f.folder, "saved.gif")),
      { columns: whole(1), scale: whole(1), fps: number(8), quality: whole(90) },
    ],
  ],
  "video.clip": [(f) => f.video, () => [whole(0)]],
  "video.first": [(f) => f.video, () => [whole(1)]],
  "video.range": [(f) => f.video, () => [whole(0), whole(1)]],
  "video.crop": [(f) => f.video, () => [{ left: whole(0), top: whole(0), height: whole(2), width: whole(2) }]],
  "mnist.clip": [(f) => f.mnist, () => [whole(0)]],
  "mnist.batch": [(f) => f.mnist, () => [wholes(0, 1)]],
  "mnist.promptFor": [(f) => f.mnist, () => [wholes(1), whole(1), whole(0)]],
  "tokenizer.encode": [(f) => f.tokenizer, () => [text("zero and one"), whole(8)]],
  "events.scalar": [(f) => f.events, () => [text("loss"), whole(1), number(0.5)]],
  "events.image": [(f) => f.events, () => [text("picture"), whole(1), new Uint8Array(4), whole(2), whole(2)]],
  "init.weight": [(f) => new api.nn.Initializer(f.cpu, 1), () => [wholes(2, 3), number(0.1)]],
  "init.uniform": [(f) => new api.nn.Initializer(f.cpu, 1), () => [wholes(2, 3), number(0.1)]],
};

const isClass = (value: unknown): boolean =>
  typeof value === "function" && /^class\b/.test(Function.prototype.toString.call(value));

/** Recipes of exports that are called with anything at all. */
const loose: Recipe = (t, _, random) => Array.from({ length: random.within(0, 5) }, () => anything(random, t));

function* callsOf(
  name: string,
  raw: unknown,
  value: unknown,
): Generator<[string, Call | ((f: Things, t: Maker) => Call), Recipe, boolean]> {
  if (isClass(raw)) {
    const Class = value as new (...args: unknown[]) => unknown;
    yield [`new ${name}`, (...args: unknown[]) => new Class(...args), constructors[name] ?? loose, false];
    for (const key of Object.getOwnPropertyNames(raw)) {
      const fn = (Class as unknown as Record<string, unknown>)[key];
      if (typeof fn !== "function" || ["prototype", "build", "optionalKey", "unusedKey"].includes(key)) continue;
      yield [
        `${name}.${key}`,
        (...args: unknown[]) => fn.apply(Class, args),
        statics[`${name}.${key}`] ?? loose,
        false,
      ];
    }
  } else if (typeof value === "function") yield [name, value as Call, functions[name] ?? loose, false];
  else if (typeof value === "object" && value !== null && !Array.isArray(value) && name !== "ops") {
    for (const [key, inner] of Object.entries(raw as object)) {
      yield* callsOf(`${name}.${key}`, inner, (value as Record<string, unknown>)[key]);
    }
  }
}

async function prepare(folder: string): Promise<Things> {
  sharp.cache(false); // which keeps files open, twenty at most
  const cpu = api.device("cpu");
  const quickstart = api.parseConfig(readFileSync(TINY, "utf8"), TINY) as Things["quickstart"];
  for (const { training } of [quickstart.vae, quickstart.flow]) training.steps = 3;
  await writeTinyT5(join(folder, "t5"), { width: 24 });
  await writeLora(join(folder, "lora.safetensors"));
  writeFileSync(
    join(folder, "a.png"),
    await sharp({ create: { width: 8, height: 8, channels: 3, background: "#123456" } })
      .png()
      .toBuffer(),
  );
  mkdirSync(join(folder, "images"));
  copyFileSync(join(folder, "a.png"), join(folder, "images", "1.png"));
  const pipeline = await api.LtxVideoPipeline.load({
    checkpoint: CHECKPOINT,
    textEncoder: join(folder, "t5"),
    device: "cpu",
    precision: "float32",
  });
  const init = new api.nn.Initializer(cpu, 1);
  return {
    folder,
    cpu,
    quickstart,
    pipeline,
    vae: new api.VideoVae(quickstart.vae.vae, { device: cpu }),
    transformer: new api.LtxVideoTransformer(quickstart.flow.transformer, init),
    official: new api.CausalVideoAutoencoder(api.parseOfficialVae(vaeConfig("0.9.5"), "x"), init),
    video: new api.Video([new Uint8Array(96)], 2, 4, 4, 3, ["x"]),
    mnist: new api.MovingMnist({ size: 4, frames: 3, height: 16, width: 16, digits: 1, digitSize: 10 }),
    tokenizer: api.T5Tokenizer.fromJson(JSON.stringify(tinyTokenizerJson())),
    events: await api.EventWriter.open(join(folder, "events")),
    parameter: init.weight([2, 3], 0.1),
    source: { data: new Uint8Array(8 * 8 * 3), frames: 1, height: 8, width: 8, channels: 3 },
  };
}

/** The package as a program gets it: with the types of arguments checked as lib/entry.ts checks them. */
function guarded(): typeof api {
  const built = join(ROOT, "dist", "signatures.json");
  if (!existsSync(built)) throw new Error(`${built} is missing: run npm run build:ts`);
  return guard(api, JSON.parse(readFileSync(built, "utf8")));
}

export const apiTarget: Target = {
  name: "api",
  about: "every other exported function, constructor and method",
  weight: 10,
  async setup(folder) {
    const exported = guarded();
    const things = await prepare(folder);
    const { cpu } = things;
    const calls = Object.entries(api).flatMap(([name, raw]) => [
      ...callsOf(name, raw, exported[name as keyof typeof api]),
    ]);
    const all: [string, (t: Maker) => Call, Recipe][] = [
      ...calls.map(([name, call, recipe]): [string, (t: Maker) => Call, Recipe] => [name, () => call as Call, recipe]),
      ...Object.entries(methods).map(([name, [on, recipe]]): [string, (t: Maker) => Call, Recipe] => {
        const method = name.split(".")[1];
        return [
          name,
          (t) => {
            const object = on(things, t) as Record<string, Call>;
            return (...args) => object[method](...args);
          },
          recipe,
        ];
      }),
    ];
    return async (random, label) => {
      cpu.setMemoryLimit(2 ** 28);
      const [name, callOf, recipe] = random.pick(all);
      label(name);
      const make = new Maker(random, cpu);
      let failure: unknown;
      try {
        await tryCall(random, make, callOf(make), recipe(make, things, random), {
          loose: recipe === loose,
        });
      } catch (error) {
        failure = error;
      }
      make.dispose();
      await cpu.synchronize().catch(() => {});
      if (random.below(8) === 0) await checkSanity(cpu);
      if (failure) throw failure;
    };
  },
};
