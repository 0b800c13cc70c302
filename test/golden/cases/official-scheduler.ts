import { parseOfficialScheduler } from "../../../lib/config/official/scheduler.js";
import { flowStep, inferenceTimesteps, noiseTokens } from "../../../lib/diffusion/official/index.js";
import { noGrad, scope } from "../../../lib/tensor/index.js";
import { constant, evaluate } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";

/** Latent pixels of a state: (B, L, C), or (B, C, …). */
function tokensOf(shape: readonly number[]): number {
  return shape.length === 3 ? shape[1] : shape.slice(2).reduce((n, d) => n * d, 1);
}

/** The schedules of all samplers and shifts, given lists, and those with steps left out. */
export const schedulerTimesteps: GoldenCase = async (fixture) => {
  const result = new Map<string, Float32Array>();
  for (const spec of fixture.config.cases) {
    const times = inferenceTimesteps(parseOfficialScheduler(spec.scheduler ?? {}, fixture.name), {
      timesteps: spec.timesteps,
      numInferenceSteps: spec.num_inference_steps,
      skipInitialInferenceSteps: spec.skip_initial_inference_steps,
      skipFinalInferenceSteps: spec.skip_final_inference_steps,
      tokens: tokensOf(spec.samples_shape ?? [1, 1, 1]),
      float32: true,
    });
    result.set(`output/timesteps_${nameOf(spec)}`, Float32Array.from(times));
  }
  return result;
};

function nameOf({ index, custom, retrieve }: { index?: number; custom?: number; retrieve?: number }): string {
  if (custom !== undefined) return `custom_${custom}`;
  return retrieve === undefined ? String(index).padStart(2, "0") : `retrieve_${retrieve}`;
}

/** Single steps, for a whole state and token by token, and noising. */
export const schedulerStep: GoldenCase = (fixture) =>
  evaluate(null, () =>
    noGrad(() => {
      const outputs = fixture.config.cases.map((spec: StepSpec) =>
        spec.add_noise ? ["add_noise", addNoise(fixture)] : [`prev_sample_${spec.index}`, oneStep(fixture, spec)],
      );
      return { output: Object.fromEntries(outputs) };
    }),
  );

interface StepSpec {
  index: number;
  timesteps: readonly number[];
  stochastic_sampling: boolean;
  add_noise?: boolean;
}

function oneStep(fixture: Fixture, { index, timesteps, stochastic_sampling: stochastic }: StepSpec) {
  const times = fixture.data(`input/timestep_${index}`);
  return flowStep(constant(fixture, `input/sample_${index}`), constant(fixture, `input/model_output_${index}`), {
    timesteps: timesteps.map(Math.fround),
    time: times.length === 1 ? times[0] : times,
    noise: stochastic ? constant(fixture, `input/noise_${index}`) : null,
  });
}

/** With one time for each sample. */
function addNoise(fixture: Fixture) {
  const sample = constant(fixture, "input/add_noise_sample");
  const times = fixture.data("input/add_noise_timesteps");
  const length = sample.shape[1];
  const each = Float32Array.from({ length: times.length * length }, (_, i) => times[Math.floor(i / length)]);
  return scope(() => noiseTokens(sample, constant(fixture, "input/add_noise_noise"), each));
}
