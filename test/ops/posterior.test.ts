import { describe, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import { arr, draw, map } from "../support/arrays.js";
import { checkOp, constant, expectError, f32, input, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

const shapes = [
  [2, 3, 6],
  [1, 2],
  [2, 2, 2, 2, 10],
  [0, 3, 4],
  [3, 1, 34],
];

describe("posteriorSample", () => {
  it("moves noise by mean and standard deviation", async () => {
    for (const shape of shapes) {
      const half = [...shape.slice(0, -1), shape[shape.length - 1] / 2];
      for (const role of [constant, f32]) {
        await checkOp({
          operands: { moments: input(draw(shape, 1)), noise: role(draw(half, 2)) },
          run: ({ moments, noise }) => ops.posteriorSample(moments, noise),
          reference: ({ moments, noise }) => reference.posterior.sample(moments, noise),
        });
      }
    }
  });

  it("clamps log-variances, which then have no gradient", async () => {
    const moments = arr([1, 6], [0.5, -1, 2, -40, 21, 1]);
    await checkOp({
      operands: { moments: input(moments), noise: constant(arr([1, 3], [1, -0.5, 2])) },
      run: ({ moments, noise }) => ops.posteriorSample(moments, noise),
      reference: ({ moments, noise }) => reference.posterior.sample(moments, noise),
    });
  });

  it("rejects noise that does not fit", () => {
    expectError("shape_mismatch", /\[posterior_sample\] noise expects \[2,3\], got \[2,6\]/, () =>
      ops.posteriorSample(some([2, 6]), some([2, 6])),
    );
    expectError("shape_mismatch", /\[posterior_sample\] moments need an even channel count, got \[2,5\]/, () =>
      ops.posteriorSample(some([2, 5]), some([2, 2])),
    );
  });
});

describe("posteriorKl and posteriorLogvar", () => {
  const cases = {
    posteriorKl: [ops.posteriorKl, reference.posterior.kl],
    posteriorLogvar: [ops.posteriorLogvar, reference.posterior.meanLogvar],
  } as const;
  for (const [name, [run, expected]] of Object.entries(cases)) {
    it(`${name} over each sample`, async () => {
      for (const shape of shapes) {
        await checkOp({
          operands: { moments: input(draw(shape, 1)) },
          run: ({ moments }) => run(moments),
          reference: ({ moments }) => expected(moments),
        });
      }
    });

    it(`${name} clamps log-variances`, async () => {
      const moments = map(arr([2, 4], [0.5, -1, -31, 3, 1, 2, 0.25, -35]), (v) => v);
      await checkOp({
        operands: { moments: input(moments) },
        run: ({ moments }) => run(moments),
        reference: ({ moments }) => expected(moments),
      });
    });
  }

  it("reject odd channel counts", () => {
    expectError("shape_mismatch", /\[posterior_kl\] moments need an even/, () => ops.posteriorKl(some([2, 5])));
    expectError("shape_mismatch", /\[posterior_logvar\] moments need an even/, () => ops.posteriorLogvar(some([2, 5])));
  });
});

describe("expandMoments", () => {
  it("repeats the last channel", async () => {
    for (const shape of [
      [2, 3, 4],
      [1, 2],
      [0, 5],
      [2, 1, 1, 2, 18],
    ]) {
      await checkOp({
        operands: { x: input(draw(shape, 1)) },
        run: ({ x }) => ops.expandMoments(x),
        reference: ({ x }) => reference.posterior.expand(x),
        tolerance: { f32: 0, bf16: 0 },
      });
    }
  });

  it("rejects a single channel", () => {
    expectError("shape_mismatch", /\[expand_moments\].*got \[2,1\]/, () => ops.expandMoments(some([2, 1])));
  });
});
