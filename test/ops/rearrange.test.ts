import { describe, expect, it } from "vitest";
import * as ops from "../../lib/ops/index.js";
import { backward, scope, Tensor } from "../../lib/tensor/index.js";
import { arr, draw, relativeError, reshaped } from "../support/arrays.js";
import { checkOp, expectError, fromArr, input, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

const orders = ["time_height_width", "time_width_height"] as const;
const exact = { f32: 0, bf16: 0, gradientBf16: 1e-2 };

describe("depthToSpace", () => {
  for (const order of orders) {
    for (const dropFirst of [false, true]) {
      it(`${order}${dropFirst ? ", first frame dropped" : ""}`, async () => {
        for (const [stride, channels, repeat] of [
          [[2, 2, 2], 3, 1],
          [[2, 3, 1], 2, 1],
          [[1, 2, 3], 1, 2],
          [[1, 1, 1], 5, 3],
          [[2, 1, 1], 3, 2],
        ] as const) {
          const patch = stride[0] * stride[1] * stride[2];
          await checkOp({
            operands: { x: input(draw([2, 2, 2, 3, channels * patch], 1)) },
            run: ({ x }) => ops.depthToSpace(x, { stride, order, dropFirst, repeat }),
            reference: ({ x }) => reference.rearrange.depthToSpace(x, stride, order, dropFirst, repeat),
            tolerance: repeat === 1 ? exact : { ...exact, gradientBf16: 1e-2 },
          });
        }
      });
    }
  }

  it("moves whole vectors of channels", async () => {
    for (const [stride, channels, repeat, dropFirst] of [
      [[2, 2, 2], 8, 1, true],
      [[1, 2, 2], 16, 1, false],
      [[2, 1, 1], 8, 2, true],
      [[1, 1, 1], 8, 3, false],
      [[1, 3, 1], 8, 1, false],
    ] as const) {
      const patch = stride[0] * stride[1] * stride[2];
      for (const order of orders) {
        await checkOp({
          operands: { x: input(draw([1, 2, 1, 2, channels * patch], 1)) },
          run: ({ x }) => ops.depthToSpace(x, { stride, order, dropFirst, repeat }),
          reference: ({ x }) => reference.rearrange.depthToSpace(x, stride, order, dropFirst, repeat),
          tolerance: exact,
        });
      }
    }
  });

  it("takes single and empty extents", async () => {
    for (const shape of [
      [1, 1, 1, 1, 8],
      [0, 2, 2, 2, 8],
      [2, 0, 2, 2, 8],
    ]) {
      await checkOp({
        operands: { x: input(draw(shape, 1)) },
        run: ({ x }) => ops.depthToSpace(x, { stride: [2, 2, 2] }),
        reference: ({ x }) => reference.rearrange.depthToSpace(x, [2, 2, 2], "time_height_width", false, 1),
        tolerance: exact,
      });
    }
  });

  it("drops the only frame", async () => {
    await checkOp({
      operands: { x: input(draw([1, 1, 2, 2, 3], 1)) },
      run: ({ x }) => ops.depthToSpace(x, { stride: [1, 1, 1], dropFirst: true }),
      reference: ({ x }) => reference.rearrange.depthToSpace(x, [1, 1, 1], "time_height_width", true, 1),
    });
  });

  it("rejects channels that do not divide", () => {
    expectError(
      "shape_mismatch",
      /\[depth_to_space\] 6 channels do not divide by the stride 2·2·1 \(input shape \[1,1,2,2,6\]\)/,
      () => {
        ops.depthToSpace(some([1, 1, 2, 2, 6]), { stride: [2, 2, 1] });
      },
    );
    expectError("shape_mismatch", /\[depth_to_space\]/, () =>
      ops.depthToSpace(some([1, 2, 2, 8]), { stride: [2, 2, 2] }),
    );
  });
});

describe("spaceToDepth", () => {
  for (const order of orders) {
    it(order, async () => {
      for (const stride of [
        [2, 2, 2],
        [1, 2, 3],
        [2, 1, 1],
      ] as const) {
        await checkOp({
          operands: { x: input(draw([2, 4, 4, 6, 3], 1)) },
          run: ({ x }) => ops.spaceToDepth(x, { stride, order }),
          reference: ({ x }) => reference.rearrange.spaceToDepth(x, stride, order),
          tolerance: exact,
        });
      }
    });

    it(`undoes depthToSpace, ${order}`, async () => {
      const x = draw([2, 2, 3, 2, 12], 4);
      const y = scope(() =>
        ops.spaceToDepth(ops.depthToSpace(fromArr(x), { stride: [1, 2, 3], order }), { stride: [1, 2, 3], order }),
      );
      expect([...(await y.read())]).toEqual([...x.data]);
    });
  }

  it("rejects a video that does not divide", () => {
    expectError(
      "shape_mismatch",
      /\[space_to_depth\] input \[1,3,4,4,1\] does not divide by the stride \(2,2,2\)/,
      () => {
        ops.spaceToDepth(some([1, 3, 4, 4, 1]), { stride: [2, 2, 2] });
      },
    );
  });
});

describe("transpose and the channel orders", () => {
  it("transposes", async () => {
    for (const shape of [
      [2, 3, 5],
      [1, 1, 7],
      [3, 17, 1],
      [0, 2, 3],
      [2, 0, 3],
      [1, 65, 70],
      [2, 3, 401],
      [1, 1100, 2],
    ]) {
      await checkOp({
        operands: { x: input(draw(shape, 1)) },
        run: ({ x }) => ops.transpose(x),
        reference: ({ x }) => reference.rearrange.transpose(x),
        tolerance: exact,
        gradient: shape[1] * shape[2] < 100,
      });
    }
  });

  it("moves channels last and first", async () => {
    await checkOp({
      operands: { x: input(draw([2, 3, 2, 2, 5], 1)) },
      run: ({ x }) => ops.toChannelsLast(x),
      reference: ({ x }) => reshaped(reference.rearrange.transpose(reshaped(x, [2, 3, 20])), [2, 2, 2, 5, 3]),
      tolerance: exact,
    });
    await checkOp({
      operands: { x: input(draw([2, 2, 2, 5, 3], 1)) },
      run: ({ x }) => ops.toChannelsFirst(x),
      reference: ({ x }) => reshaped(reference.rearrange.transpose(reshaped(x, [2, 20, 3])), [2, 3, 2, 2, 5]),
      tolerance: exact,
    });
  });

  it("rejects other ranks", () => {
    expectError("shape_mismatch", /\[transpose\] expects \(B,M,N\), got \[2,3\]/, () => ops.transpose(some([2, 3])));
    expectError("shape_mismatch", /\[to_channels_last\] expects \(B,C,F,H,W\)/, () =>
      ops.toChannelsLast(some([2, 3, 1, 1])),
    );
    expectError("shape_mismatch", /\[to_channels_first\] expects \(B,F,H,W,C\)/, () =>
      ops.toChannelsFirst(some([2, 3, 1, 1])),
    );
  });
});

describe("slices", () => {
  it("takes columns", async () => {
    for (const [shape, start, count] of [
      [[3, 5], 1, 3],
      [[2, 2, 17], 0, 17],
      [[4, 1], 0, 1],
      [[2, 3], 3, 0],
      [[0, 3], 1, 2],
      [[3, 24], 8, 8],
      [[3, 24], 4, 12],
    ] as const) {
      await checkOp({
        operands: { x: input(draw(shape, 1)) },
        run: ({ x }) => ops.sliceLast(x, start, count),
        reference: ({ x }) => reference.rearrange.sliceLast(x, start, count),
        tolerance: exact,
      });
    }
  });

  it("takes samples from the same memory", async () => {
    const x = Tensor.from([1, 2, 3, 4, 5, 6], [3, 2]);
    const part = ops.sliceFirst(x, 1, 2);
    expect(part.shape).toEqual([2, 2]);
    expect([...(await part.read())]).toEqual([3, 4, 5, 6]);
    x.write([6, 5, 4, 3, 2, 1]);
    expect([...(await part.read())]).toEqual([4, 3, 2, 1]);
    expect((await ops.sliceFirst(x, 3, 0).read()).length).toBe(0);
  });

  it("rejects what is out of range", () => {
    expectError("shape_mismatch", /\[slice\] columns 2…5 of 4 \(input shape \[3,4\]\)/, () =>
      ops.sliceLast(some([3, 4]), 2, 3),
    );
    expectError("shape_mismatch", /\[slice\] columns -1/, () => ops.sliceLast(some([3, 4]), -1, 2));
    expectError("shape_mismatch", /\[slice\] samples 2…4 of 3/, () => ops.sliceFirst(some([3, 4]), 2, 2));
    expectError("invalid_argument", /\[slice\] samples of a tracked tensor/, () => {
      const x = some([3, 4]);
      x.requiresGrad = true;
      ops.sliceFirst(x, 0, 1);
    });
  });
});

describe("concatLast", () => {
  it("puts columns side by side", async () => {
    for (const [rows, left, right] of [
      [[3], 2, 5],
      [[2, 3, 2], 17, 1],
      [[], 3, 2],
      [[4], 0, 3],
      [[4], 3, 0],
      [[2, 0], 3, 1],
      [[1, 1], 1, 1],
      [[3], 8, 16],
      [[3], 4, 2],
    ] as const) {
      await checkOp({
        operands: { a: input(draw([...rows, left], 1)), b: input(draw([...rows, right], 2)) },
        run: ({ a, b }) => ops.concatLast(a, b),
        reference: ({ a, b }) => reference.rearrange.concatLast(a, b),
        tolerance: exact,
      });
    }
  });

  it("rejects what does not fit", () => {
    expectError(
      "shape_mismatch",
      /\[concat\] operands differ in more than the last dimension: \[2,3\] and \[3,3\]/,
      () => ops.concatLast(some([2, 3]), some([3, 3])),
    );
    expectError("shape_mismatch", /\[concat\]/, () => ops.concatLast(some([2, 3]), some([1, 2, 3])));
    expectError("dtype_mismatch", /\[concat\] operands are f32 and bf16/, () =>
      ops.concatLast(some([2, 3]), some([2, 3], "bf16")),
    );
  });
});

describe("gatherRows", () => {
  it("reads rows; gradients add up over repeated indices", async () => {
    for (const [table, index] of [
      [
        [5, 3],
        [
          [4, 0, 4],
          [1, 4, 0],
        ],
      ],
      [[1, 1], [[0, 0]]],
      [
        [4, 2, 3],
        [[3], [1]],
      ],
    ] as const) {
      const shape = [index.length, index[0].length];
      await checkOp({
        operands: {
          table: input(draw([...table], 1)),
          index: { role: "i32" as const, value: arr(shape, index.flat()) },
        },
        run: ({ table, index }) => ops.gatherRows(table, index),
        reference: ({ table, index }) => reference.rearrange.gatherRows(table, index),
        tolerance: { f32: 0, bf16: 0 },
      });
    }
  });

  it("looks up wide rows in small and large tables, many of them again and again", async () => {
    for (const [rows, width] of [
      [3, 8],
      [5, 133],
      [2100, 4],
      [2100, 3],
    ]) {
      const index = arr(
        [1, 70],
        Array.from({ length: 70 }, (_, i) => (i * i) % Math.min(rows, 11)),
      );
      index.data[69] = rows - 1;
      const table = draw([rows, width], 1);
      await checkOp({
        operands: { table: input(table), index: { role: "i32" as const, value: index } },
        run: ({ table, index }) => ops.gatherRows(table, index),
        reference: ({ table, index }) => reference.rearrange.gatherRows(table, index),
        tolerance: { f32: 0, bf16: 0 },
        gradient: rows < 10 && width < 10,
      });
      const leaf = fromArr(table);
      leaf.requiresGrad = true;
      const weights = draw([70, width], 2);
      backward(ops.gatherRows(leaf, Tensor.from(Int32Array.from(index.data), [70])), fromArr(weights));
      const expected = new Float64Array(rows * width);
      weights.data.forEach((w, i) => {
        expected[index.data[Math.floor(i / width)] * width + (i % width)] += w;
      });
      expect(relativeError(await (leaf.grad as Tensor).read(), expected)).toBeLessThan(1e-6);
    }
  });

  it("gathers nothing", async () => {
    expect(ops.gatherRows(some([3, 4]), some([0], "i32")).shape).toEqual([0, 4]);
  });

  it("report an index outside the table at the next read, and only there", async () => {
    const table = Tensor.from(Float32Array.of(1, 2, 3, 4, 5, 6), [3, 2]);
    for (const wrong of [3, -1]) {
      const rows = ops.gatherRows(table, Tensor.from(Int32Array.of(0, wrong), [2]));
      await expect(rows.read()).rejects.toMatchObject({
        name: "LtxError",
        code: "native",
        message: expect.stringMatching(/\[gather_rows\].*index.* outside the table/),
      });
      expect([...(await table.read())]).toEqual([1, 2, 3, 4, 5, 6]);
    }
  });

  it("rejects indices of another dtype", () => {
    expectError("dtype_mismatch", /\[gather_rows\] index must be i32, got f32/, () =>
      ops.gatherRows(some([3, 4]), some([2])),
    );
  });
});
