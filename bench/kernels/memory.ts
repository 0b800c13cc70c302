/** Ops that only move bytes: copies, index maps, rotation, random numbers, the optimizer. */
import { PatchOrder, Reduce } from "../../lib/ops/enums.js";
import { adamUpdate } from "../../lib/ops/index.js";
import { launch } from "../../lib/tensor/index.js";
import { byteLength, define, noFlops, type Problem } from "./case.js";

interface Count extends Record<string, number> {
  count: number;
}

const counts = (tiny: number, small: number, large: number): Problem<Count>[] =>
  (
    [
      ["tiny", tiny],
      ["small", small],
      ["large", large],
    ] as const
  ).map(([scale, count]) => ({ scale, name: inWords(count), sizes: { count } }));
const inWords = (count: number) => count.toLocaleString("en").replaceAll(",", " ");
const MIB = 2 ** 20;
const buffers = counts(4096, 32 * MIB, 256 * MIB);
const withCpu = (problems: readonly Problem<Count>[], count: number): Problem<Count>[] => {
  return [...problems, { scale: "cpu", name: inWords(count), sizes: { count } }];
};
const onlyF32 = <P extends Problem<Count>>(problems: readonly P[]) =>
  problems.map((problem) => ({ ...problem, dtypes: ["f32"] as const }));

/** The bandwidth that all others are measured against. */
export const copyCases = define("copy", withCpu(buffers, 128 * MIB), noFlops, (bench, { count }) =>
  bench.kernel("cast", [bench.input([count]), bench.output([count])], [1, 0]),
);

/** As above, for reads and writes in the ratio of most kernels. Three tensors of 1 GiB where it counts. */
export const triadCases = define("triad", onlyF32(withCpu(buffers, 256 * MIB)), noFlops, (bench, { count }) =>
  bench.kernel("axpby", [bench.input([count]), bench.input([count]), bench.output([count])], [1, 2]),
);

/** What it costs to queue a kernel that does nothing: the floor of everything else. */
const launchCases = define(
  "launch",
  (["tiny", "small"] as const).map((scale) => ({
    scale,
    name: "one value",
    sizes: {},
    dtypes: ["f32"] as const,
  })),
  noFlops,
  (bench) => bench.kernel("fill", [bench.output([1])], [0]),
);

interface RopeSizes extends Record<string, number> {
  batch: number;
  tokens: number;
  channels: number;
}
const rotations: Problem<RopeSizes>[] = [
  { scale: "tiny", name: "2x16x128", sizes: { batch: 2, tokens: 16, channels: 128 } },
  { scale: "small", name: "128x16x768", sizes: { batch: 128, tokens: 16, channels: 768 } },
  { scale: "large", name: "1x6144x2048", sizes: { batch: 1, tokens: 6144, channels: 2048 } },
];

interface PatchSizes extends Record<string, number> {
  batch: number;
  frames: number;
  height: number;
  width: number;
  /** Of the wide side: the video. */
  channels: number;
  st: number;
  sh: number;
  sw: number;
}
const patches: Problem<PatchSizes>[] = [
  { scale: "tiny", name: "1x3x8x8x1 by 1x4x4", sizes: extents([1, 3, 8, 8, 1], [1, 4, 4]) },
  { scale: "small", name: "8x25x64x64x1 by 1x4x4", sizes: extents([8, 25, 64, 64, 1], [1, 4, 4]) },
  { scale: "small", name: "8x26x16x16x128 by 2x2x2", sizes: extents([8, 26, 16, 16, 128], [2, 2, 2]) },
  { scale: "large", name: "1x121x512x768x3 by 1x4x4", sizes: extents([1, 121, 512, 768, 3], [1, 4, 4]) },
];
function extents([batch, frames, height, width, channels]: number[], [st, sh, sw]: number[]): PatchSizes {
  return { batch, frames, height, width, channels, st, sh, sw };
}
const wide = (s: PatchSizes) => [s.batch, s.frames, s.height, s.width, s.channels];
const narrow = (s: PatchSizes) => {
  return [s.batch, s.frames / s.st, s.height / s.sh, s.width / s.sw, s.channels * s.st * s.sh * s.sw];
};
const patchScalars = (s: PatchSizes) => [s.st, s.sh, s.sw, PatchOrder.time_height_width, 0, 1];

