import { describe, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import { draw } from "../support/arrays.js";
import { checkOp, constant, expectError, f32, input, parameter, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

describe("gatedAdd", () => {
  it("adds a gated branch", async () => {
    for (const [shape, groups] of [
      [[2, 3, 5], 2],
      [[4, 17], 1],
      [[1, 1, 1], 1],
      [[2, 2, 3, 3], 4],
      [[2, 3, 16], 2],
      [[0, 3, 5], 1],
      [[0, 3, 5], 0],
    ] as const) {
      for (const role of [input, parameter]) {
        await checkOp({
          operands: {
            x: input(draw(shape, 1)),
            h: role(draw(shape, 2)),
            ada: role(draw([groups, 3, shape[shape.length - 1]], 3)),
          },
          run: ({ x, h, ada }) => ops.gatedAdd(x, h, ada, 1),
          reference: ({ x, h, ada }) => reference.elementwise.gatedAdd(x, h, ada, 1),
        });
      }
    }
  });

  it("rejects what does not fit", () => {
    const message = /\[gated_add\] table \[2,3,4\] with gate row \d does not fit input \[2,3,5\]/;
    expectError("shape_mismatch", message, () => ops.gatedAdd(some([2, 3, 5]), some([2, 3, 5]), some([2, 3, 4]), 0));
    expectError("shape_mismatch", /gate row 3/, () =>
      ops.gatedAdd(some([2, 3, 5]), some([2, 3, 5]), some([2, 3, 5]), 3),
    );
    expectError("shape_mismatch", /\[gated_add\] x \[2,3,5\] and h \[2,3,4\] differ/, () => {
      ops.gatedAdd(some([2, 3, 5]), some([2, 3, 4]), some([2, 3, 5]), 0);
    });
  });
});

describe("addPlane", () => {
  it("adds a plane, scaled a channel", async () => {
    for (const shape of [
      [2, 3, 2, 3, 5],
      [1, 1, 1, 1, 1],
      [1, 2, 1, 4, 17],
      [2, 1, 2, 3, 8],
      [0, 2, 2, 2, 3],
    ]) {
      for (const role of [f32, constant]) {
        await checkOp({
          operands: {
            x: input(draw(shape, 1)),
            plane: role(draw([shape[2], shape[3]], 2)),
            scale: parameter(draw([shape[4]], 3)),
          },
          run: ({ x, plane, scale }) => ops.addPlane(x, plane, scale),
          reference: ({ x, plane, scale }) => reference.elementwise.addPlane(x, plane, scale),
        });
      }
    }
  });

  it("rejects what does not fit", () => {
    expectError("shape_mismatch", /\[add_plane\] plane \[2,2\] and scale \[5\] do not fit input \[1,2,2,3,5\]/, () => {
      ops.addPlane(some([1, 2, 2, 3, 5]), some([2, 2]), some([5]));
    });
  });
});
