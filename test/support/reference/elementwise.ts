import { type Arr, arr, at, generate, map, zip } from "../arrays.js";

const sigmoid = (v: number) => 1 / (1 + Math.exp(-v));

/** By its Taylor series, whose terms cancel no more than 1e-9 below 4. */
function erf(x: number): number {
  if (Math.abs(x) > 4) return Math.sign(x);
  let sum = 0;
  for (let n = 0, term = x; n < 120; n++, term *= -(x * x) / n) sum += term / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * sum;
}

export const activations = {
  none: (v: number) => v,
  silu: (v: number) => v * sigmoid(v),
  gelu_tanh: (v: number) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))),
  gelu: (v: number) => (v * (1 + erf(v / Math.SQRT2))) / 2,
  sigmoid,
  exp: Math.exp,
  square: (v: number) => v * v,
  abs: Math.abs,
  sqrt: Math.sqrt,
  relu: (v: number) => Math.max(0, v),
  tanh: Math.tanh,
  softplus: (v: number) => Math.max(0, v) + Math.log1p(Math.exp(-Math.abs(v))),
};

export const leakyRelu = (x: Arr, slope: number): Arr => map(x, (v) => (v > 0 ? v : slope * v));

export const clamp = (x: Arr, lo: number, hi: number): Arr => map(x, (v) => Math.min(hi, Math.max(lo, v)));

/** x (…) + row, repeated over the leading dimensions. */
export const addRows = (x: Arr, row: Arr): Arr => zip(x, row, (a, b) => a + b);

export function mixRows(a: Arr, b: Arr | null, sa: Arr | null, sb: Arr | null): Arr {
  const length = a.data.length / a.shape[0];
  return map(a, (v, i) => {
    const sample = Math.floor(i / length);
    return (sa ? sa.data[sample] : 1) * v + (b ? (sb ? sb.data[sample] : 1) * b.data[i] : 0);
  });
}

/** f summed over all values of each of the first dimension's samples. */
export function sumSamples(x: Arr, samples: number, f: (v: number, i: number) => number, scale = 1): Arr {
  const result = arr([samples]);
  const length = x.data.length / samples;
  for (let i = 0; i < x.data.length; i++) result.data[Math.floor(i / length)] += scale * f(x.data[i], i);
  return result;
}

/** x (…, C) + h · ada[g][gate]. */
export function gatedAdd(x: Arr, h: Arr, ada: Arr, gate: number): Arr {
  const channels = x.shape[x.shape.length - 1];
  const run = x.data.length / channels / ada.shape[0];
  return map(x, (v, i) => {
    const row = Math.floor(i / channels);
    return v + h.data[i] * at(ada, Math.floor(row / run), gate, i % channels);
  });
}

export const addPlane = (x: Arr, plane: Arr, scale: Arr): Arr =>
  generate(x.shape, (b, f, h, w, c) => at(x, b, f, h, w, c) + at(plane, h, w) * scale.data[c]);
