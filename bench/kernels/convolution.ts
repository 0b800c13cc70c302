import { type Conv3dOptions, conv3dShape } from "../../lib/ops/index.js";
import { sizeOf } from "../../lib/tensor/index.js";
import { type Bench, define, type Problem } from "./case.js";

interface ConvSizes extends Record<string, number> {
  batch: number;
  frames: number;
  height: number;
  width: number;
  inputs: number;
  outputs: number;
  /** Kernel and stride along (time, height, width). */
  kt: number;
  kh: number;
  kw: number;
  st: number;
  sh: number;
  sw: number;
  /** Frames added in front and behind, which repeat the first and the last one when `replicate`; zeros in space. */
  front: number;
  back: number;
  ph: number;
  pw: number;
  replicate: number;
}

type Extents = readonly [batch: number, frames: number, height: number, width: number];
const of = ([batch, frames, height, width]: Extents, inputs: number, outputs: number) => ({
  ...{ batch, frames, height, width, inputs, outputs },
});
const ones = { st: 1, sh: 1, sw: 1 };

/** The VAE's convolution: kernel 3, time padded by repeated frames, all in front when causal. */
const causal = (extents: Extents, inputs: number, outputs = inputs, stride = 1): ConvSizes => {
  const kernel = { kt: 3, kh: 3, kw: 3, st: stride, sh: stride, sw: stride };
  return { ...of(extents, inputs, outputs), ...kernel, front: 2, back: 0, ph: 1, pw: 1, replicate: 1 };
};
const centred = (extents: Extents, inputs: number, outputs = inputs): ConvSizes => {
  return { ...causal(extents, inputs, outputs), front: 1, back: 1 };
};
const point = (extents: Extents, inputs: number, outputs: number): ConvSizes => {
  const kernel = { kt: 1, kh: 1, kw: 1, ...ones };
  return { ...of(extents, inputs, outputs), ...kernel, front: 0, back: 0, ph: 0, pw: 0, replicate: 0 };
};
/** Of VGG: every frame an image. */
const image = (extents: Extents, channels: number): ConvSizes => {
  const kernel = { kt: 1, kh: 3, kw: 3, ...ones };
  return { ...of(extents, channels, channels), ...kernel, front: 0, back: 0, ph: 1, pw: 1, replicate: 0 };
};
/** Of the discriminator: kernel 4, stride 2, zeros on all sides. */
const patch = (extents: Extents, inputs: number, outputs: number): ConvSizes => {
  const kernel = { kt: 4, kh: 4, kw: 4, st: 2, sh: 2, sw: 2 };
  return { ...of(extents, inputs, outputs), ...kernel, front: 1, back: 1, ph: 1, pw: 1, replicate: 0 };
};

/** Of the VAE's layers those that a GPU's quick check takes. */
const QUICK = ["1x13x8x8 256", "1x4x2x2 512", "1x25x16x16 128 stride 2"];

/** Each layer of configs/moving_mnist/autoencoder.yaml once: the encoder's, then those that only the decoder has. */
function vaeLayers(batch: number): Problem<ConvSizes>[] {
  const first: Extents = [batch, 25, 16, 16];
  const second: Extents = [batch, 13, 8, 8];
  const third: Extents = [batch, 7, 4, 4];
  const last: Extents = [batch, 4, 2, 2];
  const named = (extents: Extents, layer: string, sizes: ConvSizes): Problem<ConvSizes> => {
    const name = `${extents.join("x")} ${layer}`;
    return { scale: QUICK.includes(name) ? "small" : "cpu", name, sizes };
  };
  return [
    named(first, "16->128 in", causal(first, 16, 128)),
    named(first, "128", causal(first, 128)),
    named(first, "128 stride 2", causal(first, 128, 128, 2)),
    named(second, "128->256", causal(second, 128, 256)),
    named(second, "128->256 point", point(second, 128, 256)),
    named(second, "256", causal(second, 256)),
    named(second, "256 stride 2", causal(second, 256, 256, 2)),
    named(third, "256->512", causal(third, 256, 512)),
    named(third, "256->512 point", point(third, 256, 512)),
    named(third, "512", causal(third, 512)),
    named(third, "512 stride 2", causal(third, 512, 512, 2)),
    named(last, "512", causal(last, 512)),
    named(last, "512->129", causal(last, 512, 129)),
    named(last, "128->512 in", centred(last, 128, 512)),
    named(last, "512->4096 up", centred(last, 512, 4096)),
    named(third, "512->256", centred(third, 512, 256)),
    named(third, "512->256 point", point(third, 512, 256)),
    named(third, "256", centred(third, 256)),
    named(third, "256->2048 up", centred(third, 256, 2048)),
    named(second, "256->128", centred(second, 256, 128)),
    named(second, "256->128 point", point(second, 256, 128)),
    named(second, "128", centred(second, 128)),
    named(second, "128->1024 up", centred(second, 128, 1024)),
    named(first, "128->16 out", centred(first, 128, 16)),
  ];
}

