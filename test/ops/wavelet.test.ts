import { describe, expect, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import { draw } from "../support/arrays.js";
import { checkOp, expectError, fromArr, input, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

const shapes = [
  [2, 2, 2, 4, 3],
  [1, 3, 5, 1, 2],
  [1, 1, 1, 1, 1],
  [2, 1, 4, 3, 5],
  [0, 2, 2, 2, 3],
  [1, 2, 3, 3, 17],
];

describe("haar", () => {
  it("splits into eight bands", async () => {
    for (const shape of shapes) {
      await checkOp({
        operands: { x: input(draw(shape, 1)) },
        run: ({ x }) => ops.haar(x),
        reference: ({ x }) => reference.wavelet.haar(x),
      });
    }
  });

  it("keeps its accuracy over many blocks", async () => {
    await checkOp({
      operands: { x: input(draw([1, 5, 9, 700, 3], 1)) },
      run: ({ x }) => ops.haar(x),
      reference: ({ x }) => reference.wavelet.haar(x),
      gradient: false,
    });
  });

  it("rejects other ranks", () => {
    expectError("shape_mismatch", /\[haar\] expects \(B,F,H,W,C\), got \[2,2\]/, () => ops.haar(some([2, 2])));
  });
});

describe("haarL1", () => {
  it("is the mean magnitude of the difference's bands", async () => {
    for (const shape of shapes) {
      await checkOp({
        operands: { a: input(draw(shape, 1)), b: input(draw(shape, 2)) },
        run: ({ a, b }) => ops.haarL1(a, b),
        reference: ({ a, b }) => reference.wavelet.haarL1(a, b),
      });
    }
  });

  it("is zero for equal videos, without gradient noise", async () => {
    const x = draw([1, 3, 3, 3, 2], 1);
    expect([...(await ops.haarL1(fromArr(x), fromArr(x)).read())]).toEqual([0, 0]);
  });

  it("rejects videos of two shapes", () => {
    expectError("shape_mismatch", /\[haar_l1\] expects two videos.*\[1,2,2,2,3\] and \[1,2,2,2,2\]/, () => {
      ops.haarL1(some([1, 2, 2, 2, 3]), some([1, 2, 2, 2, 2]));
    });
  });
});
