import { DepthToSpaceUpsample } from "../../../lib/models/video-vae/index.js";
import { CausalConv3d } from "../../../lib/nn/index.js";
import { depthToSpace, spaceToDepth, toChannelsFirst, toChannelsLast } from "../../../lib/ops/index.js";
import { backward, Tensor } from "../../../lib/tensor/index.js";
import { constant, evaluate, expectOption, init, leaf } from "../support/evaluate.js";
import type { GoldenCase } from "../support/fixture.js";

type Triple = [number, number, number];

export const causalConv3d: GoldenCase = (fixture) => {
  const { in_channels, out_channels, kernel_size: kernel, stride, causal } = fixture.config;
  expectOption(fixture, "dilation", 1);
  expectOption(fixture, "groups", 1);
  const steps: Triple = typeof stride === "number" ? [stride, stride, stride] : stride;
  const module = new CausalConv3d(in_channels, out_channels, init(), { kernel, stride: steps, causal });
  module.loadStateDict(fixture.state());
  return evaluate(module, () => {
    const x = leaf(fixture, "input/x");
    const y = toChannelsFirst(module.forward(toChannelsLast(x)));
    backward(y, constant(fixture, "input/cotangent"));
    return { output: { y }, input: { x } };
  });
};

export const depthToSpaceUpsample: GoldenCase = (fixture) => {
  const { in_channels, stride, residual, out_channels_reduction_factor: factor, causal } = fixture.config;
  expectOption(fixture, "dims", 3);
  const module = new DepthToSpaceUpsample(in_channels, init(), { stride, residual, factor, causal });
  module.loadStateDict(fixture.state());
  return evaluate(module, () => {
    const x = leaf(fixture, "input/x");
    const y = toChannelsFirst(module.forward(toChannelsLast(x)));
    backward(y, constant(fixture, "input/cotangent"));
    return { output: { y }, input: { x } };
  });
};

export const patchify: GoldenCase = (fixture) => {
  const { patch_size_hw: p, patch_size_t: pt } = fixture.config;
  const options = { stride: [pt, p, p] as Triple, order: "time_width_height" as const };
  return evaluate(null, () => {
    // An image is a video of one frame.
    const shape = fixture.shape("input/x");
    const video = shape.length === 4 ? [...shape.slice(0, 2), 1, ...shape.slice(2)] : shape;
    const patches = spaceToDepth(toChannelsLast(Tensor.from(fixture.data("input/x"), video)), options);
    const output = {
      patchified: toChannelsFirst(patches),
      unpatchified: toChannelsFirst(depthToSpace(patches, options)),
    };
    return { output };
  });
};
