/**
 * Bicubic resampling of bytes exactly as PIL does it (`Image.resize(…, BICUBIC)`): the kernel grows with the reduction,
 * weights are 22-bit fixed point, rows are resampled first, and between the passes pixels are bytes again.
 */
import type { Picture } from "../images.js";
import { Turns } from "../turns.js";

/** Bits after the point of a weight: 8 are left for the pixel and 2 for sums outside of its range. */
const PRECISION = 22;
/** Keys' cubic convolution kernel with a = -1/2, and how far it reaches. */
const A = -0.5;
const SUPPORT = 2;

function kernel(distance: number): number {
  const x = Math.abs(distance);
  if (x < 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * A;
  return 0;
}

/** For each output position the first input position that counts, and the fixed-point weights from there on. */
function weights(from: number, to: number): { first: number; weights: Int32Array }[] {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const support = SUPPORT * stretch;
  return Array.from({ length: to }, (_, at) => {
    const center = (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(from, Math.trunc(center + support + 0.5));
    const exact = Array.from({ length: end - first }, (_, i) => kernel((first + i - center + 0.5) / stretch));
    const sum = exact.reduce((a, b) => a + b, 0);
    const fixed = exact.map((w) => (w / sum) * 2 ** PRECISION).map((w) => Math.trunc(w < 0 ? w - 0.5 : w + 0.5));
    return { first, weights: Int32Array.from(fixed) };
  });
}

/**
 * Resamples the middle one of three axes: `data` is (outer, from, inner), the result (outer, to, inner). With width
 * in the middle `inner` are the channels, with height a whole row.
 */
async function resample(
  data: Uint8Array,
  [outer, from, inner, to]: readonly [outer: number, from: number, inner: number, to: number],
  turns: Turns,
): Promise<Uint8Array> {
  const table = weights(from, to);
  const result = new Uint8Array(outer * to * inner);
  for (let o = 0; o < outer; o++) {
    for (let at = 0; at < to; at++) {
      const { first, weights } = table[at];
      const source = (o * from + first) * inner;
      const target = (o * to + at) * inner;
      for (let c = 0; c < inner; c++) {
        let sum = 1 << (PRECISION - 1);
        for (let k = 0, i = source + c; k < weights.length; k++, i += inner) sum += data[i] * weights[k];
        result[target + c] = Math.min(255, Math.max(0, sum >> PRECISION));
      }
      // Where rows are resampled one is short: looking at the clock at each pixel would take longer than the pixel.
      if (inner > MAX_CHANNELS && turns.due) await turns.next();
    }
    if (turns.due) await turns.next();
  }
  return result;
}

/** More values in a line than this are a row's, not a pixel's. */
const MAX_CHANNELS = 4;

/** `picture` at another size. */
export async function resizeBicubic(
  picture: Picture,
  height: number,
  width: number,
  turns = new Turns("[media] scaling a picture"),
): Promise<Picture> {
  const { channels } = picture;
  let { data } = picture;
  if (width !== picture.width) data = await resample(data, [picture.height, picture.width, channels, width], turns);
  if (height !== picture.height) data = await resample(data, [1, picture.height, width * channels, height], turns);
  return { data, height, width, channels };
}
