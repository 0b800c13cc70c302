import { parseVaeParams, type TrainingConfig } from "../../../lib/config/index.js";
import { flowTrainingSchema, resolveFlowTraining } from "../../../lib/config/training.js";
import {
  addNoise,
  eulerSteps,
  flowLossAt,
  sampleTimes,
  type TimeDistribution,
  velocityError,
  velocityTarget,
} from "../../../lib/diffusion/index.js";
import type { LtxVideoTransformer } from "../../../lib/models/transformer/index.js";
import { VideoVae } from "../../../lib/models/video-vae/index.js";
import { toCheckpoint } from "../../../lib/nn/index.js";
import { affine, clamp, full, mean, toChannelsFirst, toChannelsLast } from "../../../lib/ops/index.js";
import { backward, noGrad, scope, Tensor } from "../../../lib/tensor/index.js";
import { backwardShare, type LossTerms, Trainer } from "../../../lib/training/trainer.js";
import { constant, evaluate } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";
import { loadTransformer } from "./transformer.js";

const NETWORK = "score_network.";
/** The noise amplitude that the reference always tells the decoder. */
const REFERENCE_DECODE_TIME = 1e-3;

const floats = async (tensor: Tensor): Promise<Float32Array> => Float32Array.from(await tensor.read());
const video = (fixture: Fixture, name: string): Tensor => toChannelsLast(constant(fixture, `input/${name}`));
const network = (fixture: Fixture) =>
  loadTransformer(fixture, fixture.config.config.diffusion.score_network.params, NETWORK);

function autoencoder(fixture: Fixture): VideoVae | null {
  const { vae_params, vae_base_channels } = fixture.config;
  if (!vae_params) return null;
  const { loss_config: _, ...params } = vae_params;
  const vae = new VideoVae(parseVaeParams({ ...params, base_channels: vae_base_channels }, fixture.path));
  // The file of a sampler holds all of the VAE, that of a loss too; only what belongs to the loss itself is left out.
  vae.loadStateDict(new Map([...fixture.state("vae.")].filter(([key]) => !key.startsWith("loss."))));
  return vae;
}

/** A point on the line from noise to data, and the velocity along it. */
export const qsample: GoldenCase = (fixture) =>
  evaluate(null, () => {
    const [x0, noise] = [constant(fixture, "input/x0"), constant(fixture, "input/noise")];
    const x_t = addNoise(x0, noise, constant(fixture, "input/t"));
    return { output: { x_t, target: velocityTarget(x0, noise) } };
  });

/** Moments and quantiles of the training times, from draws of our own. */
export const times: GoldenCase = async (fixture) => {
  const { draws, distribution } = fixture.config as { draws: number; distribution: TimeDistribution };
  const values = (await floats(sampleTimes(draws, distribution, { seed: 1, step: 0, purpose: 0 }))).sort();
  const average = values.reduce((a, b) => a + b, 0) / draws;
  const variance = values.reduce((a, b) => a + (b - average) ** 2, 0) / (draws - 1);
  const quantiles = Float32Array.from(fixture.data("input/quantile_levels"), (level) => {
    const at = level * (draws - 1);
    const low = Math.floor(at);
    return values[low] + (at - low) * (values[Math.min(low + 1, draws - 1)] - values[low]);
  });
  return new Map([
    ["output/mean", Float32Array.of(average)],
    ["output/variance", Float32Array.of(variance)],
    ["output/quantiles", quantiles],
  ]);
};

/** What the flow starts from: pixels in [-1, 1], or the latents of a frozen VAE at unit spread. */
async function flowData(fixture: Fixture): Promise<{ z0: Tensor; scale: number | null }> {
  const images = video(fixture, "images");
  const vae = autoencoder(fixture);
  if (!vae) return { z0: affine(images, 2, -1), scale: null };
  const z = noGrad(() => vae.sample(vae.encodeMoments(images), video(fixture, "posterior_noise")));
  const values = await floats(z);
  const average = values.reduce((a, b) => a + b, 0) / values.length;
  const scale = 1 / Math.sqrt(values.reduce((a, b) => a + (b - average) ** 2, 0) / (values.length - 1));
  vae.dispose();
  return { z0: affine(z, scale), scale };
}

/** An input; with `step` the row of that step, of an input that has one for each. */
function row(fixture: Fixture, name: string, step?: number): { values: Float32Array; shape: readonly number[] } {
  const [values, shape] = [fixture.data(`input/${name}`), fixture.shape(`input/${name}`)];
  if (step === undefined) return { values, shape };
  const size = values.length / shape[0];
  return { values: values.subarray(step * size, (step + 1) * size), shape: shape.slice(1) };
}

/** The prompts' tensor with the empty prompt's rows where `cfg_mask` drops them. */
function withDroppedPrompts(fixture: Fixture, name: string, step?: number): Tensor {
  const { values, shape } = row(fixture, name, step);
  const result = values.slice();
  const empty = fixture.data(`input/uncond_${name}`);
  const { values: mask } = row(fixture, "cfg_mask", step);
  for (const [i, dropped] of mask.entries()) if (dropped) result.set(empty, i * empty.length);
  return Tensor.from(result, shape);
}

