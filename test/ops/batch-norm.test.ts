import { describe, expect, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import { backward, Tensor } from "../../lib/tensor/index.js";
import { type Arr, arr, draw, relativeError } from "../support/arrays.js";
import { checkOp, expectError, f32, fromArr, input, parameter, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

// Of two rows nearly nothing would be left of the gradient, and no digits of it.
const shapes = [
  [2, 3, 2, 2, 5],
  [7, 1],
  [5, 17],
  [3, 2, 33],
  [5, 16],
  [2, 1, 3, 1, 4],
];

interface Variant {
  shape: number[];
  training: boolean;
  weight?: boolean;
  bias?: boolean;
  gradient?: boolean;
}

/** The op updates its buffers, so each run gets buffers of its own with the drawn values. */
async function verify({ shape, training, weight = true, bias = true, gradient }: Variant): Promise<void> {
  const channels = shape[shape.length - 1];
  const mean = draw([channels], 4);
  const variance = draw([channels], 5, 0.5, 2);
  await checkOp({
    operands: {
      x: input(draw(shape, 1)),
      weight: weight ? parameter(draw([channels], 2, 0.5, 1.5)) : null,
      bias: bias ? parameter(draw([channels], 3)) : null,
      runningMean: f32(mean),
      runningVar: f32(variance),
    },
    run: ({ x, ...rest }) => ops.batchNorm(x, { ...rest, training }),
    reference: ({ x, weight, bias }) => {
      const stats = training ? reference.norm.channelStats(x) : { mean, variance };
      return reference.norm.batchNorm(x, stats, weight, bias);
    },
    tolerance: { gradientBf16: 1.5e-2 },
    gradient,
  });
}

/** Buffers with these values and what training on x makes of them. */
async function update(x: Tensor, mean: Arr, variance: Arr, momentum?: number) {
  const [runningMean, runningVar] = [fromArr(mean), fromArr(variance)];
  ops.batchNorm(x, { runningMean, runningVar, training: true, momentum });
  return Promise.all([runningMean.read(), runningVar.read()]);
}

describe("batchNorm", () => {
  for (const training of [true, false]) {
    const mode = training ? "training" : "evaluation";
    it(`in ${mode}, with every operand that may be left out`, async () => {
      for (const shape of shapes) {
        for (const weight of [false, true]) {
          for (const bias of [false, true]) await verify({ shape, training, weight, bias });
        }
      }
    });

    it(`in ${mode}, over many rows and wide ones`, async () => {
      for (const shape of [
        [2, 5, 50, 20, 64],
        [1000, 3],
        [3, 2500],
      ]) {
        await verify({ shape, training, gradient: false });
      }
    });

    it(`in ${mode}, of nothing`, async () => {
      for (const shape of [
        [0, 2, 2, 2, 5],
        [2, 3, 0],
      ]) {
        await verify({ shape, training });
      }
    });
  }

  it("evaluates a single row", async () => {
    await verify({ shape: [1, 6], training: false });
  });

  it("has exact gradients over many slabs of rows", async () => {
    const x = draw([4000, 40], 1, 1, 3);
    const seed = draw([4000, 40], 2);
    const [runningMean, runningVar] = [fromArr(arr([40])), fromArr(arr([40]))];
    const weight = fromArr(draw([40], 3));
    const given = fromArr(x);
    given.requiresGrad = weight.requiresGrad = true;
    backward(ops.batchNorm(given, { weight, runningMean, runningVar, training: true }), fromArr(seed));
    const expected = reference.norm.batchNormBackward(x, seed, draw([40], 3));
    expect(relativeError(await given.grad!.read(), expected.dx.data)).toBeLessThan(1e-5);
    expect(relativeError(await weight.grad!.read(), expected.dweight.data)).toBeLessThan(1e-5);
  });

  it("moves the running statistics, the variance by its unbiased estimate", async () => {
    for (const shape of [...shapes, [9000, 20]]) {
      const x = draw(shape, 6, -1, 4);
      const channels = shape[shape.length - 1];
      const [mean, variance] = [draw([channels], 7), draw([channels], 8, 0.5, 2)];
      const stats = reference.norm.channelStats(x);
      const rows = x.data.length / channels;
      for (const momentum of [undefined, 0.4]) {
        const share = momentum ?? 0.1;
        const [newMean, newVariance] = await update(fromArr(x), mean, variance, momentum);
        const expectedMean = mean.data.map((v, c) => (1 - share) * v + share * stats.mean.data[c]);
        const unbiased = stats.variance.data.map((v) => (v * rows) / (rows - 1));
        const expectedVariance = variance.data.map((v, c) => (1 - share) * v + share * unbiased[c]);
        expect(relativeError(newMean, expectedMean)).toBeLessThan(1e-6);
        expect(relativeError(newVariance, expectedVariance)).toBeLessThan(1e-6);
      }
    }
  });

  it("leaves the running statistics alone in evaluation, and where there is nothing to learn from", async () => {
    const [runningMean, runningVar] = [Tensor.from([1, 2], [2]), Tensor.from([3, 4], [2])];
    ops.batchNorm(some([5, 2]), { runningMean, runningVar, training: false });
    ops.batchNorm(some([0, 2]), { runningMean, runningVar, training: true });
    expect([...(await runningMean.read())]).toEqual([1, 2]);
    expect([...(await runningVar.read())]).toEqual([3, 4]);
  });

  it("keeps the variance of values far from zero", async () => {
    const x = draw([20_000, 3], 9, 999, 1001);
    const [, variance] = await update(fromArr(x), arr([3]), arr([3]), 1);
    const expected = reference.norm.channelStats(x).variance.data.map((v) => (v * 20_000) / 19_999);
    expect(relativeError(variance, expected)).toBeLessThan(1e-5);
  });

  it("rejects what does not fit", () => {
    const buffers = (size = 3) => ({ runningMean: some([size]), runningVar: some([size]), training: true });
    expectError("shape_mismatch", /\[batch_norm\] weight expects \[3\], got \[2\] \(input shape \[4,3\]\)/, () =>
      ops.batchNorm(some([4, 3]), { ...buffers(), weight: some([2]) }),
    );
    expectError("shape_mismatch", /\[batch_norm\] bias expects \[3\], got \[4\]/, () =>
      ops.batchNorm(some([4, 3]), { ...buffers(), bias: some([4]) }),
    );
    expectError("shape_mismatch", /\[batch_norm\] runningMean expects \[3\], got \[5\]/, () =>
      ops.batchNorm(some([4, 3]), buffers(5)),
    );
    expectError("shape_mismatch", /\[batch_norm\] expects \(…,C\)/, () => ops.batchNorm(some([]), buffers(1)));
    expectError("dtype_mismatch", /\[batch_norm\] runningVar must be f32, got bf16/, () =>
      ops.batchNorm(some([4, 3]), { ...buffers(), runningVar: some([3], "bf16") }),
    );
    expectError("dtype_mismatch", /\[batch_norm\] .*i32/, () => ops.batchNorm(some([4, 3], "i32"), buffers()));
    expectError("invalid_argument", /\[batch_norm\] training needs more than one value per channel.*\[1,1,3\]/, () =>
      ops.batchNorm(some([1, 1, 3]), buffers()),
    );
  });
});
