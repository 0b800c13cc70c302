import type { FlowRunConfig, RunConfig } from "../config/index.js";
import { eulerSample, holdFrames } from "../diffusion/index.js";
import { check, stopIfAborted } from "../errors.js";
import {
  createFlowModel,
  disposeFlowModel,
  type FlowModel,
  flowShape,
  loadFlowState,
  trainedText,
} from "../models/flow-model.js";
import { cutNotices } from "../models/text-encoder/index.js";
import { affine, clamp, full, normal } from "../ops/index.js";
import { type Device, noGrad, device as openDevice, scope, type Tensor } from "../tensor/index.js";
import { Purpose } from "../training/purposes.js";
import { encodeObserved } from "./observed.js";
import { openCheckpoint } from "./open-checkpoint.js";
import { Video } from "./video.js";

export interface LoadOptions {
  device?: string;
  /** Configuration or YAML file, for checkpoints that carry none. */
  config?: RunConfig | string;
  /** Folder of the pretrained text encoder, when it is not where the model's training found it. */
  textEncoder?: string;
  /** Stops loading. */
  signal?: AbortSignal;
  /** Called while weights are read, with the file's bytes done and in all. */
  onLoad?: (done: number, total: number) => void;
}

export interface GenerateOptions {
  /** One clip for each. */
  prompts: readonly string[];
  /** Euler steps; the configuration's unless given. */
  steps?: number;
  /** Classifier-free guidance; 1 for none. */
  guidance?: number;
  seed?: number;
  /** Numbers the draws of one seed: the windows of a long video, the batches of many clips. */
  draw?: number;
  /** Frames that the clips begin with, one clip for each prompt; what follows grows out of them. */
  observed?: Video;
  /** How often each step is made, as the sampler's `resample`; 4 with `observed`, else 1. */
  resample?: number;
  signal?: AbortSignal;
  /** Called after each step. */
  onStep?: (done: number, total: number) => void;
  /** Hears what the user should know: what of a prompt the model does not read. */
  onNotice?: (message: string) => void;
}

type Drawing = Omit<GenerateOptions, "steps" | "guidance" | "seed" | "draw" | "resample"> &
  Required<Pick<GenerateOptions, "steps" | "guidance" | "seed" | "draw" | "resample">>;

/** Without repetition new frames show the digits asked for, but not where the given ones leave them. */
const OBSERVED_RESAMPLE = 4;

/** Videos from prompts, by a model that this package trained. */
export class TextToVideo {
  private disposed = false;
  private users = 0;

  /** @internal Use {@link load}. A model that is passed in stays its owner's. */
  constructor(
    readonly model: FlowModel,
    readonly device: Device,
    private readonly owned = false,
  ) {}

  get config(): FlowRunConfig {
    return this.model.config;
  }

  /**
   * @param path a run's folder, a checkpoint's folder, or a model's safetensors or PyTorch file
   * @throws LtxError `checkpoint` when it is missing, damaged or no text-to-video model; `unavailable` when its text
   *   encoder is not found
   */
  static async load(path: string, options: LoadOptions = {}): Promise<TextToVideo> {
    const { textEncoder, signal, onLoad: onProgress } = options;
    const { config, tensors } = await openCheckpoint(path, "flow", options.config, { signal, onProgress });
    const device = openDevice(options.device);
    stopIfAborted(signal, "[text-to-video] loading was stopped by the caller");
    const model = await createFlowModel(config, device, { textEncoder, recorded: true });
    for (const module of [model.transformer, trainedText(model)]) module?.requiresGrad(false);
    const pipeline = new TextToVideo(model, device, true);
    try {
      loadFlowState(model, tensors);
    } catch (error) {
      pipeline.dispose();
      throw error;
    }
    return pipeline;
  }

