/** Every op with right arguments, of which up to three are changed. */
import * as ops from "../../../lib/ops/index.js";
import { backward, device, noGrad, Tensor } from "../../../lib/tensor/index.js";
import { checkSanity, choice, flag, Maker, number, tryCall, whole, wholes } from "../arguments.js";
import type { Random } from "../random.js";
import { must, type Target } from "../target.js";

type Recipe = (make: Maker, random: Random) => unknown[];

const ACTIVATIONS = ["silu", "none", "gelu_tanh", "sigmoid", "exp", "square", "abs", "sqrt", "relu", "tanh"];
const UNARY = [...ACTIVATIONS, "clamp", "leaky_relu", "softplus", "reciprocal"];
const DTYPES = ["f32", "bf16", "i32", "u8"];
const KEY = { seed: whole(1), step: whole(2), purpose: whole(3) };
const one: Recipe = (t) => [t.float(2, 3)];
const two: Recipe = (t) => [t.f32(2, 3), t.f32(2, 3)];
const video: Recipe = (t) => [t.float(1, 2, 4, 4, 8)];

const recipes: { [op in keyof typeof ops]: Recipe } = {
  attention: (t) => [
    t.f32(2, 3, 8),
    t.f32(2, 4, 8),
    t.f32(2, 4, 8),
    { heads: whole(2), qWeight: t.f32(8), kWeight: t.f32(8), eps: number(1e-6), mask: t.f32(2, 4), scale: number(0.5) },
  ],
  rope: (t) => [t.float(1, 3, 8), t.f32(3, 8), t.f32(3, 8)],
  batchNorm: (t) => [
    t.float(4, 3),
    {
      weight: t.f32(3),
      bias: t.f32(3),
      runningMean: t.f32(3),
      runningVar: t.f32(3),
      training: flag(true),
      momentum: number(0.1),
      eps: number(1e-5),
    },
  ],
  conv3d: (t) => [
    t.f32(1, 3, 4, 4, 2),
    t.f32(5, 3, 3, 3, 2),
    t.f32(5),
    { stride: wholes(1, 1, 1), padTime: wholes(2, 0), replicate: flag(true), padSpace: wholes(1, 1) },
  ],
  conv3dShape: () => [
    wholes(1, 3, 4, 4, 2),
    wholes(5, 3, 3, 3, 2),
    { stride: wholes(1, 1, 1), padTime: wholes(2, 0), padSpace: wholes(1, 1) },
  ],
  abs: one,
  exp: one,
  gelu: one,
  relu: one,
  sigmoid: one,
  silu: one,
  softplus: one,
  square: one,
  reciprocal: one,
  detach: one,
  mean: one,
  meanSamples: one,
  sum: one,
  sumSamples: one,
  sumSquares: one,
  add: two,
  sub: two,
  mul: two,
  addRows: (t) => [t.float(2, 3), t.f32(3)],
  affine: (t) => [t.float(2, 3), number(2), number(1), choice("f32", "bf16")],
  axpby: (t) => [number(2), t.f32(2, 3), number(3), t.f32(2, 3)],
  cast: (t) => [t.float(2, 3), choice("bf16", "f32")],
  clamp: (t) => [t.float(2, 3), number(-1), number(1)],
  full: () => [
    wholes(2, 3),
    number(1),
    { dtype: choice(...DTYPES), group: choice("data", "activations", "parameters", "gradients", "optimizer") },
  ],
  zeros: () => [wholes(2, 3), { dtype: choice(...DTYPES) }],
  leakyRelu: (t) => [t.float(2, 3), number(0.1)],
  mixRows: (t) => [t.f32(2, 3), t.f32(2, 3), t.f32(2), t.f32(2)],
  reshape: (t) => [t.float(2, 3), wholes(3, 2)],
  unary: (t) => [choice(...UNARY), t.float(2, 3), number(0), number(1)],
  gatherRows: (t) => [t.float(4, 3), t.i32(5)],
  linear: (t) => [t.f32(2, 3), t.f32(4, 3), t.f32(4), choice(...ACTIVATIONS)],
  addPlane: (t) => [t.float(1, 2, 3, 4, 5), t.f32(3, 4), t.f32(5)],
  gatedAdd: (t) => [t.f32(2, 4), t.f32(2, 4), t.f32(1, 6, 4), whole(2)],
  normAct: (t, random) => [
    t.float(2, 3, 8),
    {
      kind: choice(
        ...random.shuffle(["pixel_norm", "rms_norm", "layer_norm", "none"]).slice(0, 1),
        "pixel_norm",
        "rms_norm",
        "layer_norm",
        "none",
        "group_norm",
      ),
      eps: number(1e-6),
      weight: t.f32(8),
      modulation: { ada: t.f32(1, 6, 8), shift: whole(1), scale: whole(2) },
      activation: choice("silu", "none"),
    },
  ],
  adamUpdate: (t) => [
    {
      params: [t.f32(4), t.f32(2, 2)],
      grads: [t.f32(4), t.f32(2, 2)],
      m: [t.f32(4), t.f32(2, 2)],
      v: [t.f32(4), t.f32(2, 2)],
    },
    {
      lr: number(0.1),
      betas: [number(0.9), number(0.99)],
      eps: number(1e-8),
      weightDecay: number(0),
      decoupled: flag(false),
      step: whole(1),
      norm: t.f32(1),
      maxNorm: number(1),
    },
  ],
  emaUpdate: (t) => [[t.f32(4)], [t.f32(4)], number(0.9)],
  globalNorm: (t) => [[t.f32(4), t.f32(2, 2)]],
  lpipsDistance: (t) => [t.f32(2, 3, 4), t.f32(2, 3, 4), t.f32(4)],
  maxPool2d: video,
  expandMoments: (t) => [t.float(1, 2, 2, 2, 5)],
  posteriorKl: video,
  posteriorLogvar: video,
  posteriorSample: (t) => [t.f32(1, 2, 2, 2, 8), t.f32(1, 2, 2, 2, 4)],
  normal: () => [wholes(2, 3), KEY, { dtype: choice("f32", "bf16") }],
  uniform: () => [wholes(2, 3), KEY, { dtype: choice("f32", "bf16") }],
  sinusoid: (t) => [t.f32(3), whole(8), number(10000)],
  concatLast: (t) => [t.f32(2, 3), t.f32(2, 4)],
  depthToSpace: (t) => [
    t.float(1, 2, 2, 2, 16),
    {
      stride: wholes(2, 2, 2),
      order: choice("time_height_width", "time_width_height"),
      dropFirst: flag(true),
      repeat: whole(1),
    },
  ],
  spaceToDepth: (t) => [
    t.float(1, 2, 4, 4, 3),
    { stride: wholes(2, 2, 2), order: choice("time_height_width", "time_width_height") },
  ],
  sliceFirst: (t) => [t.float(4, 3), whole(1), whole(2)],
  sliceLast: (t) => [t.float(3, 4), whole(1), whole(2)],
  toChannelsFirst: video,
  toChannelsLast: video,
  transpose: (t) => [t.float(2, 3, 4)],
  pairLoss: (t) => [choice("l1", "l2"), t.f32(2, 3), t.f32(2, 3), number(1)],
  haar: video,
  haarL1: (t) => [t.f32(1, 2, 4, 4, 3), t.f32(1, 2, 4, 4, 3)],
};

