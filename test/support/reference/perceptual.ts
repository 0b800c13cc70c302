import { type Arr, arr } from "../arrays.js";

/** Every pixel over its length. */
function normalized(x: Arr): Arr {
  const channels = x.shape[x.shape.length - 1];
  const y = arr(x.shape);
  for (let i = 0; i < x.data.length; i += channels) {
    const pixel = x.data.subarray(i, i + channels);
    const length = Math.sqrt(pixel.reduce((sum, v) => sum + v * v, 0)) + 1e-10;
    pixel.forEach((v, c) => {
      y.data[i + c] = v / length;
    });
  }
  return y;
}

export function lpipsDistance(a: Arr, b: Arr, w: Arr): Arr {
  const y = arr([a.shape[0]]);
  const [u, v] = [normalized(a), normalized(b)];
  const channels = w.data.length;
  const size = a.data.length / a.shape[0];
  u.data.forEach((value, i) => {
    y.data[Math.floor(i / size)] += (w.data[i % channels] * (value - v.data[i]) ** 2) / (size / channels);
  });
  return y;
}
