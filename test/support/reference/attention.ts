import { type Arr, arr, at, generate, map } from "../arrays.js";
import { normalize } from "./norm.js";

/** Rotates neighbouring channels of x (B, L, D) by the angles of cos, sin (L, D). */
export function rope(x: Arr, cos: Arr, sin: Arr): Arr {
  return generate(x.shape, (b, l, d) => {
    const partner = d % 2 === 0 ? -at(x, b, l, d + 1) : at(x, b, l, d - 1);
    return at(x, b, l, d) * at(cos, l, d) + partner * at(sin, l, d);
  });
}

export function rmsNorm(x: Arr, weight: Arr, eps: number): Arr {
  const y = normalize(x, "rms_norm", eps);
  return map(y, (v, i) => v * weight.data[i % weight.data.length]);
}

export interface Attention {
  heads: number;
  eps: number;
  scale: number;
  qWeight: Arr | null;
  kWeight: Arr | null;
  cos: Arr | null;
  sin: Arr | null;
  mask: Arr | null;
  bias?: Arr | null;
}

/** Norm, rotation, scores, mask, softmax and the weighted sum, one after the other. */
export function attention(q: Arr, k: Arr, v: Arr, o: Attention): Arr {
  const [batch, queries, width] = q.shape;
  const keys = k.shape[1];
  const head = width / o.heads;
  if (o.qWeight) q = rmsNorm(q, o.qWeight, o.eps);
  if (o.kWeight) k = rmsNorm(k, o.kWeight, o.eps);
  if (o.cos && o.sin) {
    q = rope(q, o.cos, o.sin);
    k = rope(k, o.cos, o.sin);
  }
  const y = arr(q.shape);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < o.heads; h++) {
      for (let i = 0; i < queries; i++) {
        const scores = Array.from({ length: keys }, (_, j) => {
          let s = 0;
          for (let d = h * head; d < (h + 1) * head; d++) s += at(q, b, i, d) * at(k, b, j, d);
          return s * o.scale + (o.mask ? o.mask.data[b * keys + j] : 0) + (o.bias ? at(o.bias, h, i, j) : 0);
        });
        const top = Math.max(...scores);
        const weights = scores.map((s) => Math.exp(s - top));
        const total = weights.reduce((s, w) => s + w, 0);
        for (let d = h * head; d < (h + 1) * head; d++) {
          let sum = 0;
          for (let j = 0; j < keys; j++) sum += (weights[j] / total) * at(v, b, j, d);
          y.data[(b * queries + i) * width + d] = sum;
        }
      }
    }
  }
  return y;
}
