import { type Arr, arr, map } from "../arrays.js";

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
  const padded = arr([b, f + padTime[0] + padTime[1], h + 2 * padSpace[0], w + 2 * padSpace[1], c]);
  const [, frames, height, width] = padded.shape;
  for (let n = 0; n < b; n++) {
    for (let t = 0; t < frames; t++) {
      let frame = t - padTime[0];
      if (replicate) frame = Math.min(f - 1, Math.max(0, frame));
      if (frame < 0 || frame >= f) continue;
      for (let row = 0; row < h; row++) {
        const from = ((n * f + frame) * h + row) * w * c;
        const to = (((n * frames + t) * height + row + padSpace[0]) * width + padSpace[1]) * c;
        padded.data.set(x.data.subarray(from, from + w * c), to);
      }
    }
  }
  return padded;
}

/** x (B,F,H,W,Ci), w (Co,kt,kh,kw,Ci): pads, then correlates. */
export function conv3d(x: Arr, w: Arr, bias: Arr | null, residual: Arr | null, o: Conv3d): Arr {
  const padded = pad(x, o);
  const [batch, frames, height, width, inputs] = padded.shape;
  const [outputs, kt, kh, kw] = w.shape;
  const size = (d: number, k: number) => Math.floor((padded.shape[d] - k) / o.stride[d - 1]) + 1;
  const y = arr([batch, size(1, kt), size(2, kh), size(3, kw), outputs]);
  const [, tOut, hOut, wOut] = y.shape;
  let index = 0;
  for (let n = 0; n < batch; n++) {
    for (let t = 0; t < tOut; t++) {
      for (let row = 0; row < hOut; row++) {
        for (let column = 0; column < wOut; column++) {
          for (let out = 0; out < outputs; out++) {
            let sum = bias ? bias.data[out] : 0;
            let tap = out * kt * kh * kw * inputs;
            for (let i = 0; i < kt; i++) {
              for (let j = 0; j < kh; j++) {
                for (let k = 0; k < kw; k++) {
                  const [f, r, c] = [t * o.stride[0] + i, row * o.stride[1] + j, column * o.stride[2] + k];
                  const pixel = (((n * frames + f) * height + r) * width + c) * inputs;
                  for (let channel = 0; channel < inputs; channel++)
                    sum += padded.data[pixel + channel] * w.data[tap++];
                }
              }
            }
            y.data[index++] = sum;
          }
        }
      }
    }
  }
  return residual ? map(y, (v, i) => v + residual.data[i]) : y;
}
