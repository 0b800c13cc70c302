import { NoisePlanes, ResnetBlock3D, type ResnetOptions, UNetMidBlock3D } from "../../../lib/models/video-vae/index.js";
import { reshape, toChannelsFirst, toChannelsLast } from "../../../lib/ops/index.js";
import { backward, type Tensor } from "../../../lib/tensor/index.js";
import { constant, evaluate, expectOption, init, leaf } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";

/** The stored noise fields (`noise1`, `noise2`, …) in the order of their use. */
export function noiseTensors(fixture: Fixture): Tensor[] {
  const number = (name: string) => Number(name.slice("input/noise".length));
  const names = fixture.names("input/noise").sort((a, b) => number(a) - number(b));
  return names.map((name) => constant(fixture, name));
}

export const noisePlanes = (fixture: Fixture): NoisePlanes => new NoisePlanes(noiseTensors(fixture));

export const resnetBlock: GoldenCase = (fixture) => {
  const { in_channels, out_channels, groups, eps, norm_layer: norm } = fixture.config;
  const { inject_noise: injectNoise, timestep_conditioning: timestepConditioning, causal } = fixture.config;
  expectOption(fixture, "dims", 3);
  const options: ResnetOptions = { norm, groups, eps, causal, injectNoise, timestepConditioning };
  const module = new ResnetBlock3D(in_channels, out_channels, init(), options);
  module.loadStateDict(fixture.state());
  return evaluate(module, () => {
    const x = leaf(fixture, "input/x");
    const input: Record<string, Tensor> = { x };
    if (timestepConditioning) input.timestep = leaf(fixture, "input/timestep");
    const embedding = input.timestep ? reshape(input.timestep, [x.shape[0], -1]) : null;
    const y = toChannelsFirst(module.forward(toChannelsLast(x), embedding, noisePlanes(fixture)));
    backward(y, constant(fixture, "input/cotangent"));
    return { output: { y }, input };
  });
};

export const midBlock: GoldenCase = (fixture) => {
  const { in_channels, num_layers, resnet_eps: eps, resnet_groups: groups, norm_layer: norm } = fixture.config;
  const { inject_noise: injectNoise, timestep_conditioning: timestepConditioning, causal } = fixture.config;
  expectOption(fixture, "dims", 3);
  const options: ResnetOptions = { norm, groups, eps, causal, injectNoise, timestepConditioning };
  const module = new UNetMidBlock3D(in_channels, num_layers, init(), options);
  module.loadStateDict(fixture.state());
  return evaluate(module, () => {
    const x = leaf(fixture, "input/x");
    const timestep = timestepConditioning ? constant(fixture, "input/timestep") : null;
    const y = toChannelsFirst(module.forward(toChannelsLast(x), { timestep, noise: noisePlanes(fixture) }));
    backward(y, constant(fixture, "input/cotangent"));
    return { output: { y }, input: { x } };
  });
};
