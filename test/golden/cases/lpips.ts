import { Lpips } from "../../../lib/models/lpips.js";
import { backward } from "../../../lib/tensor/index.js";
import { constant, evaluate, expectOption, leaf } from "../support/evaluate.js";
import type { GoldenCase } from "../support/fixture.js";
import { framesLast } from "./discriminator.js";

/** LPIPS on the reference's inputs: pixels in [0, 1]. */
export const lpips: GoldenCase = (fixture) => {
  expectOption(fixture, "training", false);
  const prefix = fixture.config.hash_prefix ?? "";
  const module = new Lpips(fixture.state(prefix), { range: "unit" }, fixture.name);
  return evaluate(module, () => {
    const reconstructions = leaf(fixture, "input/reconstructions");
    const value = module.forward(framesLast(constant(fixture, "input/inputs")), framesLast(reconstructions));
    backward(value, constant(fixture, "input/cotangent"));
    return { output: { value }, input: { reconstructions } };
  });
};
