import { checkShape, choice, number, show } from "../arguments.js";
import { check } from "../errors.js";
import {
  alias,
  checkFloats,
  checkOperands,
  type DType,
  empty,
  launch,
  record,
  type Shape,
  sizeOf,
  type Tensor,
} from "../tensor/index.js";
import { Unary, type UnaryKind } from "./enums.js";

const FLOATS = { f32: true, bf16: true };
const DTYPES = { ...FLOATS, i32: true, u8: true };

const like = (x: Tensor, dtype: DType = x.dtype): Tensor => empty(x.shape, { dtype, device: x.device });

function sameSize(op: string, a: Tensor, b: Tensor): void {
  check(a.size === b.size, "shape_mismatch", () => `[${op}] operands differ in shape: [${a.shape}] and [${b.shape}]`);
}

/** What flows to an operand that had another shape than the result. */
const shaped = (grad: Tensor, shape: Shape): Tensor => (grad.shape.join() === shape.join() ? grad : alias(grad, shape));

/** A tensor of zeros. */
export function zeros(shape: Shape, options: Parameters<typeof empty>[1] = {}): Tensor {
  return full(shape, 0, options);
}

/** A tensor filled with `value`. */
export function full(shape: Shape, value: number, options: Parameters<typeof empty>[1] = {}): Tensor {
  number("full", "value", value);
  const y = empty(shape, options);
  launch("fill", [y], [value]);
  return y;
}

/** The same values under another shape; no copy. One dimension may be -1. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  checkOperands("reshape", { x });
  check(Array.isArray(shape), "invalid_argument", () => `[reshape] shape is ${show(shape)}, expected a list`);
  checkShape(
    "reshape",
    shape.map((d) => (d === -1 ? 1 : d)),
  );
  const known = sizeOf(shape.filter((d) => d !== -1));
  const full = shape.map((d) => (d === -1 ? x.size / known : d));
  check(full.every(Number.isInteger) && sizeOf(full) === x.size, "shape_mismatch", () => {
    return `[reshape] ${x.size} values of shape [${x.shape}] do not fit [${shape}]`;
  });
  return record("reshape", alias(x, full), [x], [], (grad) => [alias(grad, x.shape)]);
}

/** A new handle on the same memory that the tape does not see. */
export function detach(x: Tensor): Tensor {
  checkOperands("detach", { x });
  return alias(x, x.shape);
}

/** x · scale + shift in `dtype`, f32 or bf16: by default x's own, and f32 where x is i32 or u8. */
export function affine(x: Tensor, scale: number, shift = 0, dtype?: DType): Tensor {
  checkOperands("affine", { x });
  number("affine", "scale", scale);
  number("affine", "shift", shift);
  if (dtype !== undefined) choice("affine", "dtype", dtype, FLOATS);
  const y = like(x, dtype ?? (x.dtype === "bf16" ? "bf16" : "f32"));
  launch("cast", [x, y], [scale, shift]);
  return record("affine", y, [x], [], (grad) => [affine(grad, scale, 0, x.dtype)]);
}

/** The values in another dtype, f32 or bf16; x itself when it already has it. */
export function cast(x: Tensor, dtype: DType): Tensor {
  checkOperands("cast", { x });
  choice("cast", "dtype", dtype, x.dtype === dtype ? DTYPES : FLOATS);
  return x.dtype === dtype ? x : affine(x, 1, 0, dtype);
}

/** alpha·a + beta·b, elementwise, in a's dtype. */
export function axpby(alpha: number, a: Tensor, beta: number, b: Tensor): Tensor {
  checkFloats("add", { a, b });
  sameSize("add", a, b);
  number("add", "alpha", alpha);
  number("add", "beta", beta);
  const y = like(a);
  launch("axpby", [a, b, y], [alpha, beta]);
  return record("add", y, [a, b], [], (grad) => [
    alpha === 1 ? grad : affine(grad, alpha),
    shaped(beta === 1 && b.dtype === grad.dtype ? grad : affine(grad, beta, 0, b.dtype), b.shape),
  ]);
}

export const add = (a: Tensor, b: Tensor): Tensor => axpby(1, a, 1, b);
export const sub = (a: Tensor, b: Tensor): Tensor => axpby(1, a, -1, b);

/** a · b, elementwise, in a's dtype; b of one element is broadcast. */
export function mul(a: Tensor, b: Tensor): Tensor {
  checkFloats("mul", { a, b });
  if (b.size !== 1) sameSize("mul", a, b);
  const y = like(a);
  launch("mul", [a, b, y]);
  return record("mul", y, [a, b], [a, b], (grad, needs) => {
    const da = needs[0] ? like(a) : null;
    if (da) launch("mul", [grad, b, da]);
    let db: Tensor | null = null;
    if (needs[1]) {
      db = like(b);
      if (b.size === 1) launch("dot", [a, grad, db]);
      else launch("mul", [grad, a, db]);
    }
    return [da, db];
  });
}

