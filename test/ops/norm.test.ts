import fc from "fast-check";
import { describe, it } from "vitest";
import type { NormKind } from "../../lib/ops/index.js";
import * as ops from "../../lib/ops/index.js";
import { draw } from "../support/arrays.js";
import { checkOp, expectError, input, parameter, some } from "../support/gradcheck.js";
import * as reference from "../support/reference.js";

const kinds: NormKind[] = ["none", "pixel_norm", "rms_norm", "layer_norm", "group_norm"];

interface Variant {
  kind: NormKind;
  shape: number[];
  weight?: boolean;
  bias?: boolean;
  /** Modulated by a table of that many groups; 0 for none. */
  table?: number;
  activation?: "none" | "silu";
  groups?: number;
  eps?: number;
  gradient?: boolean;
}

async function verify(v: Variant): Promise<void> {
  const { kind, shape, weight, bias, table = 0, activation = "none", groups = 1, eps = 1e-6 } = v;
  const channels = shape[shape.length - 1];
  for (const tableRole of table ? [input, parameter] : [input]) {
    await checkOp({
      operands: {
        x: input(draw(shape, 1)),
        weight: weight ? parameter(draw([channels], 2, 0.5, 1.5)) : null,
        bias: bias ? parameter(draw([channels], 3)) : null,
        ada: table ? tableRole(draw([table, 3, channels], 4, -1, 1)) : null,
      },
      run: ({ x, weight, bias, ada }) => {
        const modulation = ada && { ada, shift: 2, scale: 0 };
        return ops.normAct(x, { kind, eps, weight, bias, modulation, activation, groups });
      },
      reference: ({ x, weight, bias, ada }) => {
        const modulation = ada && { ada, shift: 2, scale: 0 };
        return reference.norm.normAct(x, { kind, eps, weight, bias, modulation, activation, groups });
      },
      tolerance: { bf16: 1e-2, gradientBf16: 1.5e-2 },
      gradient: v.gradient,
    });
  }
}

describe("normAct", () => {
  for (const kind of kinds) {
    describe(kind, () => {
      for (const optional of [0, 1, 2, 3, 4, 5, 6, 7]) {
        const [weight, bias, modulated] = [(optional & 1) > 0, (optional & 2) > 0, (optional & 4) > 0];
        const parts =
          [weight && "weight", bias && "bias", modulated && "table"].filter(Boolean).join(", ") || "nothing else";
        it(`with ${parts}`, async () => {
          for (const activation of ["none", "silu"] as const) {
            const groups = kind === "group_norm" ? 3 : 1;
            await verify({ kind, shape: [2, 3, 6], weight, bias, table: modulated ? 2 : 0, activation, groups });
          }
        });
      }
    });
  }

  it("takes odd and single channels, one sample, one row", async () => {
    for (const kind of kinds) {
      await verify({ kind, shape: [2, 2, 3, 17], weight: true, table: 4, activation: "silu" });
      await verify({ kind, shape: [1, 5], bias: true });
      await verify({ kind, shape: [3, 1, 1, 1, 5], table: 3 });
    }
    for (const kind of ["none", "pixel_norm", "rms_norm"] as const)
      await verify({ kind, shape: [4, 1], weight: true, eps: 0.1 });
  });

  it("modulates runs that are not samples: one table for all, one a row, and runs across group norm's samples", async () => {
    for (const kind of ["layer_norm", "group_norm"] as const) {
      for (const table of [1, 2, 4, 8]) {
        await verify({
          kind,
          shape: [4, 2, 6],
          table,
          groups: kind === "group_norm" ? 2 : 1,
          weight: true,
          bias: true,
        });
      }
    }
  });

  it("takes a large eps", async () => {
    for (const kind of kinds) await verify({ kind, shape: [2, 4, 6], eps: 0.5 });
  });

  it("keeps its accuracy over many rows and wide rows", async () => {
    for (const kind of kinds) {
      await verify({
        kind,
        shape: [2, 700, 48],
        weight: true,
        bias: true,
        table: 2,
        activation: "silu",
        groups: 4,
        gradient: false,
      });
      await verify({ kind, shape: [3, 2500], weight: true, gradient: false });
    }
  });

  it("takes empty batches", async () => {
    for (const kind of kinds) {
      await verify({ kind, shape: [0, 3, 6], weight: true, bias: true });
      await verify({ kind, shape: [2, 0, 6], weight: true, table: 2 });
    }
  });

  it("takes an empty batch with an empty table", async () => {
    await checkOp({
      operands: { x: input(draw([0, 3, 6], 1)), ada: input(draw([0, 2, 6], 2)) },
      run: ({ x, ada }) => ops.normAct(x, { kind: "rms_norm", modulation: { ada, shift: 0, scale: 1 } }),
      reference: ({ x }) => x,
    });
  });

  it("fits its reference for drawn shapes", async () => {
    const shapes = fc.record({
      kind: fc.constantFrom(...kinds),
      samples: fc.integer({ min: 1, max: 3 }),
      rows: fc.integer({ min: 1, max: 4 }),
      channels: fc.integer({ min: 1, max: 5 }),
      groups: fc.integer({ min: 1, max: 3 }),
      weight: fc.boolean(),
      modulated: fc.boolean(),
    });
    const check = fc.asyncProperty(shapes, async ({ kind, samples, rows, channels, groups, weight, modulated }) => {
      const shape = [samples, rows, channels * groups + 1 - ((channels * groups) % 2)];
      const fitting = shape[2] % groups === 0 ? groups : 1;
      if (kind === "group_norm" && (rows * shape[2]) / fitting < 3) return;
      if (kind === "layer_norm" && shape[2] < 3) return;
      await verify({
        kind,
        shape,
        groups: fitting,
        weight,
        table: modulated ? samples : 0,
        activation: "silu",
        eps: 1e-2,
      });
    });
    await fc.assert(check, { seed: 7, numRuns: 12 });
  });

  it("rejects what does not fit", () => {
    const x = () => some([2, 3, 6]);
    const norm = (options: Partial<ops.NormOptions>) => () => ops.normAct(x(), { kind: "layer_norm", ...options });
    expectError("shape_mismatch", /\[norm\] weight expects f32 \[6\], got Tensor\(f32 \[5\]/, () =>
      norm({ weight: some([5]) })(),
    );
    expectError("shape_mismatch", /\[norm\] bias expects f32 \[6\], got Tensor\(bf16 \[6\]/, () =>
      norm({ bias: some([6], "bf16") })(),
    );
    expectError(
      "shape_mismatch",
      /\[norm\] 6 channels do not divide into 4 groups/,
      norm({ kind: "group_norm", groups: 4 }),
    );
    const table = (shape: number[], shift = 0, scale = 1) => norm({ modulation: { ada: some(shape), shift, scale } });
    expectError("shape_mismatch", /\[norm\] modulation table \[2,2,5\]/, () => table([2, 2, 5])());
    expectError("shape_mismatch", /\[norm\] modulation table \[4,2,6\]/, () => table([4, 2, 6])());
    expectError("shape_mismatch", /\[norm\] modulation table \[2,2,6\]/, () => table([2, 2, 6], 2)());
    expectError("dtype_mismatch", /\[norm\] .*i32/, () => ops.normAct(some([2, 3], "i32"), { kind: "layer_norm" }));
  });
});
