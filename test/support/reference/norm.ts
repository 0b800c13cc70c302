import { type Arr, arr, at, map } from "../arrays.js";
import { activations } from "./elementwise.js";

/** Which values share one mean and variance: the index of the group of value i. */
function grouping(kind: string, x: Arr, groups: number): (i: number) => number {
  const channels = x.shape[x.shape.length - 1];
  if (kind !== "group_norm") return (i) => Math.floor(i / channels);
  const sample = x.data.length / x.shape[0];
  return (i) => Math.floor(i / sample) * groups + Math.floor((i % channels) / (channels / groups));
}

/** (x - mean) / √(variance + eps) over each group; without the mean for pixel and rms norm. */
export function normalize(x: Arr, kind: string, eps: number, groups = 1): Arr {
  if (kind === "none") return x;
  const group = grouping(kind, x, groups);
  const centred = kind === "layer_norm" || kind === "group_norm";
  const members = new Map<number, number[]>();
  x.data.forEach((v, i) => {
    const list = members.get(group(i));
    if (list) list.push(v);
    else members.set(group(i), [v]);
  });
  const stats = new Map(
    [...members].map(([g, values]) => {
      const mean = centred ? values.reduce((s, v) => s + v, 0) / values.length : 0;
      const variance = values.reduce((s, v) => s + (v - mean) ** 2, 0) / values.length;
      return [g, { mean, variance }];
    }),
  );
  return map(x, (v, i) => {
    const { mean, variance } = stats.get(group(i)) ?? { mean: 0, variance: 0 };
    return (v - mean) / Math.sqrt(variance + eps);
  });
}

/** Multiplies by (1 + scale) and adds shift, rows of ada (G, rows, C), each for a run of x's rows. */
export function modulate(x: Arr, ada: Arr, shift: number, scale: number): Arr {
  const channels = x.shape[x.shape.length - 1];
  const run = x.data.length / channels / ada.shape[0];
  return map(x, (v, i) => {
    const g = Math.floor(Math.floor(i / channels) / run);
    return v * (1 + at(ada, g, scale, i % channels)) + at(ada, g, shift, i % channels);
  });
}

export interface NormAct {
  kind: string;
  eps: number;
  weight: Arr | null;
  bias: Arr | null;
  modulation: { ada: Arr; shift: number; scale: number } | null;
  activation: "none" | "silu";
  groups: number;
}

export function normAct(x: Arr, o: NormAct): Arr {
  const channels = x.shape[x.shape.length - 1];
  let y = normalize(x, o.kind, o.eps, o.groups);
  if (o.weight) y = map(y, (v, i) => v * (o.weight as Arr).data[i % channels]);
  if (o.bias) y = map(y, (v, i) => v + (o.bias as Arr).data[i % channels]);
  if (o.modulation) y = modulate(y, o.modulation.ada, o.modulation.shift, o.modulation.scale);
  return arr(y.shape, y.data.map(activations[o.activation]));
}

export interface NormGradients {
  dx: Arr;
  dweight: Arr;
  dbias: Arr;
  dada: Arr | null;
}

