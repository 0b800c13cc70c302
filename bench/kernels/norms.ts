/** Norm with modulation and activation, gated residual, batch norm, wavelet loss. */
import { Norm, Unary } from "../../lib/ops/enums.js";
import { type Bench, define, noFlops, type Problem } from "./case.js";

interface NormSizes extends Record<string, number> {
  rows: number;
  channels: number;
  /** Samples with a modulation of their own; 0 for none. */
  groups: number;
  /** lib/ops/enums.ts Norm. */
  norm: number;
  silu: number;
}

const pixel = (rows: number, channels: number, groups = 0): NormSizes => {
  return { rows, channels, groups, norm: Norm.pixel_norm, silu: 1 };
};
const rms = (rows: number, channels: number, groups: number): NormSizes => {
  return { rows, channels, groups, norm: Norm.rms_norm, silu: 0 };
};

const norms: Problem<NormSizes>[] = [
  { scale: "tiny", name: "pixel 48x16 modulated silu", sizes: pixel(48, 16, 2) },
  { scale: "tiny", name: "rms 32x128 modulated", sizes: rms(32, 128, 2) },
  { scale: "small", name: "pixel 6400x128 modulated silu", sizes: pixel(6400, 128, 1) },
  { scale: "cpu", name: "pixel 6400x128 silu", sizes: pixel(6400, 128) },
  { scale: "cpu", name: "pixel 25600x128 silu", sizes: pixel(25600, 128) },
  { scale: "cpu", name: "pixel 25600x128 modulated silu", sizes: pixel(25600, 128, 4) },
  { scale: "cpu", name: "rms 512x768 modulated", sizes: rms(512, 768, 32) },
  { scale: "small", name: "rms 2048x768 modulated", sizes: rms(2048, 768, 128) },
  { scale: "large", name: "pixel 51200x128 silu", sizes: pixel(51200, 128) },
  { scale: "large", name: "pixel 51200x128 modulated silu", sizes: pixel(51200, 128, 8) },
  { scale: "large", name: "pixel 2973696x128 modulated silu", sizes: pixel(2973696, 128, 1), dtypes: ["bf16"] },
  { scale: "large", name: "rms 6144x2048 modulated", sizes: rms(6144, 2048, 1) },
  { scale: "large", name: "layer 6144x4096", sizes: { ...rms(6144, 4096, 0), norm: Norm.layer_norm } },
];

const EPS = 1e-6;
/** Shift and scale stand first in a block's table of six. */
const TABLE = 6;

function normOperands(bench: Bench, { rows, channels, groups, norm, silu }: NormSizes) {
  const x = bench.input([rows, channels]);
  const ada = groups ? bench.between([groups, TABLE, channels], -1, 1) : null;
  const stats = bench.output(norm === Norm.layer_norm ? [rows, 2] : [rows], "f32");
  const scalars = [norm, silu ? Unary.silu : Unary.none, EPS, 1, 0, 1];
  return { x, ada, stats, scalars };
}

interface RowSizes extends Record<string, number> {
  rows: number;
  channels: number;
  groups: number;
}

const gates: Problem<RowSizes>[] = [
  { scale: "tiny", name: "32x128", sizes: { rows: 32, channels: 128, groups: 2 } },
  { scale: "small", name: "2048x768", sizes: { rows: 2048, channels: 768, groups: 128 } },
  { scale: "large", name: "6144x2048", sizes: { rows: 6144, channels: 2048, groups: 1 } },
];

const batches: Problem<RowSizes>[] = [
  { scale: "tiny", name: "48x16", sizes: { rows: 48, channels: 16, groups: 0 } },
  { scale: "small", name: "6144x128", sizes: { rows: 6144, channels: 128, groups: 0 } },
  { scale: "large", name: "98304x128", sizes: { rows: 98304, channels: 128, groups: 0 } },
  { scale: "large", name: "6144x512", sizes: { rows: 6144, channels: 512, groups: 0 } },
];

