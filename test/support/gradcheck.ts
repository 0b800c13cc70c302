/** Checks an op against a float64 reference: its values, and its gradients against the reference's central differences. */
import { expect } from "vitest";
import { backward, device, noGrad, type Shape, scope, Tensor } from "../../lib/tensor/index.js";
import { type Arr, arr, draw, relativeError, roundTo } from "./arrays.js";

/**
 * How an operand is given to an op: `input` and `constant` in the dtype under test, the others always as f32 or i32;
 * `input` and `parameter` want a gradient.
 */
export type Role = "input" | "constant" | "parameter" | "f32" | "i32";

export interface Operand {
  role: Role;
  value: Arr;
}

const operand =
  (role: Role) =>
  (value: Arr): Operand => ({ role, value });
export const input = operand("input");
export const constant = operand("constant");
export const parameter = operand("parameter");
export const f32 = operand("f32");
export const i32 = operand("i32");

/** A null operand is left out. */
export type Operands = Record<string, Operand | null>;
type Given<O, T> = { [K in keyof O]: null extends O[K] ? (O[K] extends null ? null : T | null) : T };

export interface OpCheck<O extends Operands> {
  operands: O;
  run(tensors: Given<O, Tensor>): Tensor;
  reference(arrays: Given<O, Arr>): Arr;
  /** Relative L2 bounds. */
  tolerance?: { f32?: number; bf16?: number; gradient?: number; gradientBf16?: number };
  dtypes?: readonly ("f32" | "bf16")[];
  gradient?: boolean;
}

/** d(sum of weights · f) / d(each value), by central differences. */
export function numericalGradient(f: () => Arr, weights: Arr, variable: Arr, eps = 1e-5): Arr {
  const loss = () => f().data.reduce((sum, v, i) => sum + v * weights.data[i], 0);
  return arr(
    variable.shape,
    Array.from(variable.data, (v, i) => {
      variable.data[i] = v + eps;
      const above = loss();
      variable.data[i] = v - eps;
      const below = loss();
      variable.data[i] = v;
      return (above - below) / (2 * eps);
    }),
  );
}

export function toTensor({ role, value }: Operand, dtype: "f32" | "bf16"): Tensor {
  const own = role === "i32" ? "i32" : role === "input" || role === "constant" ? dtype : "f32";
  return Tensor.from(own === "i32" ? Int32Array.from(value.data) : Float32Array.from(value.data), value.shape, {
    dtype: own,
  });
}

export const fromArr = (a: Arr, dtype: "f32" | "bf16" = "f32"): Tensor =>
  Tensor.from(Float32Array.from(a.data), a.shape, { dtype });

export async function liveBytes(): Promise<number> {
  await device().synchronize();
  return device().memory().live;
}

/**
 * Forward in f32 and bf16 against the reference at the same (rounded) inputs; gradients of all differentiable operands
 * together and of each alone; and that nothing is left in memory once the handles that were given out are disposed.
 */
export async function checkOp<O extends Operands>(check: OpCheck<O>): Promise<void> {
  for (const dtype of check.dtypes ?? (["f32", "bf16"] as const)) await checkDtype(check, dtype);
}

