import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { NormKind } from "../../lib/ops/index.js";
import * as ops from "../../lib/ops/index.js";
import { backward, device, Tensor } from "../../lib/tensor/index.js";
import { draw, relativeError, roundTo } from "../support/arrays.js";
import { checkOp, expectError, fromArr, input, parameter, some } from "../support/gradcheck.js";
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

/** All gradients against their formulas. */
async function verifyGradients(v: Variant, dtype: "f32" | "bf16"): Promise<void> {
  const { kind, shape, table = 0, activation = "none" } = v;
  const channels = shape[shape.length - 1];
  const options = { kind, eps: 1e-6, activation, groups: kind === "group_norm" && channels % 4 === 0 ? 4 : 1 };
  const [weight, bias] = [draw([channels], 2, 0.5, 1.5), draw([channels], 3)];
  const [x, seed] = [roundTo(dtype, draw(shape, 1, -1, 2)), roundTo(dtype, draw(shape, 5))];
  const ada = table ? roundTo(dtype, draw([table, 3, channels], 4, -1, 1)) : null;
  const modulated = <T>(ada: T | null) => ada && { ada, shift: 2, scale: 0 };
  const expected = reference.norm.normActBackward(x, seed, { ...options, weight, bias, modulation: modulated(ada) });
  const given = {
    dx: fromArr(x, dtype),
    dweight: fromArr(weight),
    dbias: fromArr(bias),
    dada: ada && fromArr(ada, dtype),
  };
  for (const t of Object.values(given)) if (t) t.requiresGrad = true;
  const modulation = modulated(given.dada);
  const y = ops.normAct(given.dx, { ...options, weight: given.dweight, bias: given.dbias, modulation });
  backward(y, fromArr(seed, dtype));
  for (const [name, tensor] of Object.entries(given)) {
    if (!tensor) continue;
    const wanted = expected[name as keyof typeof expected]!;
    const error = relativeError(await tensor.grad!.read(), wanted.data);
    const label = `${dtype} ${name} of ${kind} [${shape}] with a table of ${table}`;
    expect(error, label).toBeLessThan(tensor.dtype === "bf16" ? 4e-3 : 1e-5);
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

  it("has exact gradients over wide rows, short rows and many of them", async () => {
    // From several rows a warp to more channels than any block of threads holds at once, odd ones too.
    const sizes = [
      [300, 8],
      [700, 40],
      [60, 136],
      [40, 264],
      [24, 1037],
      [12, 2056],
      [8, 4104],
    ];
    for (const kind of kinds) {
      for (const [i, [rows, channels]] of sizes.entries()) {
        const table = [0, 1, 4][i % 3];
        const activation = i % 2 ? "silu" : "none";
        const variant: Variant = { kind, shape: [2, rows / 2, channels], table, activation };
        for (const dtype of ["f32", "bf16"] as const) await verifyGradients(variant, dtype);
      }
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

describe.runIf(device().name === "cpu")("layer norm of few channels on the CPU", () => {
  it("keeps what three nearly cancelling terms leave of a gradient", async () => {
    for (const channels of [2, 3, 5]) {
      const rows = 40;
      const eps = 1e-6;
      const x = Float32Array.from(
        { length: rows * channels },
        (_, i) => 0.7 + Math.sin(i * 12.9898) * 10 ** -((i % 7) / 2),
      );
      const dy = Float32Array.from({ length: x.length }, (_, i) => Math.cos(i * 4.1414));
      const expected = new Float64Array(x.length);
      for (let r = 0; r < x.length; r += channels) {
        const row = [...x.slice(r, r + channels)];
        const g = [...dy.slice(r, r + channels)];
        const mean = (f: (i: number) => number) => row.reduce((sum, _, i) => sum + f(i), 0) / channels;
        const center = mean((i) => row[i]);
        const rstd = 1 / Math.sqrt(mean((i) => (row[i] - center) ** 2) + eps);
        const k0 = mean((i) => g[i]);
        const k1 = mean((i) => g[i] * (row[i] - center)) * rstd ** 2;
        for (let i = 0; i < channels; i++) expected[r + i] = rstd * (g[i] - k0 - (row[i] - center) * k1);
      }
      const input = Tensor.from(x, [rows, channels]);
      input.requiresGrad = true;
      const y = ops.normAct(input, { kind: "layer_norm", eps });
      backward(y, Tensor.from(dy, y.shape));
      const found = await (input.grad as Tensor).read();
      expect(relativeError(Float64Array.from(found), expected), `${channels} channels`).toBeLessThan(1e-6);
    }
  });
});
