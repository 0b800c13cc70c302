import type { Parameter } from "../../../lib/nn/index.js";
import { Adam, scheduleFactor } from "../../../lib/optim/index.js";
import { Tensor } from "../../../lib/tensor/index.js";
import { expectOption, init } from "../support/evaluate.js";
import type { GoldenCase } from "../support/fixture.js";

export const adam: GoldenCase = async (fixture) => {
  const { optimizer, lr, betas, eps, weight_decay: weightDecay, max_grad_norm: maxGradNorm } = fixture.config;
  const { num_warmup_steps: warmup, steps } = fixture.config;
  expectOption(fixture, "optimizer", "Adam", "AdamW");
  const initial = fixture.state();
  const parameters = new Map<string, Parameter>();
  for (const [key, { shape, data }] of initial) {
    const parameter = init().constant(shape, 0);
    parameter.write(data);
    parameters.set(key, parameter);
  }
  const decoupled = optimizer === "AdamW";
  const updater = new Adam([...parameters.values()], { lr, betas, eps, weightDecay, decoupled, maxGradNorm });
  const result = new Map<string, Float32Array>();
  const norms: number[] = [];
  const rates: number[] = [];
  for (let step = 0; step < steps; step++) {
    for (const [key, parameter] of parameters) {
      parameter.grad = Tensor.from(fixture.data(`input/grad${step}.${key}`), parameter.shape);
    }
    const rate = lr * scheduleFactor({ kind: "constant", warmup }, step);
    const norm = updater.step(rate);
    rates.push(rate);
    norms.push(await norm.item());
    norm.dispose();
    for (const [key, parameter] of parameters) {
      const values = Float32Array.from(await parameter.read());
      const before = initial.get(key)!.data;
      result.set(`output/params${step}.${key}`, values);
      result.set(
        `output/delta${step}.${key}`,
        values.map((value, i) => value - before[i]),
      );
    }
  }
  result.set("output/clip_norms", Float32Array.from(norms));
  result.set("output/lrs", Float32Array.from(rates));
  updater.dispose();
  for (const parameter of parameters.values()) parameter.dispose();
  return result;
};
