import { type Arr, arr, at, generate, map } from "../arrays.js";

/** x (…, K), w (N, K), bias (N): x wᵀ + bias. */
export function linear(x: Arr, w: Arr, bias: Arr | null): Arr {
  const [outputs, inputs] = w.shape;
  const rows = x.shape.slice(0, -1).reduce((n, d) => n * d, 1);
  const y = arr([...x.shape.slice(0, -1), outputs]);
  for (let r = 0; r < rows; r++) {
    for (let n = 0; n < outputs; n++) {
      let sum = bias ? bias.data[n] : 0;
      for (let k = 0; k < inputs; k++) sum += x.data[r * inputs + k] * w.data[n * inputs + k];
      y.data[r * outputs + n] = sum;
    }
  }
  return y;
}

export interface Conv3d {
  stride: readonly [number, number, number];
  padTime: readonly [number, number];
  padSpace: readonly [number, number];
  replicate: boolean;
}

/** Adds frames (copies of the edge, or zeros) and zero borders: a larger video. */
export function pad(x: Arr, { padTime, padSpace, replicate }: Omit<Conv3d, "stride">): Arr {
  const [b, f, h, w, c] = x.shape;
  const shape = [b, f + padTime[0] + padTime[1], h + 2 * padSpace[0], w + 2 * padSpace[1], c];
  return generate(shape, (n, t, row, column, channel) => {
    const [y, z] = [row - padSpace[0], column - padSpace[1]];
    let frame = t - padTime[0];
    if (y < 0 || y >= h || z < 0 || z >= w) return 0;
    if (replicate) frame = Math.min(f - 1, Math.max(0, frame));
    return frame < 0 || frame >= f ? 0 : at(x, n, frame, y, z, channel);
  });
}

/** x (B,F,H,W,Ci), w (Co,kt,kh,kw,Ci): pads, then correlates. */
export function conv3d(x: Arr, w: Arr, bias: Arr | null, residual: Arr | null, o: Conv3d): Arr {
  const padded = pad(x, o);
  const [outputs, kt, kh, kw, inputs] = w.shape;
  const size = (d: number, k: number) => Math.floor((padded.shape[d] - k) / o.stride[d - 1]) + 1;
  const y = generate([x.shape[0], size(1, kt), size(2, kh), size(3, kw), outputs], (n, t, row, column, out) => {
    let sum = bias ? bias.data[out] : 0;
    for (let i = 0; i < kt; i++) {
      for (let j = 0; j < kh; j++) {
        for (let k = 0; k < kw; k++) {
          for (let c = 0; c < inputs; c++) {
            sum +=
              at(padded, n, t * o.stride[0] + i, row * o.stride[1] + j, column * o.stride[2] + k, c) *
              at(w, out, i, j, k, c);
          }
        }
      }
    }
    return sum;
  });
  return residual ? map(y, (v, i) => v + residual.data[i]) : y;
}