/** The gradients with activation none or silu, for sizes where central differences take too long. */
export function normActBackward(x: Arr, dy: Arr, o: NormAct): NormGradients {
  const channels = x.shape[x.shape.length - 1];
  const group = o.kind === "none" ? (i: number) => i : grouping(o.kind, x, o.groups);
  const ada = o.modulation && { ...o.modulation, run: x.data.length / channels / o.modulation.ada.shape[0] };
  const gradients: NormGradients = {
    dx: arr(x.shape),
    dweight: arr([channels]),
    dbias: arr([channels]),
    dada: ada && arr(ada.ada.shape),
  };
  const n = normalize(x, o.kind, o.eps, o.groups);
  const dn = map(x, (_, i) => {
    const c = i % channels;
    const row = ada && Math.floor(Math.floor(i / channels) / ada.run) * ada.ada.shape[1];
    const at = (r: number) => (row === null ? 0 : (row + r) * channels + c);
    const factor = ada ? 1 + ada.ada.data[at(ada.scale)] : 1;
    const affine = n.data[i] * (o.weight?.data[c] ?? 1) + (o.bias?.data[c] ?? 0);
    const u = affine * factor + (ada ? ada.ada.data[at(ada.shift)] : 0);
    const s = 1 / (1 + Math.exp(-u));
    const du = dy.data[i] * (o.activation === "silu" ? s * (1 + u * (1 - s)) : 1);
    gradients.dweight.data[c] += du * factor * n.data[i];
    gradients.dbias.data[c] += du * factor;
    if (ada && gradients.dada) {
      gradients.dada.data[at(ada.scale)] += du * affine;
      gradients.dada.data[at(ada.shift)] += du;
    }
    return du * factor * (o.weight?.data[c] ?? 1);
  });
  if (o.kind === "none") return { ...gradients, dx: dn };
  const centred = o.kind === "layer_norm" || o.kind === "group_norm";
  const sums = new Map<number, { count: number; x: number; dn: number; both: number; squares: number }>();
  x.data.forEach((v, i) => {
    const sum = sums.get(group(i)) ?? { count: 0, x: 0, dn: 0, both: 0, squares: 0 };
    sums.set(group(i), sum);
    sum.count++;
    sum.x += centred ? v : 0;
    sum.dn += centred ? dn.data[i] : 0;
    sum.both += dn.data[i] * n.data[i];
  });
  x.data.forEach((v, i) => {
    const sum = sums.get(group(i))!;
    sum.squares += (v - sum.x / sum.count) ** 2;
  });
  const dx = map(x, (_, i) => {
    const { count, dn: total, both, squares } = sums.get(group(i))!;
    return (dn.data[i] - total / count - (n.data[i] * both) / count) / Math.sqrt(squares / count + o.eps);
  });
  return { ...gradients, dx };
}

export interface ChannelStats {
  mean: Arr;
  variance: Arr;
}

/** Mean and biased variance of every channel over all rows of x (…, C). */
export function channelStats(x: Arr): ChannelStats {
  const channels = x.shape[x.shape.length - 1];
  const rows = channels ? x.data.length / channels : 0;
  const [mean, variance] = [arr([channels]), arr([channels])];
  x.data.forEach((v, i) => {
    mean.data[i % channels] += v / rows;
  });
  x.data.forEach((v, i) => {
    variance.data[i % channels] += (v - mean.data[i % channels]) ** 2 / rows;
  });
  return { mean, variance };
}

export function batchNorm(x: Arr, stats: ChannelStats, weight: Arr | null, bias: Arr | null, eps = 1e-5): Arr {
  const { mean, variance } = stats;
  return map(x, (v, i) => {
    const c = i % mean.data.length;
    const n = (v - mean.data[c]) / Math.sqrt(variance.data[c] + eps);
    return n * (weight ? weight.data[c] : 1) + (bias ? bias.data[c] : 0);
  });
}

/** The gradients in training, for sizes where central differences take too long. */
export function batchNormBackward(x: Arr, dy: Arr, weight: Arr, eps = 1e-5): { dx: Arr; dweight: Arr } {
  const stats = channelStats(x);
  const channels = weight.data.length;
  const rows = x.data.length / channels;
  const n = batchNorm(x, stats, null, null, eps);
  const [sum, dweight] = [arr([channels]), arr([channels])];
  dy.data.forEach((d, i) => {
    sum.data[i % channels] += d;
    dweight.data[i % channels] += d * n.data[i];
  });
  const dx = map(x, (_, i) => {
    const c = i % channels;
    const centred = dy.data[i] - sum.data[c] / rows - (n.data[i] * dweight.data[c]) / rows;
    return (weight.data[c] / Math.sqrt(stats.variance.data[c] + eps)) * centred;
  });
  return { dx, dweight };
}
