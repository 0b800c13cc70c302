import { describe, expect, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import {
  type Argument,
  finite,
  flag,
  matching,
  name,
  optional,
  options,
  orNull,
  real,
  refusesWrong,
  shape,
  tensor,
  tensors,
  whole,
  wholes,
} from "../support/wrong-arguments.js";

const video = () => tensor([1, 2, 4, 4, 8]);
const tensorOptions = () =>
  options({ dtype: name("f32"), device: { right: undefined, wrong: ["cpu", 3, {}], odd: [] }, group: name("data") });
const key = () => options({ seed: whole(1), step: whole(2), purpose: whole(3) }, ["seed", "step", "purpose"]);
const unary = () => [tensor([3, 4])];

const exported: Record<string, unknown> = { ...ops };

/** A valid call of every op, from which the wrong ones are made. An op that is not here fails the first test. */
const calls: Record<keyof typeof ops, () => Argument[]> = {
  attention: () => [
    tensor([2, 3, 8]),
    tensor([2, 3, 8]),
    tensor([2, 3, 8]),
    options(
      {
        heads: whole(2, 1, 8),
        qWeight: optional([8]),
        kWeight: optional([8]),
        eps: finite(1e-5, 0),
        cos: optional([3, 8]),
        sin: optional([3, 8]),
        mask: optional([2, 3]),
        bias: optional([2, 3, 3]),
        scale: orNull(finite(0.5)),
      },
      ["heads"],
    ),
  ],
  rope: () => [tensor([2, 3, 8]), tensor([3, 8]), tensor([3, 8])],
  batchNorm: () => [
    tensor([4, 3]),
    options(
      {
        weight: optional([3]),
        bias: optional([3]),
        runningMean: tensor([3]),
        runningVar: tensor([3]),
        training: flag(true),
        momentum: finite(0.1, 0),
        eps: finite(1e-5, 0),
      },
      ["runningMean", "runningVar", "training"],
    ),
  ],
  conv3dShape: () => [
    shape([1, 2, 4, 4, 8]),
    shape([5, 1, 3, 3, 8]),
    options({ stride: wholes([1, 1, 1], 1), padTime: wholes([0, 0], 0), padSpace: wholes([1, 1], 0) }),
  ],
  conv3d: () => [
    video(),
    tensor([5, 1, 3, 3, 8]),
    optional([5]),
    options({
      stride: wholes([1, 1, 1], 1),
      padTime: wholes([0, 0], 0),
      replicate: flag(true),
      padSpace: wholes([1, 1], 0),
    }),
    optional([1, 2, 4, 4, 5]),
  ],
  zeros: () => [shape([2, 3]), tensorOptions()],
  full: () => [shape([2, 3]), real(1), tensorOptions()],
  reshape: () => [
    tensor([3, 4]),
    {
      right: [4, -1],
      wrong: ["22", 4, null, [-2, -6], [5, 5], [-1, -1], [1.5, 8], [12, ...Array(39).fill(1)]],
      odd: [[12]],
    },
  ],
  detach: unary,
  affine: () => [tensor([3, 4]), real(2), real(1), name("bf16")],
  cast: () => [tensor([3, 4]), name("bf16")],
  axpby: () => [real(1), tensor([3, 4]), real(2), tensor([3, 4])],
  add: () => [tensor([3, 4]), tensor([3, 4])],
  sub: () => [tensor([3, 4]), tensor([3, 4])],
  mul: () => [tensor([3, 4]), tensor([3, 4])],
  unary: () => [name("clamp"), tensor([3, 4]), real(0), real(1)],
  silu: unary,
  gelu: unary,
  sigmoid: unary,
  exp: unary,
  square: unary,
  abs: unary,
  relu: unary,
  leakyRelu: () => [tensor([3, 4]), real(0.1)],
  softplus: unary,
  reciprocal: unary,
  clamp: () => [tensor([3, 4]), real(0), real(1)],
  addRows: () => [tensor([3, 4]), tensor([4])],
  mixRows: () => [tensor([3, 4]), optional([3, 4]), optional([3]), optional([3])],
  gatherRows: () => [tensor([3, 4]), tensor([2], "i32")],
  linear: () => [tensor([3, 4]), tensor([5, 4]), optional([5]), name("silu")],
  gatedAdd: () => [tensor([2, 3, 4]), tensor([2, 3, 4]), tensor([2, 6, 4]), whole(5, 0, 5)],
  addPlane: () => [video(), tensor([4, 4]), tensor([8])],
  normAct: () => [
    tensor([2, 3, 8]),
    options(
      {
        kind: name("group_norm"),
        eps: finite(1e-5, 0),
        weight: optional([8]),
        bias: optional([8]),
        modulation: orNull(
          options({ ada: tensor([2, 6, 8]), shift: whole(0, 0, 5), scale: whole(5, 0, 5) }, ["ada", "shift", "scale"]),
        ),
        activation: name("silu"),
        groups: whole(2, 1, 8),
      },
      ["kind"],
    ),
  ],
  globalNorm: () => [tensors([3], [2, 2])],
  adamUpdate: () => [
    options(
      {
        params: matching([3], [2, 2]),
        grads: matching([3], [2, 2]),
        m: matching([3], [2, 2]),
        v: matching([3], [2, 2]),
      },
      ["params", "grads", "m", "v"],
    ),
    options(
      {
        lr: finite(0.1, 0),
        betas: {
          right: [0.9, 0.99],
          wrong: [[0.9], [0.9, 1], [-0.1, 0.9], [Number.NaN, 0.9], "00", null, 0.9],
          odd: [],
        },
        eps: finite(1e-8, 0),
        weightDecay: finite(0, 0),
        decoupled: flag(true),
        step: whole(1, 1),
        norm: optional([1]),
        maxNorm: { right: 1, wrong: ["1", Number.NaN, -1, {}], odd: [Infinity, null] },
      },
      ["lr", "betas", "eps", "weightDecay", "decoupled", "step"],
    ),
  ],
  emaUpdate: () => [matching([3], [2, 2]), matching([3], [2, 2]), finite(0.5, 0)],
  lpipsDistance: () => [tensor([2, 3, 4]), tensor([2, 3, 4]), tensor([4])],
  maxPool2d: () => [video()],
  expandMoments: () => [tensor([2, 3, 5])],
  posteriorSample: () => [tensor([2, 3, 8]), tensor([2, 3, 4])],
  posteriorKl: () => [tensor([2, 3, 8])],
  posteriorLogvar: () => [tensor([2, 3, 8])],
  normal: () => [shape([2, 3]), key(), tensorOptions()],
  uniform: () => [shape([2, 3]), key(), tensorOptions()],
  sinusoid: () => [tensor([3]), whole(8), finite(100, 0)],
  depthToSpace: () => [
    video(),
    options(
      { stride: wholes([1, 2, 2], 1), order: name("time_width_height"), dropFirst: flag(true), repeat: whole(2, 1) },
      ["stride"],
    ),
  ],
  spaceToDepth: () => [
    video(),
    options({ stride: wholes([1, 2, 2], 1), order: name("time_width_height") }, ["stride"]),
  ],
  transpose: () => [tensor([2, 3, 4])],
  sliceLast: () => [tensor([3, 4]), whole(1, 0, 1), whole(3, 0, 3)],
  concatLast: () => [tensor([3, 4]), tensor([3, 2])],
  sliceFirst: () => [tensor([3, 4]), whole(1, 0, 1), whole(2, 0, 2)],
  toChannelsLast: () => [video()],
  toChannelsFirst: () => [video()],
  sum: unary,
  mean: unary,
  sumSamples: unary,
  meanSamples: unary,
  sumSquares: unary,
  pairLoss: () => [name("l1"), tensor([3, 4]), tensor([3, 4]), real(1)],
  haar: () => [video()],
  haarL1: () => [video(), video()],
};

describe("wrong arguments of every op", () => {
  it("are told for all that are exported", () => {
    expect(Object.keys(calls).sort()).toEqual(Object.keys(ops).sort());
  });

  for (const [op, entries] of Object.entries(calls)) {
    it(`of ${op} are refused by an LtxError`, async () => {
      await refusesWrong(exported[op] as () => unknown, entries());
    });
  }
});