// Layers of the same VAE at batch 8, then those of larger clips, the last as the official decoder meets it at
// 121 x 512 x 768.
/** Those of its layers that run fastest: a CPU's rate is what products or these reach. */
export const WIDEST = ["1x25x16x16 128", "4x25x16x16 128"];

const problems: Problem<ConvSizes>[] = [
  { scale: "tiny", name: "1x3x6x6 16->24", sizes: causal([1, 3, 6, 6], 16, 24) },
  { scale: "tiny", name: "1x5x6x6 8->8 stride 2", sizes: causal([1, 5, 6, 6], 8, 8, 2) },
  ...[1, 4].flatMap(vaeLayers),
  { scale: "large", name: "8x25x16x16 16->128 in", sizes: causal([8, 25, 16, 16], 16, 128) },
  { scale: "large", name: "8x25x16x16 128", sizes: causal([8, 25, 16, 16], 128) },
  { scale: "large", name: "8x25x16x16 128 stride 2", sizes: causal([8, 25, 16, 16], 128, 128, 2) },
  { scale: "large", name: "8x13x8x8 128->256", sizes: causal([8, 13, 8, 8], 128, 256) },
  { scale: "large", name: "8x13x8x8 256", sizes: causal([8, 13, 8, 8], 256) },
  { scale: "large", name: "8x13x8x8 128->256 point", sizes: point([8, 13, 8, 8], 128, 256) },
  { scale: "large", name: "8x7x4x4 512", sizes: causal([8, 7, 4, 4], 512) },
  { scale: "large", name: "8x4x2x2 512", sizes: causal([8, 4, 2, 2], 512) },
  { scale: "large", name: "8x4x2x2 512->4096 up", sizes: centred([8, 4, 2, 2], 512, 4096) },
  { scale: "large", name: "8x13x8x8 128->1024 up", sizes: centred([8, 13, 8, 8], 128, 1024) },
  { scale: "large", name: "8x25x16x16 128->16 out", sizes: centred([8, 25, 16, 16], 128, 16) },
  { scale: "large", name: "4x25x32x32 128", sizes: causal([4, 25, 32, 32], 128) },
  { scale: "large", name: "1x25x64x64 128", sizes: causal([1, 25, 64, 64], 128) },
  { scale: "large", name: "1x31x32x48 512", sizes: centred([1, 31, 32, 48], 512) },
  { scale: "large", name: "1x121x128x192 128", sizes: centred([1, 121, 128, 192], 128), dtypes: ["bf16"] },
  { scale: "large", name: "64x1x64x64 64 image", sizes: image([64, 1, 64, 64], 64) },
  { scale: "large", name: "8x13x32x32 64->128 patch", sizes: patch([8, 13, 32, 32], 64, 128) },
];

function operands(bench: Bench, s: ConvSizes) {
  const x = [s.batch, s.frames, s.height, s.width, s.inputs];
  const w = [s.outputs, s.kt, s.kh, s.kw, s.inputs];
  const y = outputShape(s);
  const scalars = [s.st, s.sh, s.sw, s.front, s.back, s.ph, s.pw, s.replicate];
  const bias = () => bench.parameter([s.outputs]);
  return { x, w, y, scalars, bias };
}

function outputShape(s: ConvSizes) {
  const options: Conv3dOptions = {
    stride: [s.st, s.sh, s.sw],
    padTime: [s.front, s.back],
    padSpace: [s.ph, s.pw],
  };
  return conv3dShape(
    [s.batch, s.frames, s.height, s.width, s.inputs],
    [s.outputs, s.kt, s.kh, s.kw, s.inputs],
    options,
  );
}

const flops = (s: ConvSizes) => 2 * sizeOf(outputShape(s)) * s.kt * s.kh * s.kw * s.inputs;

export const convolutionCases = [
  ...define("conv3d", problems, flops, (bench, s) => {
    const { x, w, y, scalars, bias } = operands(bench, s);
    return bench.kernel("conv3d", [bench.input(x), bench.parameter(w), bias(), null, bench.output(y)], scalars);
  }),
  ...define("conv3d_backward_input", problems, flops, (bench, s) => {
    const { x, w, y, scalars } = operands(bench, s);
    return bench.kernel("conv3d_backward_input", [bench.input(y), bench.parameter(w), bench.output(x)], scalars);
  }),
  ...define("conv3d_backward_weight", problems, flops, (bench, s) => {
    const { x, w, y, scalars } = operands(bench, s);
    const grads = [bench.output(w, "f32"), bench.output([s.outputs], "f32")];
    return bench.kernel("conv3d_backward_weight", [bench.input(x), bench.input(y), ...grads], scalars);
  }),
];