/** An elementwise function; `clamp` takes its bounds, `leaky_relu` its slope as `lo`. */
export function unary(kind: UnaryKind, x: Tensor, lo = 0, hi = 0): Tensor {
  const code = choice("unary", "kind", kind, Unary);
  checkFloats(kind, { x });
  number(kind, "lo", lo);
  number(kind, "hi", hi);
  check(kind !== "clamp" || lo <= hi, "invalid_argument", () => {
    return `[clamp] the bounds are ${lo} and ${hi}, expected the lower one first`;
  });
  const scalars = [code, lo, hi];
  const y = like(x);
  launch("unary", [x, y], scalars);
  return record(kind, y, [x], [x], (grad) => {
    const dx = like(x);
    launch("unary_backward", [x, grad, dx], scalars);
    return [dx];
  });
}

export const silu = (x: Tensor): Tensor => unary("silu", x);
/** GELU in its tanh form, as the reference's feed-forward has it. */
export const gelu = (x: Tensor): Tensor => unary("gelu_tanh", x);
export const sigmoid = (x: Tensor): Tensor => unary("sigmoid", x);
export const exp = (x: Tensor): Tensor => unary("exp", x);
export const square = (x: Tensor): Tensor => unary("square", x);
export const abs = (x: Tensor): Tensor => unary("abs", x);
export const relu = (x: Tensor): Tensor => unary("relu", x);
/** x where it is positive, else slope · x. The default slope is that of the GAN discriminators (PyTorch's own is 0.01). */
export const leakyRelu = (x: Tensor, slope = 0.2): Tensor => unary("leaky_relu", x, slope);
/** log(1 + eˣ), exact far from zero too. */
export const softplus = (x: Tensor): Tensor => unary("softplus", x);
export const reciprocal = (x: Tensor): Tensor => unary("reciprocal", x);
/** Values limited to [lo, hi]; no gradient outside. */
export const clamp = (x: Tensor, lo: number, hi: number): Tensor => unary("clamp", x, lo, hi);

/** x (…, C) + row (C), in x's dtype. `row` may have more dimensions: it is repeated along the leading ones of x. */
export function addRows(x: Tensor, row: Tensor): Tensor {
  checkFloats("add_rows", { x, row });
  check(
    row.size > 0 && x.size % row.size === 0,
    "shape_mismatch",
    () => `[add_rows] [${row.shape}] does not repeat over [${x.shape}]`,
  );
  const y = like(x);
  const flat: Shape = [x.size / row.size, row.size];
  launch("add_rows", [[x, flat], [row, [row.size]], y]);
  return record("add_rows", y, [x, row], [], (grad, needs) => {
    let drow: Tensor | null = null;
    if (needs[1]) {
      drow = empty(row.shape, { device: x.device });
      launch("sum_rows", [
        [grad, flat],
        [drow, [row.size]],
      ]);
      drow = cast(drow, row.dtype);
    }
    return [grad, drow];
  });
}

/**
 * sa[i] · a[i] + sb[i] · b[i] for each sample i: a, b (B, …), sa, sb (B) f32 constants (1 where left out).
 * This is x_t of rectified flow (t · x0 + (1 - t) · noise) and the decoder's input (z + t · noise).
 */
export function mixRows(a: Tensor, b: Tensor | null, sa: Tensor | null, sb: Tensor | null): Tensor {
  checkFloats("mix_rows", { a }, { b, sa, sb });
  check(a.dims > 0, "shape_mismatch", () => `[mix_rows] expects (B,…), got [${a.shape}]`);
  if (b) sameSize("mix_rows", a, b);
  for (const s of [sa, sb]) {
    check(!s || (s.size === a.shape[0] && s.dtype === "f32"), "shape_mismatch", () => {
      return `[mix_rows] a factor for each of the ${a.shape[0]} samples is expected (f32), got ${s}`;
    });
  }
  const flat: Shape = [a.shape[0], a.shape[0] ? a.size / a.shape[0] : 0];
  const y = like(a);
  launch("mix_rows", [[a, flat], b && [b, flat], sa, sb, [y, flat]]);
  const scaled = (grad: Tensor, s: Tensor | null, dtype: DType): Tensor => {
    if (!s) return cast(grad, dtype);
    const d = empty(grad.shape, { dtype, device: grad.device });
    launch("mix_rows", [[grad, flat], null, s, null, [d, flat]]);
    return d;
  };
  return record("mix_rows", y, [a, b], [sa, sb], (grad, needs) => [
    needs[0] ? scaled(grad, sa, a.dtype) : null,
    b && needs[1] ? shaped(scaled(grad, sb, b.dtype), b.shape) : null,
  ]);
}
