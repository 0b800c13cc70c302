import { check, LtxError } from "../../errors.js";
import type { LoraChoice } from "../../formats/official/lora.js";
import type { LtxVideoTransformer } from "../../models/transformer/index.js";
import type { CausalVideoAutoencoder } from "../../models/video-vae/index.js";
import type { Device, Tensor } from "../../tensor/index.js";
import type { Video } from "../video.js";
import type { DenoisingStep, PromptFeatures } from "./denoise.js";
import {
  type ModelFacts,
  type OpenedModels,
  openModels,
  type PipelineLoadOptions,
  type PipelineModels,
} from "./models.js";
import { type NoiseSource, SeededNoise } from "./noise.js";
import { checkOutputType, handOut, type OutputType } from "./output.js";
import { checkRequest, type LtxVideoOptions, type Request } from "./request.js";
import type { Residency } from "./residency.js";
import {
  decode,
  decoderInput,
  disposeFeatures,
  drawLatents,
  encodeTexts,
  givenFeatures,
  needsEncoder,
  startState,
} from "./stages.js";

export interface LtxGenerateOptions extends LtxVideoOptions {
  outputType?: OutputType;
  /** Hears of each step; what it returns is awaited. */
  onStep?: (step: DenoisingStep) => void | Promise<void>;
  /** Hears what the user should know: what of a prompt the model does not read. */
  onNotice?: (message: string) => void;
}

const unchangeable: OpenedModels["setLoras"] = async () => {
  throw new LtxError("invalid_argument", "[pipeline] LoRAs need a pipeline that was loaded from a checkpoint");
};

/** Videos from prompts, images and videos by a model of Lightricks. */
export class LtxVideoPipeline {
  private disposed = false;

  /** @internal Use {@link load}. */
  constructor(
    /** @internal */ readonly models: Residency<PipelineModels>,
    readonly facts: ModelFacts,
    readonly device: Device,
    private readonly change: OpenedModels["setLoras"] = unchangeable,
  ) {}

  /**
   * @throws LtxError `checkpoint` when a file is missing, damaged or of another model; `unavailable` when the text
   *   encoder is not found or the device can't compute in the precision; `config`, `file_format`, `io`
   */
  static async load(options: PipelineLoadOptions): Promise<LtxVideoPipeline> {
    const { models, facts, device, setLoras } = await openModels(options);
    return new LtxVideoPipeline(models, facts, device, setLoras);
  }

  /** @throws LtxError `invalid_argument`, `aborted`, `disposed` */
  generate(options: LtxGenerateOptions & { outputType: "tensor" | "latent" }): Promise<Tensor>;
  generate(options: LtxGenerateOptions & { outputType?: "video" }): Promise<Video>;
  generate(options: LtxGenerateOptions): Promise<Video | Tensor>;
  async generate(options: LtxGenerateOptions): Promise<Video | Tensor> {
    const { outputType = "video", onStep, onNotice, signal, noise = this.noise(options.seed) } = options;
    const request = this.request(options);
    checkOutputType(outputType);
    return this.models.video(async () => {
      const text = await this.features(request, signal, onNotice);
      try {
        const listener = onStep && ((step: Omit<DenoisingStep, "pass">) => onStep({ ...step, pass: 1 }));
        const latents = await this.latents(request, { text, noise, signal, onStep: listener });
        return await this.output(latents, request, { outputType, noise, signal });
      } finally {
        disposeFeatures(text);
      }
    }, signal);
  }

  /**
   * Merges these LoRAs into the transformer instead of those that it has; with none it is as it was, to the bit. Videos
   * that are asked for meanwhile wait. When it fails the transformer is as it was before: the next video may load it anew.
   * @throws LtxError `checkpoint` when one is for another model, `invalid_argument` while a video is drawn
   */
  async setLoras(loras: readonly LoraChoice[]): Promise<void> {
    check(!this.disposed, "disposed", () => "[pipeline] it was disposed");
    await this.change(loras);
  }

  /** @internal */
  noise(seed = 171198): NoiseSource {
    check(Number.isSafeInteger(seed) && seed >= 0, "invalid_argument", () => {
      return `[generate] seed ${seed}: needs a whole number from 0 to 2^53 - 1`;
    });
    return new SeededNoise(seed, this.device);
  }

  /** @internal The options, checked against the models. */
  request(options: LtxVideoOptions, { latentsFollow = false } = {}): Request {
    check(!this.disposed, "disposed", () => "[pipeline] it was disposed");
    return checkRequest(options, this.facts, latentsFollow);
  }

  /** @internal Features of the prompts; the caller frees them. */
  async features(
    request: Request,
    signal?: AbortSignal,
    onNotice?: (message: string) => void,
  ): Promise<PromptFeatures> {
    const given = givenFeatures(request);
    if (given) return given;
    return this.models.use("text", (encoder) => encodeTexts(request, encoder, { signal, onNotice }), signal);
  }

  /** @internal Normalised latents (B, f, h, w, C) of a video; the caller's. */
  async latents(
    request: Request,
    options: {
      text: PromptFeatures;
      noise: NoiseSource;
      signal?: AbortSignal;
      onStep?: (step: Omit<DenoisingStep, "pass">) => void | Promise<void>;
    },
  ): Promise<Tensor> {
    const { facts, device, models } = this;
    const { noise, signal } = options;
    const begin = async (vae: CausalVideoAutoencoder | null) => {
      const state = await startState(request, facts, vae, noise, device, signal);
      // The models that made it may go.
      await state.tokens.ready().catch((error) => {
        state.tokens.dispose();
        throw error;
      });
      return state;
    };
    const state = await (needsEncoder(request) ? models.use("vae", begin, signal) : begin(null));
    try {
      const draw = (transformer: LtxVideoTransformer) =>
        drawLatents(state, transformer, { ...options, request, facts });
      return await models.use("transformer", draw, signal);
    } finally {
      state.tokens.dispose();
    }
  }

  /** @internal The latents, or what they decode to, brought to `size`; takes them over. */
  async output(
    latents: Tensor,
    request: Request,
    options: {
      outputType: OutputType;
      noise: NoiseSource;
      signal?: AbortSignal;
      size?: { height: number; width: number };
    },
  ): Promise<Video | Tensor> {
    const { outputType, signal, size } = options;
    if (outputType === "latent") return latents;
    const pixels = await this.pixels(latents, request, options).finally(() => latents.dispose());
    return handOut(pixels, { ...request, ...size }, outputType, signal).finally(() => pixels.dispose());
  }

  /** @internal Pixels (B, F, H, W, 3) around [-1, 1]; the caller's. */
  async pixels(
    latents: Tensor,
    request: Request,
    { noise, signal }: { noise: NoiseSource; signal?: AbortSignal },
  ): Promise<Tensor> {
    const { facts } = this;
    const input = decoderInput(latents, request, facts, noise);
    try {
      return await this.models.use("vae", (vae) => decode(input, vae, { request, facts, noise }), signal);
    } finally {
      input.dispose();
    }
  }

  /** Frees the models, when the stages under way end; videos that are not done are rejected with `disposed`. */
  dispose(): void;
  /** @internal */
  dispose(then?: () => void): void;
  dispose(then?: () => void): void {
    this.disposed = true;
    this.models.dispose(then);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
