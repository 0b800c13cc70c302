import { describe, expect, it } from "vitest";
import type { LtxError } from "../../lib/errors.js";
import * as native from "../../lib/native.js";
import { device, empty, launch, type Operand, Tensor } from "../../lib/tensor/index.js";
import { expectError, some } from "../support/gradcheck.js";

const f32 = (...shape: number[]) => some(shape);

/** Calls that the ops never make: native code has to refuse them by itself. */
const impossible: [op: string, operands: Operand[], scalars: number[], why: RegExp][] = [
  ["fill", [some([2], "i32"), f32(2)], [0], /wrong number of operands/],
  ["cast", [f32(3), f32(2)], [1, 0], /operand y is f32 \[2\], which is not ~#N/],
  ["cast", [f32(4), empty([4], { dtype: "u8" })], [1, 0], /operand y is u8 \[4\]/],
  ["mul", [f32(4), f32(2), f32(4)], [], /M=N\|M=1 does not hold/],
  ["unary", [f32(4), f32(4)], [Number.NaN, 0, 0], /kind>=0 does not hold/],
  ["unary", [f32(4), f32(4)], [99, 0, 0], /kind<UNARY does not hold/],
  ["add_rows", [f32(4), f32(0), f32(4)], [], /C>0 does not hold/],
  ["add_rows", [f32(4), f32(3), f32(4)], [], /N%C=0 does not hold/],
  ["reduce", [f32(2, 3), f32(3)], [0, 1], /operand y is f32 \[3\]/],
  ["norm_act", [f32(2, 4), null, null, null, f32(2, 4), f32(1)], [2, 0, 1e-5, 1, 0, 0], /Q>=/],
  ["norm_act", [f32(2, 4), null, null, f32(1, 2, 4), f32(2, 4), f32(2)], [2, 0, 1e-5, 1, -1e8, 0], /shift_row>=0/],
  ["norm_act", [f32(2, 4), null, null, f32(1, 2, 4), f32(2, 4), f32(2)], [2, 0, 1e-5, 1, 0, 2], /scale_row>=0/],
  ["norm_act", [f32(2, 4), null, null, null, f32(2, 4), f32(4)], [4, 0, 1e-5, 3, 0, 0], /groups>0/],
  ["gated_add", [f32(2, 4), f32(2, 4), f32(1, 2, 4), f32(2, 4)], [-1e7], /gate_row>=0 does not hold/],
  ["gated_add", [f32(2, 4), f32(2, 4), f32(1, 2, 4), f32(2, 4)], [2], /gate_row<M does not hold/],
  ["gated_add", [f32(3, 4), f32(3, 4), f32(2, 2, 4), f32(3, 4)], [0], /R%G=0 does not hold/],
  ["linear", [f32(2, 4), f32(3, 5), null, f32(2, 3), null], [0], /operand w is f32 \[3,5\]/],
  ["linear", [f32(2, 4), f32(3, 4), null, f32(3, 3), null], [0], /operand y is f32 \[3,3\]/],
  [
    "conv3d",
    [f32(1, 2, 4, 4, 3), f32(2, 1, 3, 3, 3), null, null, f32(1, 2, 4, 4, 2)],
    [1, 1, 1, 0, 0, 0, 0, 0],
    /HO=.* does not hold/,
  ],
  [
    "conv3d",
    [f32(1, 2, 4, 4, 3), f32(2, 1, 1, 1, 3), null, some([1, 2, 4, 4, 2], "bf16"), f32(1, 2, 4, 4, 2)],
    [1, 1, 1, 0, 0, 0, 0, 0],
    /operand residual is bf16/,
  ],
  [
    "attention",
    [
      f32(1, 3, 4),
      f32(1, 3, 4),
      f32(1, 3, 4),
      null,
      null,
      f32(3, 4),
      f32(1),
      null,
      null,
      f32(1, 3, 4),
      f32(1, 2, 3),
      null,
      null,
    ],
    [2, 1e-5, 1],
    /operand sin is f32 \[1\]/,
  ],
  ["rope", [some([1, 1, 2], "i32"), f32(1, 2), f32(1, 2), f32(1, 1, 2)], [0], /operand x is i32/],
  ["depth_to_space", [f32(1, 1, 1, 1, 4), f32(1, 1, 2, 2, 1)], [1, 2, 2, 0, 0, 0.5], /operand y is|repeat>0/],
  ["depth_to_space", [f32(1, 1, 1, 1, 4), f32(1, 1, 2, 2, 1)], [0, 2, 2, 0, 0, 1], /operand y is/],
  ["slice_last", [f32(2, 4), f32(2, 2)], [-1], /start>=0&?.* does not hold|start>=0 does not hold/],
  ["slice_last", [f32(2, 4), f32(2, 2)], [3], /start\+Y<=C does not hold/],
  ["slice_last", [empty([2, 4], { dtype: "u8" }), empty([2, 2], { dtype: "u8" })], [0], /operand x is u8/],
  ["haar", [f32(1, 2, 2, 2, 1), f32(1, 8, 1, 1, 2, 1)], [], /operand y is/],
  ["normal", [f32(4)], [-1, 0, 0], /seed>=0 does not hold/],
  ["global_norm", [f32(0), f32(4)], [], /operand norm is f32 \[0\]/],
  ["adam", [null, f32(8), f32(2), f32(8), f32(8)], [1, 0.9, 0.9, 1e-8, 0, 0, 1, 1, 0], /list grad is f32 \[2\]/],
  ["adam", [null, f32(8), f32(8), f32(8)], [1, 0.9, 0.9, 1e-8, 0, 0, 1, 1, 0], /wrong number of operands/],
  ["ema", [f32(8), empty([8], { dtype: "u8" })], [0.5], /list average|list value/],
];

describe("native code", () => {
  for (const [op, operands, scalars, why] of impossible) {
    it(`refuses ${op} where ${why.source}`, async () => {
      let error: unknown;
      try {
        launch(op, operands, scalars);
      } catch (thrown) {
        error = thrown;
      }
      expect((error as LtxError)?.name).toBe("LtxError");
      expect((error as LtxError).message).toMatch(new RegExp(`^\\[${op}\\] `));
      expect((error as LtxError).message).toMatch(why);
      await device().synchronize();
    });
  }

  it("takes no operands of the wrong number or kind for any op", async () => {
    // Shapes that fit nothing in particular: what is not refused must at least run.
    for (const [op, operands, scalars] of native.ops()) {
      const count = operands.split(" ").filter((word) => !/^[-=]>$/.test(word)).length;
      const numbers = scalars
        .split(" ")
        .filter((word) => word !== "")
        .map(() => -7);
      for (const tensor of [
        f32(2, 3),
        f32(),
        f32(0, 2 ** 40),
        some([1, 2, 2, 2, 2], "bf16"),
        empty([5], { dtype: "u8" }),
      ]) {
        try {
          launch(op, Array(count).fill(tensor), numbers);
        } catch (error) {
          expect((error as LtxError).name, op).toBe("LtxError");
        }
      }
    }
    await device().synchronize();
  });

  it("refuses shapes, groups and dtypes that are none", () => {
    const cpu = device().handle;
    const id = Tensor.from([1, 2], [2]).handle;
    for (const shape of [
      [-1],
      [1.5],
      [Number.NaN],
      [2 ** 32, 2 ** 30],
      [2 ** 40, 2 ** 40, 0],
      Array(9).fill(1),
      Array(200).fill(1),
    ]) {
      expectError("invalid_argument", /can't have this shape/, () => native.empty(cpu, "f32", "data", shape));
      expectError("invalid_argument", /can't have this shape/, () => native.view(id, shape, 0));
    }
    for (const offset of [-1, 3, 2 ** 53]) {
      expectError("shape_mismatch", /may not reach past its tensor/, () => native.view(id, [1], offset));
    }
    expectError("invalid_argument", /not a whole number/, () => native.view(id, [1], 0.5));
    expectError("invalid_argument", /not a whole number/, () => native.empty(cpu, "float32" as never, "data", [2]));
    expectError("invalid_argument", /not a whole number/, () => native.empty(cpu, "f32", "weights" as never, [2]));
    expectError("invalid_argument", /no such device/, () => native.empty(99, "f32", "data", [2]));
  });

  it("refuses files that are not mapped, and numbers that name nothing", () => {
    const id = Tensor.from([1, 2], [2]).handle;
    for (const file of [-1, 0.5, 99, 2 ** 32]) {
      expectError("invalid_argument", /is mapped$|not a whole number/, () => native.unmapFile(file));
      expectError("invalid_argument", /is mapped$|not a whole number/, () =>
        native.loadMapped(id, file, 0, 0, [1, 1, 2]),
      );
    }
    expectError("disposed", /tensor 1000000 is disposed/, () => native.release(1_000_000));
    expectError("invalid_argument", /not a whole number of 32 bits/, () => native.release(2 ** 32 + id));
    expectError("invalid_argument", /not a number of bytes/, () => native.setLimit(device().handle, -1));
  });

  it("copies what lies in shared memory", async () => {
    const shared = new Float32Array(new SharedArrayBuffer(8));
    shared.set([1, 2]);
    expect([...(await Tensor.from(shared, [2]).read())]).toEqual([1, 2]);
  });
});

describe("memory limits", () => {
  it("are bytes or sizes, and nothing else", () => {
    const cpu = device();
    const before = cpu.memory().limit;
    try {
      cpu.setMemoryLimit("2GB");
      expect(cpu.memory().limit).toBe(2e9);
      for (const wrong of [Number.NaN, -1, 1.5, Infinity, "abc", "-1", "", null, undefined, {}]) {
        expectError(
          "invalid_argument",
          /^\[memory\] the limit is .*expected a number of bytes or a size such as 8GB/,
          () => cpu.setMemoryLimit(wrong as never),
        );
      }
      expect(cpu.memory().limit).toBe(2e9);
    } finally {
      cpu.setMemoryLimit(before);
    }
  });
});
