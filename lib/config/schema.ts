import { z } from "zod";
import { type DataConfig, dataSchema, resolveData } from "./data.js";
import {
  type DiffusionConfig,
  type DiffusionInput,
  diffusionSchema,
  type SamplingConfig,
  type TextEncoderConfig,
} from "./diffusion.js";
import { vaeFactors } from "./geometry.js";
import { type Problem, section } from "./problems.js";
import {
  type FlowTrainingConfig,
  flowTrainingSchema,
  resolveFlowTraining,
  resolveVaeTraining,
  type VaeTrainingConfig,
  vaeTrainingSchema,
} from "./training.js";
import { resolveTransformer, type TransformerConfig } from "./transformer.js";
import { lossParams, type VaeComponent, type VaeConfig, type VaeLossConfig, vaeComponent } from "./vae.js";
import {
  checkClip,
  checkLoss,
  checkSampling,
  checkTextEncoder,
  checkTransformer,
  checkVae,
  checkVaeData,
  fitData,
  type TokenGrid,
} from "./validate.js";

/** `reference` repeats the reference's defects where a checkpoint or a curve depends on them; `native` mends them. */
export type Compat = "native" | "reference";

/** Training a video VAE. */
export interface VaeRunConfig {
  kind: "vae";
  compat: Compat;
  vae: VaeConfig;
  loss: VaeLossConfig;
  data: DataConfig;
  training: VaeTrainingConfig;
}

/** Training a transformer by rectified flow, on the latents of `latent_encoder`, or on pixels when that is null. */
export interface FlowRunConfig {
  kind: "flow";
  compat: Compat;
  transformer: TransformerConfig;
  diffusion: DiffusionConfig;
  text_encoder: TextEncoderConfig;
  data: DataConfig;
  training: FlowTrainingConfig;
  sampling: SamplingConfig;
  latent_encoder: VaeConfig | null;
}

/** Both, one after the other: the transformer trains on the latents of the VAE that was trained before. */
export interface QuickstartConfig {
  kind: "quickstart";
  compat: Compat;
  vae: VaeRunConfig;
  flow: FlowRunConfig;
}

export type RunConfig = VaeRunConfig | FlowRunConfig | QuickstartConfig;

/**
 * `reference` follows the reference where `native` knows better: a VAE's training then cuts the decoder's output, plays
 * the adversarial game with one backward and one clip for both sides, and gives LPIPS pixels in [0, 1].
 */
const compat = z.enum(["native", "reference"]).default("native");

export const vaeFile = section({
  compat,
  vae_config: vaeComponent,
  data: dataSchema,
  training: vaeTrainingSchema.prefault({}),
});
export const flowFile = section({
  compat,
  diffusion: diffusionSchema,
  data: dataSchema,
  training: flowTrainingSchema.prefault({}),
});
export const quickstartFile = section({
  compat,
  data: dataSchema,
  vae: section({ vae_config: vaeComponent, training: vaeTrainingSchema.prefault({}) }),
  flow: section({ diffusion: diffusionSchema, training: flowTrainingSchema.prefault({}) }),
});

type Path = readonly PropertyKey[];

const withoutLoss = ({ loss_config: _, ...vae }: VaeComponent["params"]): VaeConfig => vae;

/** The run of a parsed VAE file; `stage` is where its sections stand, `dataPath` where its data. */
export function resolveVaeRun(
  input: z.output<typeof vaeFile>,
  problems: Problem[],
  stage: Path = [],
  dataPath: Path = ["data"],
): VaeRunConfig {
  const params = [...stage, "vae_config", "params"];
  const lossPath = [...params, "loss_config", "params"];
  const source = resolveData(input.data, dataPath, problems);
  const vae: VaeConfig = { input_number_of_frames: source.frames, ...withoutLoss(input.vae_config.params) };
  const data = fitData(source, vae);
  const lossInput = input.vae_config.params.loss_config?.params ?? lossParams.parse({});
  const loss = { ...lossInput, disc_in_channels: lossInput.disc_in_channels ?? data.num_channels };
  problems.push(
    ...checkVae(vae, params),
    ...checkVaeData(vae, data, params, dataPath),
    ...checkClip(vae, data, dataPaths(input.data, dataPath)),
    ...checkLoss(loss, data, lossPath, input.compat),
  );
  const training = resolveVaeTraining(input.training, [...stage, "training"], problems);
  return { kind: "vae", compat: input.compat, vae, loss, data, training };
}

