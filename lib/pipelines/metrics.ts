/** How near videos are to others. Values are in [0, 1]; arrays are (B, F, H, W, C), channels last. */
import { integer, list, number, object, show } from "../arguments.js";
import { check } from "../errors.js";
import type { Shape } from "../tensor/index.js";

/** Peak signal-to-noise ratio in dB of videos in [0, 1], over all their pixels; 100 when they are equal. */
export function psnr(squaredError: number, pixels: number): number {
  number("psnr", "squaredError", squaredError);
  integer("psnr", "pixels", pixels, 1);
  return squaredError === 0 ? 100 : -10 * Math.log10(squaredError / pixels);
}

const WINDOW = 11;
const SIGMA = 1.5;
const C1 = 0.01 ** 2;
const C2 = 0.03 ** 2;

/**
 * Structural similarity (Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment", 2004), 1 for equal frames:
 * windows of 11x11 pixels weighted by a Gaussian of sigma 1.5, K1 0.01, K2 0.03, range 1; the mean over all windows that
 * lie within a frame, channels and frames. Frames of less than 11 pixels get windows of their shorter side.
 * @throws LtxError `shape_mismatch`
 */
export function ssim(a: ArrayLike<number>, b: ArrayLike<number>, shape: Shape): number {
  checkShape("ssim", shape, a, b);
  const [, , height, width, channels] = shape;
  const weights = gaussian(Math.min(WINDOW, height, width));
  const area = height * width;
  const maps = Array.from({ length: 5 }, () => new Float64Array(area));
  let total = 0;
  let planes = 0;
  for (let frame = 0; frame < a.length; frame += area * channels) {
    for (let c = 0; c < channels; c++, planes++) {
      for (let i = 0; i < area; i++) {
        const x = a[frame + i * channels + c];
        const y = b[frame + i * channels + c];
        maps[0][i] = x;
        maps[1][i] = y;
        maps[2][i] = x * x;
        maps[3][i] = y * y;
        maps[4][i] = x * y;
      }
      total += meanSimilarity(maps.map((map) => smooth(map, height, width, weights)));
    }
  }
  return total / planes;
}

/** From the local means of x, y, x², y² and xy. */
function meanSimilarity([mx, my, mxx, myy, mxy]: Float64Array[]): number {
  let total = 0;
  for (let i = 0; i < mx.length; i++) {
    const [x, y] = [mx[i], my[i]];
    const structure = (2 * (mxy[i] - x * y) + C2) / (mxx[i] - x * x + (myy[i] - y * y) + C2);
    total += ((2 * x * y + C1) / (x * x + y * y + C1)) * structure;
  }
  return total / mx.length;
}

function gaussian(size: number): Float64Array {
  const weights = Float64Array.from({ length: size }, (_, i) =>
    Math.exp(-((i - (size - 1) / 2) ** 2) / (2 * SIGMA ** 2)),
  );
  const sum = weights.reduce((total, w) => total + w, 0);
  return weights.map((w) => w / sum);
}

/** The weighted mean of every window that lies within the map: (H, W) to (H - n + 1, W - n + 1). */
function smooth(map: Float64Array, height: number, width: number, weights: Float64Array): Float64Array {
  const size = weights.length;
  const [rows, columns] = [height - size + 1, width - size + 1];
  const across = new Float64Array(height * columns);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < columns; x++) {
      let sum = 0;
      for (let k = 0; k < size; k++) sum += weights[k] * map[y * width + x + k];
      across[y * columns + x] = sum;
    }
  }
  const result = new Float64Array(rows * columns);
  for (let i = 0; i < result.length; i++) {
    let sum = 0;
    for (let k = 0; k < size; k++) sum += weights[k] * across[i + k * columns];
    result[i] = sum;
  }
  return result;
}

/**
 * The mean magnitude of the frames' gradient, √(dx² + dy²) by differences to the pixel to the right and below, over all
 * pixels that have both. Blurred frames have less of it than sharp ones.
 * @throws LtxError `shape_mismatch`
 */
export function gradientMagnitude(values: ArrayLike<number>, shape: Shape): number {
  checkShape("gradient magnitude", shape, values);
  const [, , height, width, channels] = shape;
  check(height > 1 && width > 1, "shape_mismatch", () => {
    return `[gradient magnitude] frames need at least 2x2 pixels, got ${height}x${width}`;
  });
  const rowSize = width * channels;
  let total = 0;
  let count = 0;
  for (let frame = 0; frame < values.length; frame += height * rowSize) {
    for (let y = 0; y + 1 < height; y++) {
      const row = frame + y * rowSize;
      for (let i = row; i < row + rowSize - channels; i++, count++) {
        const dx = values[i + channels] - values[i];
        const dy = values[i + rowSize] - values[i];
        total += Math.sqrt(dx * dx + dy * dy);
      }
    }
  }
  return total / count;
}

function checkShape(op: string, shape: Shape, ...arrays: ArrayLike<number>[]): void {
  for (const [i, extent] of list(op, "shape", shape).entries()) integer(op, `shape[${i}]`, extent, 0);
  for (const [i, array] of arrays.entries()) {
    const values = object(op, `video ${i}`, array);
    const numbers = ArrayBuffer.isView(values) || Array.prototype.every.call(values, (v) => typeof v === "number");
    check(numbers, "invalid_argument", () => `[${op}] video ${i} holds ${show(values)}, expected numbers`);
  }
  const size = shape.reduce((n, d) => n * d, 1);
  check(shape.length === 5 && size > 0 && arrays.every(({ length }) => length === size), "shape_mismatch", () => {
    return `[${op}] expects videos (B,F,H,W,C) that are not empty, got ${arrays.map(({ length }) => length)} values for [${shape}]`;
  });
}