async function checkDtype<O extends Operands>(check: OpCheck<O>, dtype: "f32" | "bf16"): Promise<void> {
  const { operands, tolerance = {} } = check;
  const rounded = Object.entries(operands).map(([name, o]): [string, Operand | null] => {
    if (!o) return [name, null];
    return [
      name,
      { role: o.role, value: roundTo(o.role === "input" || o.role === "constant" ? dtype : "f32", o.value) },
    ];
  });
  const arrays = Object.fromEntries(rounded.map(([name, o]) => [name, o?.value ?? null])) as Given<O, Arr>;
  const expected = check.reference(arrays);
  const bound = dtype === "f32" ? (tolerance.f32 ?? 1e-5) : (tolerance.bf16 ?? 1e-2);
  const before = await liveBytes();
  const upload = () => rounded.map(([name, o]): [string, Tensor | null] => [name, o && toTensor(o, dtype)]);

  const tensors = upload();
  const y = noGrad(() => check.run(Object.fromEntries(tensors) as Given<O, Tensor>));
  expect(y.shape.join(), "shape of the result").toBe(expected.shape.join());
  expect(relativeError(await y.read(), expected.data), `${dtype} value`).toBeLessThanOrEqual(bound);
  y.dispose();
  for (const [, t] of tensors) t?.dispose();
  expect(await liveBytes(), "bytes left behind by forward").toBe(before);
  if (check.gradient === false) return;

  const weights = roundTo(y.dtype === "bf16" ? "bf16" : "f32", draw(expected.shape, 991));
  const wanted = rounded.filter(([, o]) => o?.role === "input" || o?.role === "parameter").map(([name]) => name);
  const numeric = new Map(
    wanted.map((name) => {
      const variable = (arrays as Record<string, Arr>)[name];
      return [name, numericalGradient(() => check.reference(arrays), weights, variable)];
    }),
  );
  const gradientBound = dtype === "f32" ? (tolerance.gradient ?? 1e-4) : (tolerance.gradientBf16 ?? 1e-2);
  const selections = wanted.length > 1 && dtype === "f32" ? [wanted, ...wanted.map((name) => [name])] : [wanted];
  for (const selected of selections) {
    const given = Object.fromEntries(upload());
    for (const name of selected) (given[name] as Tensor).requiresGrad = true;
    const seed = fromArr(weights, y.dtype === "bf16" ? "bf16" : "f32");
    const output = check.run(given as Given<O, Tensor>);
    backward(output, seed);
    for (const name of selected) {
      const leaf = given[name] as Tensor;
      const reference = numeric.get(name) as Arr;
      expect(leaf.grad, `gradient of ${name}`).not.toBeNull();
      const error = relativeError(await (leaf.grad as Tensor).read(), reference.data);
      expect(error, `${dtype} gradient of ${name} (with ${selected})`).toBeLessThanOrEqual(gradientBound);
    }
    for (const name of wanted) if (!selected.includes(name)) expect((given[name] as Tensor).grad).toBeNull();
    output.dispose();
    seed.dispose();
    for (const t of Object.values(given)) t?.dispose();
    expect(await liveBytes(), "bytes left behind by backward").toBe(before);
  }
  // A graph that nobody runs backward is freed with its output.
  if (dtype === "f32" && wanted.length > 0) {
    const given = Object.fromEntries(upload());
    for (const name of wanted) (given[name] as Tensor).requiresGrad = true;
    scope(() => {
      check.run(given as Given<O, Tensor>);
    });
    for (const t of Object.values(given)) t?.dispose();
    expect(await liveBytes(), "bytes left behind by a dropped graph").toBe(before);
  }
}

/** Runs `act` and returns what it throws, which must be an LtxError with that code and a message that matches. */
export function expectError(code: string, message: RegExp, act: () => unknown): void {
  let error: unknown;
  scope(() => {
    try {
      act();
    } catch (e) {
      error = e;
    }
  });
  expect(error, `an error ${code} ${message}`).toMatchObject({ name: "LtxError", code });
  expect((error as Error).message).toMatch(message);
}

/** A tensor of that shape with arbitrary values, for error tests. */
export const some = (shape: Shape, dtype: "f32" | "bf16" | "i32" = "f32"): Tensor =>
  toTensor(
    { role: dtype === "i32" ? "i32" : "input", value: dtype === "i32" ? arr(shape) : draw(shape, 5) },
    dtype === "bf16" ? "bf16" : "f32",
  );

/** A tensor that wants a gradient. */
export function leaf(values: number[], shape = [values.length]): Tensor {
  const t = Tensor.from(values, shape);
  t.requiresGrad = true;
  return t;
}
