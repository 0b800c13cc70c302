/** The networks of a text-to-video model, and how a diffusion checkpoint holds them. */
import type { FlowRunConfig } from "../config/index.js";
import { LtxError } from "../errors.js";
import { type readTensors, withPrefix } from "../formats/checkpoint.js";
import { Initializer } from "../nn/index.js";
import type { Device } from "../tensor/index.js";
import { ByteTextEncoder } from "./text-encoder/index.js";
import { LtxVideoTransformer } from "./transformer/index.js";
import { VideoVae } from "./video-vae/index.js";

/** Key prefixes of a diffusion checkpoint; the first two are the reference's. */
export const FLOW_PREFIX = { transformer: "_score_network.", vae: "_latent_encoder.", text: "_text_encoder." } as const;
export const LATENT_SCALE_KEY = "_latent_scale_factor";

/** The networks of a text-to-video model. */
export interface FlowModel {
  config: FlowRunConfig;
  transformer: LtxVideoTransformer;
  text: ByteTextEncoder;
  vae: VideoVae;
  /** 1 / standard deviation of the latents: the transformer sees latents times this. */
  latentScale: number;
}

/** Builds the networks with fresh values. */
export function createFlowModel(config: FlowRunConfig, device: Device): FlowModel {
  if (!config.latent_encoder) {
    throw new LtxError("unavailable", "[flow] training on pixels is not supported yet: give diffusion.latent_encoder");
  }
  if (config.text_encoder.kind !== "byte") {
    throw new LtxError(
      "unavailable",
      `[flow] text encoder "${config.text_encoder.kind}" is not supported yet: use context_preprocessing target byte`,
    );
  }
  const init = new Initializer(device, config.training.seed);
  const computeDtype = config.training.mixed_precision === "bf16" ? "bf16" : "f32";
  const transformer = new LtxVideoTransformer(config.transformer, init, { computeDtype });
  const text = new ByteTextEncoder(config.text_encoder, init, { computeDtype });
  const vae = new VideoVae(config.latent_encoder, { device, computeDtype }).requiresGrad(false);
  return { config, transformer, text, vae, latentScale: 1 };
}

export function disposeFlowModel({ transformer, text, vae }: FlowModel): void {
  for (const module of [transformer, text, vae]) module.dispose();
}

/** Fills a model from a diffusion checkpoint's tensors. */
export function loadFlowState(model: FlowModel, tensors: Awaited<ReturnType<typeof readTensors>>["tensors"]): void {
  model.transformer.loadStateDict(withPrefix(tensors, FLOW_PREFIX.transformer));
  model.text.loadStateDict(withPrefix(tensors, FLOW_PREFIX.text));
  model.vae.loadStateDict(withPrefix(tensors, FLOW_PREFIX.vae));
  const scale = tensors.get(LATENT_SCALE_KEY)?.data[0];
  if (scale === undefined || !(scale > 0)) {
    throw new LtxError("checkpoint", `the checkpoint has no usable ${LATENT_SCALE_KEY} (found ${scale})`);
  }
  model.latentScale = scale;
}
