import { parseOfficialScheduler } from "../../../lib/config/official/scheduler.js";
import { parseOfficialTransformer } from "../../../lib/config/official/transformer.js";
import { parseOfficialUpsampler } from "../../../lib/config/official/upsampler.js";
import { parseOfficialVae } from "../../../lib/config/official/vae.js";
import { check } from "../../../lib/errors.js";
import type { PixelClip } from "../../../lib/formats/media/clip.js";
import { LatentUpsampler } from "../../../lib/models/latent-upsampler.js";
import { LtxVideoTransformer } from "../../../lib/models/transformer/index.js";
import { CausalVideoAutoencoder } from "../../../lib/models/video-vae/index.js";
import { toChannelsFirst, toChannelsLast } from "../../../lib/ops/index.js";
import {
  type DenoisingStep,
  LtxMultiScalePipeline,
  LtxVideoPipeline,
  type MultiScaleOptions,
  type NoiseSource,
} from "../../../lib/pipelines/official/index.js";
import { factsOf, type PipelineModels } from "../../../lib/pipelines/official/models.js";
import { handOut } from "../../../lib/pipelines/official/output.js";
import type { Request } from "../../../lib/pipelines/official/request.js";
import { Residency } from "../../../lib/pipelines/official/residency.js";
import { decode, decoderInput, disposeFeatures } from "../../../lib/pipelines/official/stages.js";
import { device, noGrad, type Shape, type Tensor } from "../../../lib/tensor/index.js";
import { constant, init } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";

/** The draws of the file, in the order in which the official code made them; their names say less than their order. */
class RecordedNoise implements NoiseSource {
  private readonly names: string[];

  constructor(private readonly fixture: Fixture) {
    this.names = fixture.names("input/noise_").sort();
  }

  draw(what: string, shape: Shape): Tensor {
    const name = this.names.shift();
    check(name, "invalid_argument", () => `[golden] the file has no draw left for ${what}`);
    const values = constant(this.fixture, name);
    const result = values.dims === 5 ? toChannelsLast(values) : values;
    check(result.shape.join() === shape.join(), "shape_mismatch", () => {
      return `[golden] ${name} is [${result.shape}], ${what} expects [${shape}]`;
    });
    return result;
  }

  planes(): Tensor[] {
    return this.names.splice(0).map((name) => constant(this.fixture, name));
  }

  /** Throws when draws are left over. */
  finish(): void {
    check(this.names.length === 0, "invalid_argument", () => `[golden] nobody drew ${this.names.join(", ")}`);
  }
}

const floats = async (x: Tensor): Promise<Float32Array> => Float32Array.from(await x.read());
const video = async (x: Tensor): Promise<Float32Array> => floats(noGrad(() => toChannelsFirst(x)));

/** The samples of a video (B, 3, F, H, W), each by itself. */
async function clips(fixture: Fixture, name: string): Promise<PixelClip[]> {
  const [batch, channels, frames, height, width] = fixture.shape(name);
  const data = await floats(toChannelsLast(constant(fixture, name)));
  const size = data.length / batch;
  return Array.from({ length: batch }, (_, i) => {
    return { data: data.subarray(i * size, (i + 1) * size), frames, height, width, channels };
  });
}

function openPipeline(fixture: Fixture): LtxVideoPipeline {
  const { config, name } = fixture;
  const described = parseOfficialTransformer(config.transformer, name);
  const vaeConfig = parseOfficialVae(config.vae, name);
  const { transformer: prefix = "model.diffusion_model.", vae: vaePrefix = "vae." } = config.param_prefixes ?? {};
  const transformer = new LtxVideoTransformer(described.options, init());
  transformer.requiresGrad(false).loadStateDict(fixture.state(prefix));
  const vae = new CausalVideoAutoencoder(vaeConfig, init(), {
    perChannelNormalize: config.inference.vae_per_channel_normalize !== false,
  });
  const statistics = ["mean-of-means", "std-of-means"].map((key) => {
    const entry = { shape: fixture.shape(`input/${key}`), data: fixture.data(`input/${key}`) };
    return [`per_channel_statistics.${key}`, entry] as const;
  });
  vae.requiresGrad(false).loadStateDict(new Map([...fixture.state(vaePrefix), ...statistics]));
  const facts = factsOf(described, vaeConfig, parseOfficialScheduler(config.scheduler, name));
  const models = new Residency<PipelineModels>({
    text: () => Promise.reject(new Error("the file has features of its prompts")),
    transformer: async () => transformer,
    vae: async () => vae,
  });
  return new LtxVideoPipeline(models, facts, device());
}

const camel = (key: string): string => key.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());

/** The official configuration's keys as this package's options. */
function renamed(options: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(options)
      .filter(([key]) => key !== "pipeline_type")
      .map(([key, value]) => {
        const isPass = key === "first_pass" || key === "second_pass";
        return [camel(key), isPass ? renamed(value as Record<string, unknown>) : value];
      }),
  );
}

