import { adainFilterLatent } from "../../diffusion/adain.js";
import { check } from "../../errors.js";
import type { LatentUpsampler } from "../../models/latent-upsampler.js";
import type { CausalVideoAutoencoder } from "../../models/video-vae/index.js";
import { noGrad, scope, type Tensor } from "../../tensor/index.js";
import type { Video } from "../video.js";
import type { DenoisingStep } from "./denoise.js";
import { openUpsampler, type PipelineLoadOptions } from "./models.js";
import type { NoiseSource } from "./noise.js";
import { checkOutputType, type OutputType } from "./output.js";
import { type LtxGenerateOptions, LtxVideoPipeline } from "./pipeline.js";
import type { PassOptions, Request } from "./request.js";
import { disposeFeatures } from "./stages.js";

export interface MultiScaleLoadOptions extends PipelineLoadOptions {
  /** The file of the spatial latent upscaler. */
  spatialUpscaler: string;
}

export interface MultiScaleOptions extends LtxGenerateOptions {
  /** The first pass draws at this part of the size; 2/3 unless given. */
  downscaleFactor?: number;
  /** What differs for the first pass, which draws the video. */
  firstPass?: PassOptions;
  /** What differs for the second pass, which draws it again at twice the size, from a time below 1 on. */
  secondPass?: PassOptions;
}

/** The requests of both passes, and the size that the result is brought to. */
export interface Passes {
  first: Request;
  /** Its latents are still to come. */
  second: Request;
  height: number;
  width: number;
}

/** Videos in two passes: a small one, then the same again from its enlarged latents. */
export class LtxMultiScalePipeline {
  /** @internal Use {@link load}. */
  constructor(
    readonly video: LtxVideoPipeline,
    private readonly upsampler: LatentUpsampler,
  ) {}

  /** @throws LtxError as {@link LtxVideoPipeline.load} */
  static async load({ spatialUpscaler, ...options }: MultiScaleLoadOptions): Promise<LtxMultiScalePipeline> {
    const video = await LtxVideoPipeline.load(options);
    try {
      const upsampler = await openUpsampler(spatialUpscaler, video.facts, video.device, options);
      return new LtxMultiScalePipeline(video, upsampler);
    } catch (error) {
      video.dispose();
      throw error;
    }
  }

  /** @throws LtxError `invalid_argument`, `aborted`, `disposed` */
  generate(options: MultiScaleOptions & { outputType: "tensor" | "latent" }): Promise<Tensor>;
  generate(options: MultiScaleOptions & { outputType?: "video" }): Promise<Video>;
  generate(options: MultiScaleOptions): Promise<Video | Tensor>;
  async generate(options: MultiScaleOptions): Promise<Video | Tensor> {
    const { outputType = "video", signal, noise = this.video.noise(options.seed) } = options;
    checkOutputType(outputType);
    const passes = this.passes(options);
    return this.video.models.video(() => this.draw(passes, { ...options, outputType, noise }), signal);
  }

  private async draw(
    { first, second, height, width }: Passes,
    { outputType, noise, signal, onStep, onNotice }: MultiScaleOptions & { outputType: OutputType; noise: NoiseSource },
  ): Promise<Video | Tensor> {
    const { video } = this;
    const both = { ...first, guidance: [...first.guidance, ...second.guidance] };
    const text = await video.features(both, signal, onNotice);
    const listener = (pass: number) => onStep && ((step: Omit<DenoisingStep, "pass">) => onStep({ ...step, pass }));
    try {
      const small = await video.latents(first, { text, noise, signal, onStep: listener(1) });
      const start = await this.enlarge(small, signal).finally(() => small.dispose());
      const large = await video
        .latents({ ...second, latents: start }, { text, noise, signal, onStep: listener(2) })
        .finally(() => start.dispose());
      return await video.output(large, second, { outputType, noise, signal, size: { height, width } });
    } finally {
      disposeFeatures(text);
    }
  }

  /** @internal The options, checked against the models. */
  passes(options: MultiScaleOptions): Passes {
    const { height = 704, width = 1216, downscaleFactor: factor = 2 / 3, firstPass, secondPass, ...common } = options;
    const { video } = this;
    const { spatialFactor: space } = video.facts;
    check(Number.isFinite(factor) && factor > 0 && factor <= 1, "invalid_argument", () => {
      return `[generate] downscaleFactor ${factor}: needs a number above 0, at most 1`;
    });
    const reduced = (name: string, size: number): number => {
      check(Number.isSafeInteger(size) && Math.trunc(size * factor) >= space, "invalid_argument", () => {
        return `[generate] ${name} ${size}: with downscaleFactor ${factor} needs a whole number from ${Math.ceil(space / factor)}`;
      });
      return Math.floor(Math.trunc(size * factor) / space) * space;
    };
    const small = { height: reduced("height", height), width: reduced("width", width) };
    const first = video.request({ ...common, ...firstPass, ...small });
    const { mediaItems: _, latents: __, ...again } = common;
    const large = { height: 2 * small.height, width: 2 * small.width };
    const second = video.request({ ...again, ...secondPass, ...large }, { latentsFollow: true });
    return { first, second, height, width };
  }

  /** @internal Normalised latents at twice the height and width, with the channels' statistics of the small ones. */
  enlarge(latents: Tensor, signal?: AbortSignal): Promise<Tensor> {
    const grow = async (vae: CausalVideoAutoencoder) => {
      const large = noGrad(() =>
        scope(() => {
          const grown = this.upsampler.forward(vae.denormalize(latents));
          return adainFilterLatent(vae.normalize(grown), latents);
        }),
      );
      await large.ready();
      return large;
    };
    return this.video.models.use("vae", grow, signal);
  }

  dispose(): void {
    this.video.dispose(() => this.upsampler.dispose());
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
