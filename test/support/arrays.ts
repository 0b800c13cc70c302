/** Float64 arrays with a shape: what the references compute on. */
import { PhiloxRandom } from "../../lib/data/philox.js";
import { narrow, type Shape, sizeOf, widen } from "../../lib/tensor/index.js";

export interface Arr {
  shape: Shape;
  data: Float64Array;
}

export function arr(shape: Shape, data: ArrayLike<number> = new Float64Array(sizeOf(shape))): Arr {
  if (data.length !== sizeOf(shape)) throw new Error(`${data.length} values for shape [${shape}]`);
  return { shape, data: Float64Array.from(data) };
}

/** Deterministic values, uniform in [low, high) and exact in f32. */
export function draw(shape: Shape, seed: number, low = -2, high = 2): Arr {
  const random = new PhiloxRandom(seed, 77);
  return roundTo(
    "f32",
    arr(
      shape,
      Array.from({ length: sizeOf(shape) }, () => random.uniform(low, high)),
    ),
  );
}

export function roundTo(dtype: "f32" | "bf16", a: Arr): Arr {
  const single = Float32Array.from(a.data);
  return arr(a.shape, dtype === "f32" ? single : widen(narrow(single)));
}

export const map = (a: Arr, f: (v: number, i: number) => number): Arr => arr(a.shape, a.data.map(f));

/** f over pairs; b is repeated when it is shorter. */
export const zip = (a: Arr, b: Arr, f: (x: number, y: number) => number): Arr =>
  map(a, (v, i) => f(v, b.data[i % b.data.length]));

export const reshaped = (a: Arr, shape: Shape): Arr => arr(shape, a.data);

/** Values at every index of `shape`, in row-major order. */
export function generate(shape: Shape, f: (...index: number[]) => number): Arr {
  const result = arr(shape);
  const index = shape.map(() => 0);
  for (let i = 0; i < result.data.length; i++) {
    result.data[i] = f(...index);
    for (let d = shape.length - 1; d >= 0; d--) {
      if (++index[d] < shape[d]) break;
      index[d] = 0;
    }
  }
  return result;
}

/** Reads a[index]. */
export function at(a: Arr, ...index: number[]): number {
  let offset = 0;
  for (let d = 0; d < index.length; d++) offset = offset * a.shape[d] + index[d];
  return a.data[offset];
}

/** |got - expected| / |expected| in the L2 norm; the absolute norm where the reference is zero. */
export function relativeError(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (got.length !== expected.length) throw new Error(`${got.length} values, expected ${expected.length}`);
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += (got[i] - expected[i]) ** 2;
    norm += expected[i] ** 2;
  }
  return Math.sqrt(difference) / (norm > 0 ? Math.sqrt(norm) : 1);
}