interface Planes extends Record<string, number> {
  batch: number;
  channels: number;
  positions: number;
}
const borders: Problem<Planes>[] = [
  { scale: "tiny", name: "2x3x64", sizes: { batch: 2, channels: 3, positions: 64 } },
  { scale: "small", name: "8x3x102400", sizes: { batch: 8, channels: 3, positions: 102400 } },
  { scale: "large", name: "1x3x47579136", sizes: { batch: 1, channels: 3, positions: 47579136 } },
];

/** The VAE's parameters on a GPU, in tensors of the size of its convolutions. */
const models: Problem<{ count: number; tensors: number }>[] = [
  { scale: "tiny", name: "4 000 values", sizes: { count: 1000, tensors: 4 }, dtypes: ["f32"] },
  { scale: "small", name: "16 M values", sizes: { count: 2 ** 18, tensors: 64 }, dtypes: ["f32"] },
  { scale: "cpu", name: "64 M values", sizes: { count: 2 ** 20, tensors: 64 }, dtypes: ["f32"] },
  { scale: "large", name: "435 M values", sizes: { count: 1_740_000, tensors: 250 }, dtypes: ["f32"] },
];

export const memoryCases = [
  ...launchCases,
  ...define("axpby", buffers, noFlops, (bench, { count }) =>
    bench.kernel("axpby", [bench.input([count]), bench.input([count]), bench.output([count])], [0.5, 2]),
  ),
  ...define("sum_squares", buffers, noFlops, (bench, { count }) =>
    bench.kernel("reduce", [bench.input([1, count]), bench.output([1], "f32")], [Reduce.sum_squares, 1]),
  ),
  ...define("normal", onlyF32(counts(4096, 4 * MIB, 64 * MIB)), noFlops, (bench, { count }) =>
    bench.kernel("normal", [bench.output([count])], [1, 2, 3]),
  ),
  ...define("rope", rotations, noFlops, (bench, { batch, tokens, channels }) => {
    const shape = [batch, tokens, channels];
    const tables = [bench.between([tokens, channels], -1, 1), bench.between([tokens, channels], -1, 1)];
    return bench.kernel("rope", [bench.input(shape), ...tables, bench.output(shape)], [0]);
  }),
  ...define("space_to_depth", patches, noFlops, (bench, s) =>
    bench.kernel("space_to_depth", [bench.input(wide(s)), bench.output(narrow(s))], patchScalars(s)),
  ),
  ...define("depth_to_space", patches, noFlops, (bench, s) =>
    bench.kernel("depth_to_space", [bench.input(narrow(s)), bench.output(wide(s))], patchScalars(s)),
  ),
  ...define("channels_last", borders, noFlops, (bench, { batch, channels, positions }) =>
    bench.kernel("transpose", [bench.input([batch, channels, positions]), bench.output([batch, positions, channels])]),
  ),
];

/** Clipping by the gradients' norm and Adam: what stands at the end of each step. Last: it needs the most memory. */
export const adamCases = define("adam", models, noFlops, (bench, { count, tensors }) => {
  const list = (make: () => ReturnType<typeof bench.input>) => Array.from({ length: tensors }, make);
  const state = {
    params: list(() => bench.parameter([count])),
    grads: list(() => bench.input([count])),
    m: list(() => bench.between([count], -1, 1)),
    v: list(() => bench.between([count], 0, 1)),
  };
  const norm = bench.output([1]);
  const update = { lr: 1e-6, betas: [0.9, 0.99] as const, eps: 1e-8, weightDecay: 0, decoupled: false, step: 10 };
  // Gradients are read twice, for the norm and for the update; parameters and moments are read and written.
  const bytes = 2 * byteLength(...state.params, ...state.grads, ...state.m, ...state.v);
  const run = () => {
    launch("global_norm", [norm, ...state.grads]);
    adamUpdate(state, { ...update, norm, maxNorm: 1 });
  };
  return { run, bytes };
});
