import { type Arr, arr, zip } from "../arrays.js";

/** One axis of the transform: sums or differences of neighbours over √2, after a zero where the axis is odd. */
function halve(x: Arr, axis: number, high: boolean): Arr {
  const size = x.shape[axis];
  const y = arr(x.shape.map((d, i) => (i === axis ? Math.ceil(d / 2) : d)));
  const inner = x.shape.slice(axis + 1).reduce((n, d) => n * d, 1);
  const half = y.shape[axis];
  for (let i = 0; i < y.data.length; i++) {
    const position = Math.floor(i / inner) % half;
    const first = (Math.floor(i / inner / half) * size + 2 * position) * inner + (i % inner);
    const b = 2 * position + 1 < size ? x.data[first + inner] : 0;
    y.data[i] = (x.data[first] + (high ? -b : b)) / Math.SQRT2;
  }
  return y;
}

/** (B,F,H,W,C) to (B,8,F',H',W',C), band = 4 highF + 2 highH + highW. */
export function haar(x: Arr): Arr {
  const bands = Array.from({ length: 8 }, (_, band) => {
    const frames = halve(x, 1, (band & 4) !== 0);
    const rows = halve(frames, 2, (band & 2) !== 0);
    return halve(rows, 3, (band & 1) !== 0);
  });
  const [b, ...rest] = bands[0].shape;
  const length = bands[0].data.length / b;
  const y = arr([b, 8, ...rest]);
  for (let n = 0; n < b; n++) {
    bands.forEach((band, i) => {
      y.data.set(band.data.subarray(n * length, (n + 1) * length), (n * 8 + i) * length);
    });
  }
  return y;
}

/** mean |haar(a - b)| over bands and positions: (B, C). */
export function haarL1(a: Arr, b: Arr): Arr {
  const coefficients = haar(zip(a, b, (x, y) => x - y));
  const [batch, channels] = [a.shape[0], a.shape[4]];
  const count = coefficients.data.length / batch / channels;
  const y = arr([batch, channels]);
  coefficients.data.forEach((v, i) => {
    const sample = Math.floor(i / (count * channels));
    y.data[sample * channels + (i % channels)] += Math.abs(v) / count;
  });
  return y;
}
