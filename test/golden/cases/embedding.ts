import { TimestepEmbedding } from "../../../lib/nn/index.js";
import { sinusoid } from "../../../lib/ops/index.js";
import { backward } from "../../../lib/tensor/index.js";
import { constant, evaluate, expectOption, init } from "../support/evaluate.js";
import type { GoldenCase } from "../support/fixture.js";

export const timestepEmbedding: GoldenCase = (fixture) => {
  const { embedding_dim, frequency_dim, max_period } = fixture.config;
  expectOption(fixture, "frequency_dim", 256);
  expectOption(fixture, "flip_sin_to_cos", true);
  expectOption(fixture, "max_period", 10000);
  expectOption(fixture, "size_emb_dim", 0);
  const module = new TimestepEmbedding(embedding_dim, init());
  module.loadStateDict(fixture.state());
  return evaluate(module, () => {
    const timestep = constant(fixture, "input/timestep");
    const embedding = module.forward(timestep);
    backward(embedding, constant(fixture, "input/cotangent"));
    return { output: { embedding, sinusoid: sinusoid(timestep, frequency_dim, max_period) } };
  });
};
