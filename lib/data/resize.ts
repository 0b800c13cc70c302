/** Weights of the source pixels in one output pixel along one axis: pixel `first + k` has weight `weights[k]`. */
interface Tap {
  first: number;
  weights: number[];
}

/**
 * A square grey image of `from` pixels a side scaled to `to`: area average when smaller, bilinear when larger (pixel
 * centres at half integers, edges repeated). Uses only +, -, *, / and floor, so the bytes are the same everywhere.
 */
export function resizeSquare(image: Uint8Array, from: number, to: number): Uint8Array {
  if (from === to) return image;
  const taps = to < from ? areaTaps(from, to) : bilinearTaps(from, to);

  const rows = new Float64Array(from * to);
  for (let y = 0; y < from; y++) {
    for (let x = 0; x < to; x++) {
      const { first, weights } = taps[x];
      for (let k = 0; k < weights.length; k++) rows[y * to + x] += weights[k] * image[y * from + first + k];
    }
  }
  const out = new Uint8Array(to * to);
  for (let y = 0; y < to; y++) {
    const { first, weights } = taps[y];
    for (let x = 0; x < to; x++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * rows[(first + k) * to + x];
      out[y * to + x] = Math.floor(sum + 0.5);
    }
  }
  return out;
}

function areaTaps(from: number, to: number): Tap[] {
  return Array.from({ length: to }, (_, i) => {
    const start = (i * from) / to;
    const end = ((i + 1) * from) / to;
    const first = Math.floor(start);
    const weights: number[] = [];
    for (let k = first; k < Math.min(end, from); k++) {
      weights.push(((Math.min(k + 1, end) - Math.max(k, start)) * to) / from);
    }
    return { first, weights };
  });
}

function bilinearTaps(from: number, to: number): Tap[] {
  return Array.from({ length: to }, (_, i) => {
    const center = Math.min(Math.max(((i + 0.5) * from) / to - 0.5, 0), from - 1);
    const first = Math.floor(center);
    const fraction = center - first;
    return fraction === 0 ? { first, weights: [1] } : { first, weights: [1 - fraction, fraction] };
  });
}
