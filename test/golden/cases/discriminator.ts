import { Discriminator } from "../../../lib/models/discriminator.js";
import { type Module, StateBuffer } from "../../../lib/nn/index.js";
import { reshape, toChannelsFirst, toChannelsLast } from "../../../lib/ops/index.js";
import { backward, type Tensor } from "../../../lib/tensor/index.js";
import { constant, evaluate, expectOption, init, leaf } from "../support/evaluate.js";
import type { GoldenCase } from "../support/fixture.js";

/** (B,C,F,H,W), or an image (B,C,H,W), to channels last, images as clips of one frame. */
export function framesLast(x: Tensor): Tensor {
  const [b, c, ...size] = x.shape;
  return toChannelsLast(x.dims === 4 ? reshape(x, [b, c, 1, ...size]) : x);
}

/** The state of a module that is measured, by key behind `prefix`. */
export function buffers(module: Module, prefix = ""): Record<string, Tensor> {
  const found = [...module.namedState(prefix)].filter(([, item]) => item instanceof StateBuffer);
  return Object.fromEntries(found) as Record<string, Tensor>;
}

function discriminator(use3d: boolean): GoldenCase {
  return (fixture) => {
    expectOption(fixture, "use_actnorm", false);
    const { input_nc, output_nc, ndf, n_layers, training } = fixture.config;
    const options = { inputChannels: input_nc, outputChannels: output_nc, layers: n_layers, width: ndf, use3d };
    const module = new Discriminator(options, init()).train(training);
    module.loadStateDict(fixture.state());
    return evaluate(module, () => {
      const x = leaf(fixture, "input/x");
      const logits = toChannelsFirst(module.forward(framesLast(x)));
      backward(logits, constant(fixture, "input/cotangent"));
      return { output: { logits, ...buffers(module) }, input: { x } };
    });
  };
}

export const discriminator2d = discriminator(false);
export const discriminator3d = discriminator(true);