/** The run of a parsed diffusion file; `trainedVae` is the VAE of the stage before, when there is one. */
export function resolveFlowRun(
  input: z.output<typeof flowFile>,
  problems: Problem[],
  stage: Path = [],
  dataPath: Path = ["data"],
  trainedVae?: VaeConfig,
): FlowRunConfig {
  const { diffusion } = input;
  const at = [...stage, "diffusion"];
  const source = resolveData(input.data, dataPath, problems);
  const sampling = resolveSampling(diffusion, source);
  const transformer = resolveTransformer(diffusion.score_network.params);
  const text = diffusion.context_preprocessing[0];
  const guidance = diffusion.classifier_free_guidance;

  let latentEncoder: VaeConfig | null = trainedVae ?? null;
  if (diffusion.latent_encoder) {
    const params = [...at, "latent_encoder", "params"];
    if (trainedVae) problems.push({ path: [...at, "latent_encoder"], message: "leave out, the vae section is used" });
    latentEncoder = { input_number_of_frames: source.frames, ...withoutLoss(diffusion.latent_encoder.params) };
    problems.push(...checkVae(latentEncoder, params), ...checkVaeData(latentEncoder, source, params, dataPath));
  }
  const data = latentEncoder ? fitData(source, latentEncoder) : source;
  const clipFaults = latentEncoder ? checkClip(latentEncoder, data, dataPaths(input.data, dataPath)) : [];
  if (latentEncoder) {
    // The clips of a quickstart are the VAE stage's, which has complained of them already.
    if (!trainedVae) problems.push(...clipFaults);
    problems.push(...checkClip(latentEncoder, sampling, samplingPaths(diffusion, at)));
  }
  const grid = clipFaults.length === 0 ? tokenGrid(latentEncoder, data) : undefined;
  problems.push(
    ...checkTransformer(transformer, text, grid, latentEncoder ? "the VAE's latents" : "the frames", [
      ...at,
      "score_network",
      "params",
    ]),
    ...checkTextEncoder(text, [...at, "context_preprocessing", 0, "params"]),
    ...checkSampling(sampling, [...at, "sampling"]),
    ...checkTimes(diffusion, at),
  );
  if (sampling.channels !== data.num_channels) {
    const message = `found ${sampling.channels}, but the video has ${data.num_channels} channels`;
    problems.push({ path: [...at, "sampling", "output_channels"], message });
  }
  const training = resolveFlowTraining(
    input.training,
    guidance.unconditional_guidance_probability,
    [...stage, "training"],
    problems,
  );
  return {
    kind: "flow",
    compat: input.compat,
    transformer,
    diffusion: {
      parameterization: diffusion.parameterization,
      time_distribution: diffusion.noise_scheduler.params.distribution,
      num_timesteps: diffusion.noise_scheduler.params.steps,
    },
    text_encoder: text,
    data,
    training,
    sampling,
    latent_encoder: latentEncoder,
  };
}

/** The two runs of a parsed quickstart file. */
export function resolveQuickstart(input: z.output<typeof quickstartFile>, problems: Problem[]): QuickstartConfig {
  const shared = { compat: input.compat, data: input.data };
  const vae = resolveVaeRun({ ...shared, ...input.vae }, problems, ["vae"]);
  // The data are shared: their own faults are listed once, with the VAE stage.
  const flowProblems: Problem[] = [];
  const flow = resolveFlowRun({ ...shared, ...input.flow }, flowProblems, ["flow"], ["data"], vae.vae);
  problems.push(...flowProblems.filter(({ path }) => path[0] !== "data"));
  return { kind: "quickstart", compat: input.compat, vae, flow };
}

export function tokenGrid(vae: VaeConfig | null, data: DataConfig): TokenGrid {
  if (!vae) return { channels: data.num_channels, frames: data.frames, height: data.height, width: data.width };
  const [frames, height, width] = vaeFactors(vae).latentShape(data.frames, data.height, data.width);
  return { channels: vae.latent_channels, frames, height, width };
}

function resolveSampling(diffusion: DiffusionInput, data: DataConfig): SamplingConfig {
  const s = diffusion.sampling;
  return {
    frames: s.output_frames,
    height: s.output_height ?? s.output_spatial_size ?? data.height,
    width: s.output_width ?? s.output_spatial_size ?? data.width,
    channels: s.output_channels,
    sampler: s.target,
    steps: s.steps ?? diffusion.sde.params.N ?? diffusion.noise_scheduler.params.steps,
    initial_timestep: s.initial_timestep,
    guidance: s.guidance ?? diffusion.classifier_free_guidance.classifier_free_guidance,
    num_samples: s.num_samples,
    prompts: s.prompts,
    seed: s.seed,
    decode_timestep: s.decode_timestep,
  };
}

function checkTimes({ sde, noise_scheduler }: DiffusionInput, at: Path): Problem[] {
  const { N } = sde.params;
  const { steps } = noise_scheduler.params;
  if (N === undefined || N === steps) return [];
  return [{ path: [...at, "sde", "params", "N"], message: `found ${N}, but noise_scheduler.params.steps is ${steps}` }];
}

/** Problems of the clip's size point at the spelling that the file uses. */
function dataPaths(input: z.output<typeof dataSchema>, path: Path) {
  const square = (own: "height" | "width") => [...path, input[own] === undefined ? "image_size" : own];
  return {
    frames: [...path, input.frames === undefined ? "input_number_of_frames" : "frames"],
    height: square("height"),
    width: square("width"),
  };
}

function samplingPaths({ sampling }: DiffusionInput, at: Path) {
  const square = (own: "output_height" | "output_width") => [
    ...at,
    "sampling",
    sampling[own] === undefined ? "output_spatial_size" : own,
  ];
  return {
    frames: [...at, "sampling", "output_frames"],
    height: square("output_height"),
    width: square("output_width"),
  };
}
