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

/**
 * A frame (height, width, channels) scaled to another size as torchvision's antialiased bilinear resizing does: each
 * output pixel is the mean of the input weighted by a triangle that is as wide as the reduction.
 */
export function resizeFrame(
  frame: Uint8Array,
  [height, width]: readonly [number, number],
  [toHeight, toWidth]: readonly [number, number],
  channels = 1,
): Uint8Array {
  if (height === toHeight && width === toWidth) return frame;
  const columns = triangleTaps(width, toWidth);
  const rows = new Float64Array(height * toWidth * channels);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < toWidth; x++) {
      const { first, weights } = columns[x];
      for (let k = 0; k < weights.length; k++) {
        for (let c = 0; c < channels; c++) {
          rows[(y * toWidth + x) * channels + c] += weights[k] * frame[(y * width + first + k) * channels + c];
        }
      }
    }
  }
  const stride = toWidth * channels;
  const out = new Uint8Array(toHeight * stride);
  for (const [y, { first, weights }] of triangleTaps(height, toHeight).entries()) {
    for (let x = 0; x < stride; x++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * rows[(first + k) * stride + x];
      out[y * stride + x] = Math.floor(sum + 0.5);
    }
  }
  return out;
}

function triangleTaps(from: number, to: number): Tap[] {
  const scale = Math.max(from / to, 1);
  return Array.from({ length: to }, (_, i) => {
    const center = ((i + 0.5) * from) / to;
    const first = Math.max(0, Math.floor(center - scale + 0.5));
    const end = Math.min(from, Math.floor(center + scale + 0.5));
    const weights: number[] = [];
    for (let k = first; k < end; k++) weights.push(Math.max(0, 1 - Math.abs(k + 0.5 - center) / scale));
    const total = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((weight) => weight / total) };
  });
}
