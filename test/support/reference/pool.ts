import { type Arr, at, generate } from "../arrays.js";

/** Windows of 2×2 pixels over the two dimensions before the last. */
export function maxPool2d(x: Arr): Arr {
  const [b, f, h, w, c] = x.shape;
  return generate([b, f, Math.floor(h / 2), Math.floor(w / 2), c], (n, t, i, j, k) =>
    Math.max(...[0, 1, 2, 3].map((p) => at(x, n, t, 2 * i + (p >> 1), 2 * j + (p & 1), k))),
  );
}
