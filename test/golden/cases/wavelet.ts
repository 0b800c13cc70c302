import { waveletLoss } from "../../../lib/losses/index.js";
import { haar, reshape, toChannelsLast, transpose } from "../../../lib/ops/index.js";
import { backward, type Tensor } from "../../../lib/tensor/index.js";
import { constant, evaluate, expectOption, leaf } from "../support/evaluate.js";
import type { GoldenCase } from "../support/fixture.js";

/** (B,8,F,H,W,C) to (B,8,C,F,H,W). */
function bandsFirst(x: Tensor): Tensor {
  const [b, bands, f, h, w, c] = x.shape;
  return reshape(transpose(reshape(x, [b * bands, f * h * w, c])), [b, bands, c, f, h, w]);
}

export const dwt3: GoldenCase = (fixture) => {
  expectOption(fixture, "wavelet", "haar");
  return evaluate(null, () => {
    const reconstructions = leaf(fixture, "input/reconstructions");
    const wavelet_loss = waveletLoss(
      toChannelsLast(reconstructions),
      toChannelsLast(constant(fixture, "input/targets")),
    );
    backward(wavelet_loss, constant(fixture, "input/cotangent"));

    const dwt_reconstructions = leaf(fixture, "input/reconstructions");
    const coefficients = bandsFirst(haar(toChannelsLast(dwt_reconstructions)));
    backward(coefficients, constant(fixture, "input/cotangent_coefficients"));
    return { output: { coefficients, wavelet_loss }, input: { reconstructions, dwt_reconstructions } };
  });
};
