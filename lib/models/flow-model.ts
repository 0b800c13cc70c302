/** The networks of a text-to-video model, and how a diffusion checkpoint holds them. */
import { vaeFactors } from "../config/geometry.js";
import type { ByteEncoderConfig, FlowRunConfig, T5Config } from "../config/index.js";
import { check, LtxError } from "../errors.js";
import { type readTensors, withPrefix } from "../formats/checkpoint.js";
import { Initializer } from "../nn/index.js";
import { affine } from "../ops/index.js";
import { type Device, owning, scope, type Tensor } from "../tensor/index.js";
import { ByteTextEncoder, type PromptCacheOptions, T5TextEncoder } from "./text-encoder/index.js";
import { LtxVideoTransformer } from "./transformer/index.js";
import { VideoVae } from "./video-vae/index.js";

/** Key prefixes of a diffusion checkpoint; the first two are the reference's. */
export const FLOW_PREFIX = { transformer: "_score_network.", vae: "_latent_encoder.", text: "_text_encoder." } as const;
export const LATENT_SCALE_KEY = "_latent_scale_factor";

/** The networks of a text-to-video model. */
export interface FlowModel {
  config: FlowRunConfig;
  transformer: LtxVideoTransformer;
  text: ByteTextEncoder | T5TextEncoder;
  /** Null where the flow runs on pixels. */
  vae: VideoVae | null;
  /** 1 / standard deviation of the latents: the transformer sees latents times this. 1 on pixels. */
  latentScale: number;
}

export interface FlowModelOptions {
  /** Folder of a pretrained text encoder, instead of the one that the configuration leads to. */
  textEncoder?: string;
  /** The configuration comes from a checkpoint: its text encoder may have moved, but must be the same one. */
  recorded?: boolean;
  /** Where a frozen text encoder's features are kept. */
  prompts?: PromptCacheOptions;
}

/**
 * Builds the networks with fresh values; a pretrained text encoder with its own.
 * @throws LtxError `unavailable` when the text encoder is not found, `checkpoint` when it is not whole or another one
 */
export async function createFlowModel(
  config: FlowRunConfig,
  device: Device,
  options: FlowModelOptions = {},
): Promise<FlowModel> {
  check(options.textEncoder === undefined || config.text_encoder.kind === "t5", "config", () => {
    return "[flow] the model has a text encoder of its own, trained with it: leave --text-encoder out";
  });
  const init = new Initializer(device, config.training.seed);
  const computeDtype = config.training.mixed_precision === "bf16" ? "bf16" : "f32";
  const { text_encoder: textConfig, latent_encoder: vaeConfig } = config;
  const pretrained = textConfig.kind === "t5" ? await openT5(config, textConfig, device, options) : null;
  const { gradient_checkpointing: gradientCheckpointing } = config.training;
  return owning((own) => {
    if (pretrained) own(pretrained);
    const transformer = own(new LtxVideoTransformer(config.transformer, init, { computeDtype, gradientCheckpointing }));
    const text = pretrained ?? own(new ByteTextEncoder(textConfig as ByteEncoderConfig, init, { computeDtype }));
    const vae = vaeConfig && new VideoVae(vaeConfig, { device, computeDtype }).requiresGrad(false);
    return { config, transformer, text, vae, latentScale: 1 };
  });
}

async function openT5(
  { transformer }: FlowRunConfig,
  { version, path, max_length: maxLength, model_hash: expected }: T5Config,
  device: Device,
  { textEncoder, recorded, prompts }: FlowModelOptions,
): Promise<T5TextEncoder> {
  const fallback = recorded && textEncoder === undefined;
  const text = await T5TextEncoder.open({
    version,
    path: textEncoder ?? path,
    fallback,
    maxLength,
    device,
    cache: prompts,
  });
  check(expected === undefined || expected === text.modelHash, "checkpoint", () => {
    return `[flow] the text encoder in ${text.path} is not the one that the model was trained with (${version}): name that one's folder by --text-encoder`;
  });
  const wanted = transformer.caption_channels ?? transformer.cross_attention_dim;
  check(text.width === wanted, "config", () => {
    const key = transformer.caption_channels === null ? "cross_attention_dim" : "caption_channels";
    return `[flow] the text encoder in ${text.path} gives ${text.width} features, the transformer's ${key} is ${wanted}`;
  });
  return text;
}

/** The configuration as a checkpoint keeps it: with what finds a pretrained text encoder again, and tells it from others. */
export function recordedConfig({ config, text }: FlowModel): FlowRunConfig {
  const { text_encoder: textConfig } = config;
  if (textConfig.kind !== "t5" || !(text instanceof T5TextEncoder)) return config;
  return { ...config, text_encoder: { ...textConfig, path: text.path, model_hash: text.modelHash } };
}

/** The text encoder as a module, where it learns with the transformer and lies in the same checkpoint. */
export const trainedText = ({ text }: FlowModel): ByteTextEncoder | null => (text.trainable ? text : null);

export function disposeFlowModel({ transformer, text, vae }: FlowModel): void {
  for (const part of [transformer, text, vae]) part?.dispose();
}

/** Pixels (B,F,H,W,C) in [0,1] as the flow sees them, without noise: the posterior's mean, scaled, or [-1,1]. */
export function toFlow({ vae, latentScale }: FlowModel, pixels: Tensor): Tensor {
  return scope(() => (vae ? affine(vae.mode(vae.encodeMoments(pixels)), latentScale) : affine(pixels, 2, -1)));
}

/** The shape (B, f, h, w, C) of the flow's state for clips of the sampling section. */
export function flowShape({ vae, config }: FlowModel, batch: number): [number, number, number, number, number] {
  const { frames, height, width } = config.sampling;
  const grid = vae ? vaeFactors(vae.config).latentShape(frames, height, width) : [frames, height, width];
  const [f, h, w] = grid;
  return [batch, f, h, w, config.transformer.input_channels];
}

/** Fills a model from a diffusion checkpoint's tensors. */
export function loadFlowState(model: FlowModel, tensors: Awaited<ReturnType<typeof readTensors>>["tensors"]): void {
  const { vae } = model;
  model.transformer.loadStateDict(withPrefix(tensors, FLOW_PREFIX.transformer));
  trainedText(model)?.loadStateDict(withPrefix(tensors, FLOW_PREFIX.text));
  if (!vae) return;
  vae.loadStateDict(withPrefix(tensors, FLOW_PREFIX.vae));
  const scale = tensors.get(LATENT_SCALE_KEY)?.data[0];
  if (scale === undefined || !(scale > 0)) {
    throw new LtxError("checkpoint", `the checkpoint has no usable ${LATENT_SCALE_KEY} (found ${scale})`);
  }
  model.latentScale = scale;
}