  /** @throws LtxError `invalid_argument`, `aborted`, `disposed` */
  async generate(options: GenerateOptions): Promise<Video> {
    const { sampling } = this.config;
    const {
      prompts,
      steps = sampling.steps,
      guidance = sampling.guidance,
      seed = sampling.seed,
      draw = 0,
      observed,
      resample = observed ? OBSERVED_RESAMPLE : 1,
      signal,
      onStep,
      onNotice,
    } = options;
    check(!this.disposed, "disposed", () => "[text-to-video] the pipeline was disposed");
    check(
      Array.isArray(prompts) && prompts.length > 0 && prompts.every((p) => typeof p === "string"),
      "invalid_argument",
      () => {
        return `[text-to-video] prompts must be a non-empty list of strings, got ${JSON.stringify(prompts)}`;
      },
    );
    check(
      Number.isInteger(steps) && steps >= 1,
      "invalid_argument",
      () => `[text-to-video] steps must be a positive whole number, got ${steps}`,
    );
    check(
      Number.isFinite(guidance) && guidance >= 0,
      "invalid_argument",
      () => `[text-to-video] guidance must be a number from 0, got ${guidance}`,
    );
    this.users++;
    try {
      if (onNotice) for (const notice of cutNotices(this.model.text, prompts)) onNotice(notice);
      return await this.draw({ prompts, steps, guidance, seed, draw, observed, resample, signal, onStep });
    } finally {
      this.users--;
      if (this.disposed && this.users === 0) this.free();
    }
  }

  private async draw(options: Drawing): Promise<Video> {
    const { config, model, device } = this;
    const { prompts, steps, guidance, seed, draw, observed, resample, signal, onStep } = options;
    const { transformer, text, vae } = model;
    const shape = flowShape(model, prompts.length);
    // With guidance both branches go through the network as one batch: conditional first.
    const encode = await text.prepare(guidance === 1 ? prompts : [...prompts, ...prompts.map(() => "")], signal);
    const { start, context, held } = scope(() =>
      noGrad(() => {
        const start = normal(shape, { seed, step: draw, purpose: Purpose.sampleNoise }, { device });
        const known = observed && encodeObserved(model, observed, prompts.length, device);
        return {
          start,
          held: known && holdFrames(start, known),
          context: encode(),
        };
      }),
    );
    const made: (Tensor | null | undefined)[] = [start, context.embeddings, context.mask, held?.target, held?.free];
    try {
      const result = await eulerSample({
        velocity: (x, t) => transformer.forward(x, t, context.embeddings, context.mask),
        start,
        steps,
        guidance,
        held,
        resample: { times: resample, key: { seed, step: draw, purpose: Purpose.sampleAgain } },
        initialTimestep: Math.min(config.sampling.initial_timestep, steps - 1),
        signal,
        onStep,
      });
      made.push(result.latents);
      const decoded = scope(() =>
        noGrad(() => {
          if (!vae) return affine(clamp(result.latents, -1, 1), 0.5, 0.5);
          const latents = affine(result.latents, 1 / model.latentScale);
          return vae.decode(latents, this.decodeTimes(prompts.length, result.noise), {
            noise: { seed, step: draw, purpose: Purpose.sampleLayerNoise },
          });
        }),
      );
      made.push(decoded);
      const values = (await decoded.read()) as Float32Array;
      stopIfAborted(signal, "[text-to-video] stopped by the caller");
      return Video.fromFloats(values, decoded.shape, prompts);
    } finally {
      for (const tensor of made) tensor?.dispose();
    }
  }

  /** The amplitude of noise that the decoder is told of: what is left, but at least the configured one. */
  private decodeTimes(batch: number, noise: number): Tensor | null {
    const { sampling, latent_encoder } = this.config;
    if (!latent_encoder?.timestep_conditioning) return null;
    const amplitude = Math.max(noise / this.model.latentScale, sampling.decode_timestep);
    return full([batch], amplitude, { device: this.device });
  }

  /** Frees the model, or when the videos that are drawn are done. */
  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    if (this.users === 0) this.free();
  }

  private free(): void {
    if (this.owned) disposeFlowModel(this.model);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