/** The training loss at given times and noises, and the gradients of the transformer. */
export const flowLossCase: GoldenCase = async (fixture) => {
  const model = network(fixture);
  const { z0, scale } = await flowData(fixture);
  const text = withDroppedPrompts(fixture, "text_embeddings");
  const mask = withDroppedPrompts(fixture, "text_attention_mask");
  const result = await evaluate(
    model,
    () => {
      const noise = video(fixture, "epsilon");
      const t = constant(fixture, "input/t");
      const x_t = addNoise(z0, noise, t);
      const target = velocityTarget(z0, noise);
      const velocity = model.forward(x_t, t, text, mask);
      const loss_per_sample = velocityError(velocity, target);
      const loss = mean(loss_per_sample);
      backward(loss);
      const videos = Object.entries({ z0, x_t, target, velocity }).map(([name, x]) => [name, toChannelsFirst(x)]);
      return { output: { loss, loss_per_sample, ...Object.fromEntries(videos) } };
    },
    NETWORK,
  );
  if (scale !== null) result.set("output/latent_scale_factor", Float32Array.of(scale));
  return result;
};

/** The trainers' own loop over the draws that the file holds: step i reads row i of its inputs. */
class CurveTrainer extends Trainer<number> {
  readonly stage = "flow";

  constructor(
    private readonly fixture: Fixture,
    private readonly model: LtxVideoTransformer,
    training: TrainingConfig,
  ) {
    super(model.device, training, { model: model.namedParameters() });
  }

  private row(name: string, step: number): Tensor {
    const { values, shape } = row(this.fixture, name, step);
    return Tensor.from(values, shape);
  }

  protected async prepare(index: number): Promise<number> {
    return index;
  }

  protected accumulate(step: number, _index: number, share: number): LossTerms {
    const loss = scope(() => {
      const x0 = affine(toChannelsLast(this.row("images", step)), 2, -1);
      const noise = toChannelsLast(this.row("epsilon", step));
      const text = withDroppedPrompts(this.fixture, "text_embeddings", step);
      const mask = withDroppedPrompts(this.fixture, "text_attention_mask", step);
      return flowLossAt((x, t) => this.model.forward(x, t, text, mask), x0, this.row("t", step), noise);
    });
    backwardShare(loss, share);
    return { loss, terms: {} };
  }

  protected async validate(): Promise<Record<string, number>> {
    return {};
  }

  protected contents() {
    return { model: [], metadata: {} };
  }

  protected parameterTotal(): number {
    return this.model.parameterCount;
  }
}

/** Losses, norms and changes of the parameters over some training steps. */
export const flowCurve: GoldenCase = async (fixture) => {
  const {
    steps,
    learning_rate,
    betas,
    eps,
    max_grad_norm,
    num_warmup_steps: warmup_steps = 0,
    config,
  } = fixture.config;
  const optimizer = { name: "adam", betas, eps };
  const input = flowTrainingSchema.parse({
    steps,
    learning_rate,
    max_grad_norm,
    optimizer,
    lr_schedule: { warmup_steps },
  });
  const model = loadTransformer(fixture, config.diffusion.score_network.params);
  const trainer = new CurveTrainer(fixture, model, resolveFlowTraining(input, 0, [], []));
  const losses: number[] = [];
  const norms: number[] = [];
  for await (const event of trainer.run()) {
    if (event.type !== "step") continue;
    losses.push(event.loss);
    norms.push(event.gradientNorm);
  }
  const result = new Map<string, Float32Array>([
    ["output/losses", Float32Array.from(losses)],
    ["output/grad_norm", Float32Array.from(norms)],
  ]);
  const initial = fixture.state();
  for (const [key, parameter] of model.namedParameters()) {
    const values = toCheckpoint(parameter, (await parameter.read()) as Float32Array);
    const before = initial.get(key)?.data ?? [];
    result.set(`output/final.${key}`, values);
    result.set(
      `output/delta.${key}`,
      values.map((value, i) => value - before[i]),
    );
  }
  trainer.dispose();
  model.dispose();
  return result;
};

/** The reference's sampling loop from given noise, and what is shown or decoded at its end. */
export const sampler: GoldenCase = async (fixture) => {
  const { steps_N: steps, initial_timestep: initialTimestep, latent_scale_factor: scale } = fixture.config;
  const model = network(fixture);
  const text = constant(fixture, "input/text_embeddings");
  const mask = constant(fixture, "input/text_attention_mask");
  const start = video(fixture, "initial_noise");
  const states = [await floats(toChannelsFirst(start))];
  const times: number[] = [];
  let last = start;
  const velocity = (x: Tensor, t: Tensor) => model.forward(x, t, text, mask);
  for await (const step of eulerSteps({ velocity, start, steps, initialTimestep })) {
    states.push(await floats(toChannelsFirst(step.latents)));
    times.push(step.modelTime);
    last = step.latents;
  }
  const final = states.pop() as Float32Array;
  const trajectory = new Float32Array(states.length * start.size);
  for (const [k, state] of states.entries()) trajectory.set(state, k * start.size);
  const result = new Map([
    ["output/trajectory", trajectory],
    ["output/times", Float32Array.from(times)],
    ["output/final_latents", final],
  ]);
  const vae = autoencoder(fixture);
  const batch = start.shape[0];
  const samples = noGrad(() => {
    if (!vae) return affine(clamp(last, -1, 1), 0.5, 0.5);
    const timestep = vae.config.timestep_conditioning ? full([batch], REFERENCE_DECODE_TIME) : null;
    return vae.decode(affine(last, 1 / scale), timestep);
  });
  result.set("output/samples", await floats(toChannelsFirst(samples)));
  result.set("output/decoder_timestep", new Float32Array(batch).fill(REFERENCE_DECODE_TIME));
  model.dispose();
  vae?.dispose();
  return result;
};
