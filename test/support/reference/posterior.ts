import { type Arr, arr, at, generate } from "../arrays.js";

/** Means and clamped log-variances of moments (…, 2C), each (…, C). */
export function split(moments: Arr): { mean: Arr; logvar: Arr } {
  const channels = moments.shape[moments.shape.length - 1] / 2;
  const shape = [...moments.shape.slice(0, -1), channels];
  const mean = arr(shape);
  const logvar = arr(shape);
  for (let i = 0; i < mean.data.length; i++) {
    const base = Math.floor(i / channels) * 2 * channels + (i % channels);
    mean.data[i] = moments.data[base];
    logvar.data[i] = Math.min(20, Math.max(-30, moments.data[base + channels]));
  }
  return { mean, logvar };
}

export function sample(moments: Arr, noise: Arr): Arr {
  const { mean, logvar } = split(moments);
  return arr(
    mean.shape,
    mean.data.map((m, i) => m + Math.exp(logvar.data[i] / 2) * noise.data[i]),
  );
}

function overSamples(a: Arr, f: (i: number) => number): Arr {
  const length = a.data.length / a.shape[0];
  const y = arr([a.shape[0]]);
  for (let i = 0; i < a.data.length; i++) y.data[Math.floor(i / length)] += f(i);
  return y;
}

/** Of N(mean, var) from N(0, 1), summed over each sample. */
export function kl(moments: Arr): Arr {
  const { mean, logvar } = split(moments);
  return overSamples(mean, (i) => 0.5 * (mean.data[i] ** 2 + Math.exp(logvar.data[i]) - 1 - logvar.data[i]));
}

export function meanLogvar(moments: Arr): Arr {
  const { logvar } = split(moments);
  return overSamples(logvar, (i) => (logvar.data[i] * logvar.shape[0]) / logvar.data.length);
}

export function expand(x: Arr): Arr {
  const channels = x.shape[x.shape.length - 1] - 1;
  const rows = x.data.length / (channels + 1);
  const flat = arr([rows, channels + 1], x.data);
  const y = generate([rows, 2 * channels], (r, c) => at(flat, r, Math.min(c, channels)));
  return arr([...x.shape.slice(0, -1), 2 * channels], y.data);
}