/** Bytes that one case may ask for. */
const MEMORY_LIMIT = 2 ** 26;

export const opsTarget: Target = {
  name: "ops",
  about: "every op, with up to three of its arguments changed",
  weight: 20,
  async setup() {
    const cpu = device("cpu");
    cpu.setMemoryLimit(MEMORY_LIMIT);
    const functions = Object.entries(ops) as [keyof typeof ops, (...args: unknown[]) => unknown][];
    return async (random, label) => {
      const [name, op] = random.pick(functions);
      label(`ops.${name}`);
      const recipe = recipes[name];
      must(recipe, () => `ops.${name} has no recipe in scripts/fuzz/targets/ops.ts`);
      await cpu.synchronize().catch(() => {});
      const before = cpu.memory().live;
      const make = new Maker(random, cpu);
      let failure: unknown;
      try {
        const args = recipe(make, random);
        const graded = random.chance(0.3);
        const call = (...given: unknown[]) => {
          const run = () => op(...given);
          if (!graded) return noGrad(run);
          for (const tensor of make.made) if (tensor.alive && tensor.dtype === "f32") tensor.requiresGrad = true;
          const result = run();
          if (result instanceof Tensor && result.tracked && result.gradFn) {
            const gradient = ops.full(result.shape, 1, { dtype: result.dtype, device: cpu });
            try {
              backward(result, gradient);
            } finally {
              gradient.dispose();
              result.dispose();
            }
            return undefined;
          }
          return result;
        };
        await tryCall(random, make, call, args);
      } catch (error) {
        failure = error;
      }
      make.dispose();
      await cpu.synchronize().catch(() => {});
      const left = cpu.memory().live - before;
      must(left === 0, () => `${left} bytes stay on the device`);
      if (random.below(16) === 0) await checkSanity(cpu);
      if (failure) throw failure;
    };
  },
};