function batchNormOperands(bench: Bench, { rows, channels }: RowSizes) {
  const vector = (low: number, high: number) => bench.between([channels], low, high);
  return {
    x: bench.input([rows, channels]),
    weight: vector(0.5, 1.5),
    bias: vector(-1, 1),
    y: bench.output([rows, channels]),
    stats: bench.output([2, channels], "f32"),
    running: [vector(-1, 1), vector(0.5, 1.5)],
  };
}

interface VideoSizes extends Record<string, number> {
  batch: number;
  frames: number;
  height: number;
  width: number;
  channels: number;
}

const video = (batch: number, frames: number, height: number, width: number, channels: number): VideoSizes => {
  return { batch, frames, height, width, channels };
};
const clips: Problem<VideoSizes>[] = [
  { scale: "tiny", name: "1x5x8x8x1", sizes: video(1, 5, 8, 8, 1) },
  { scale: "cpu", name: "1x25x64x64x1", sizes: video(1, 25, 64, 64, 1) },
  { scale: "cpu", name: "4x25x64x64x1", sizes: video(4, 25, 64, 64, 1) },
  { scale: "small", name: "8x25x64x64x1", sizes: video(8, 25, 64, 64, 1) },
  { scale: "large", name: "1x121x512x768x3", sizes: video(1, 121, 512, 768, 3) },
];
const pixels = (s: VideoSizes) => [s.batch, s.frames, s.height, s.width, s.channels];

export const normCases = [
  ...define("norm_act", norms, noFlops, (bench, s) => {
    const { x, ada, stats, scalars } = normOperands(bench, s);
    return bench.kernel("norm_act", [x, null, null, ada, bench.output(x.shape), stats], scalars);
  }),
  ...define("norm_act_backward", norms, noFlops, (bench, s) => {
    const { x, ada, stats, scalars } = normOperands(bench, s);
    const y = bench.output(x.shape);
    bench.kernel("norm_act", [x, null, null, ada, y, stats], scalars).run();
    const dada = ada && bench.output(ada.shape, "f32");
    const operands = [x, null, null, ada, stats, bench.input(x.shape), bench.output(x.shape), null, null, dada];
    return bench.kernel("norm_act_backward", operands, scalars);
  }),
  ...define("gated_add", gates, noFlops, (bench, { rows, channels, groups }) => {
    const shape = [rows, channels];
    const ada = bench.between([groups, TABLE, channels], -1, 1);
    return bench.kernel("gated_add", [bench.input(shape), bench.input(shape), ada, bench.output(shape)], [2]);
  }),
  ...define("gated_add_backward", gates, noFlops, (bench, { rows, channels, groups }) => {
    const shape = [rows, channels];
    const ada = bench.between([groups, TABLE, channels], -1, 1);
    const grads = [bench.output(shape), bench.output(ada.shape, "f32")];
    return bench.kernel("gated_add_backward", [bench.input(shape), ada, bench.input(shape), ...grads], [2]);
  }),
  ...define("batch_norm", batches, noFlops, (bench, s) => {
    const { x, weight, bias, y, stats, running } = batchNormOperands(bench, s);
    return bench.kernel("batch_norm", [x, weight, bias, y, stats, ...running], [1e-5, 0.1, 1]);
  }),
  ...define("batch_norm_backward", batches, noFlops, (bench, s) => {
    const { x, weight, bias, y, stats, running } = batchNormOperands(bench, s);
    bench.kernel("batch_norm", [x, weight, bias, y, stats, ...running], [1e-5, 0.1, 1]).run();
    const grads = [bench.output(x.shape), bench.output(weight.shape, "f32"), bench.output(weight.shape, "f32")];
    return bench.kernel("batch_norm_backward", [x, weight, stats, bench.input(x.shape), ...grads], [1]);
  }),
  ...define("haar_l1", clips, noFlops, (bench, s) => {
    const y = bench.output([s.batch, s.channels], "f32");
    return bench.kernel("haar_l1", [bench.input(pixels(s)), bench.input(pixels(s)), y]);
  }),
  ...define("haar_l1_backward", clips, noFlops, (bench, s) => {
    const dy = bench.between([s.batch, s.channels], 0, 1);
    return bench.kernel("haar_l1_backward", [
      bench.input(pixels(s)),
      bench.input(pixels(s)),
      dy,
      bench.output(pixels(s)),
    ]);
  }),
];