async function optionsOf(fixture: Fixture, noise: NoiseSource): Promise<MultiScaleOptions> {
  const { pipeline_config, inference, conditioning_items, media_items } = fixture.config;
  const items = [];
  for (const item of conditioning_items ?? []) {
    items.push({
      mediaItem: await clips(fixture, `input/${item.input}`),
      mediaFrameNumber: item.media_frame_number,
      conditioningStrength: item.conditioning_strength,
      mediaX: item.media_x,
      mediaY: item.media_y,
    });
  }
  const { height, width, num_frames: numFrames, frame_rate: frameRate, image_cond_noise_scale } = inference;
  return {
    promptEmbeds: constant(fixture, "input/prompt_embeds"),
    promptAttentionMask: constant(fixture, "input/prompt_attention_mask"),
    negativePromptEmbeds: constant(fixture, "input/negative_prompt_embeds"),
    negativePromptAttentionMask: constant(fixture, "input/negative_prompt_attention_mask"),
    height,
    width,
    numFrames,
    frameRate,
    imageCondNoiseScale: image_cond_noise_scale,
    conditioningItems: items,
    ...(media_items ? { mediaItems: await clips(fixture, "input/media_items") } : {}),
    noise,
    ...renamed(pipeline_config),
  };
}

/** The whole of a pipeline: what each step makes of the tokens, the final latents, and what they decode to. */
export const samplingLoop: GoldenCase = async (fixture) => {
  const noise = new RecordedNoise(fixture);
  const options = await optionsOf(fixture, noise);
  const pipeline = openPipeline(fixture);
  const result = new Map<string, Float32Array>();
  const upscaler = fixture.config.latent_upsampler;
  try {
    const request = upscaler
      ? await twoPasses(fixture, pipeline, options, noise, result)
      : await onePass(pipeline, options, noise, result);
    noise.finish();
    request.latents?.dispose();
  } finally {
    pipeline.dispose();
  }
  return result;
};

function recorder(result: Map<string, Float32Array>, prefix: string) {
  return async ({ step, tokens }: Omit<DenoisingStep, "pass">) => {
    result.set(`output/${prefix}tokens_step_${String(step - 1).padStart(2, "0")}`, await floats(tokens));
  };
}

async function onePass(
  pipeline: LtxVideoPipeline,
  options: MultiScaleOptions,
  noise: RecordedNoise,
  result: Map<string, Float32Array>,
): Promise<Request> {
  const request = pipeline.request(options);
  const text = await pipeline.features(request);
  const latents = await pipeline.latents(request, { text, noise, onStep: recorder(result, "") });
  disposeFeatures(text);
  result.set("output/timesteps", Float32Array.from(request.timesteps));
  result.set("output/final_latents", await video(latents));
  (await decoded(pipeline, latents, request, noise, result)).dispose();
  return { ...request, latents };
}

async function twoPasses(
  fixture: Fixture,
  pipeline: LtxVideoPipeline,
  options: MultiScaleOptions,
  noise: RecordedNoise,
  result: Map<string, Float32Array>,
): Promise<Request> {
  const upsampler = new LatentUpsampler(parseOfficialUpsampler(fixture.config.latent_upsampler, fixture.name), init());
  upsampler.requiresGrad(false).loadStateDict(fixture.state(fixture.config.param_prefixes.latent_upsampler));
  const both = new LtxMultiScalePipeline(pipeline, upsampler);
  const { first, second, height, width } = both.passes(options);
  const text = await pipeline.features({ ...first, guidance: [...first.guidance, ...second.guidance] });
  const small = await pipeline.latents(first, { text, noise, onStep: recorder(result, "pass0_") });
  const start = await both.enlarge(small);
  const request = { ...second, latents: start };
  const latents = await pipeline.latents(request, { text, noise, onStep: recorder(result, "pass1_") });
  disposeFeatures(text);
  for (const [pass, { timesteps }, final] of [[0, first, small] as const, [1, second, latents] as const]) {
    result.set(`output/pass${pass}_timesteps`, Float32Array.from(timesteps));
    result.set(`output/pass${pass}_final_latents`, await video(final));
  }
  const pixels = await decoded(pipeline, latents, second, noise, result);
  const images = await handOut(pixels, { ...second, height, width }, "tensor");
  result.set("output/images", await video(images as Tensor));
  for (const tensor of [small, start, pixels, images as Tensor]) tensor.dispose();
  upsampler.dispose();
  return { ...second, latents };
}

/** Decodes as the pipeline does, stage by stage. */
async function decoded(
  pipeline: LtxVideoPipeline,
  latents: Tensor,
  request: Request,
  noise: RecordedNoise,
  result: Map<string, Float32Array>,
): Promise<Tensor> {
  const { facts, models } = pipeline;
  const input = decoderInput(latents, request, facts, noise);
  result.set("output/decoder_input_latents", await video(input));
  const pixels = await models.use("vae", (vae) => decode(input, vae, { request, facts, noise }));
  result.set("output/decoded", await video(pixels));
  input.dispose();
  return pixels;
}
