/** The models of a pipeline: found in their files, described, and brought onto the device. */
import { vaeFactors } from "../../config/geometry.js";
import type { SchedulerConfig } from "../../config/official/scheduler.js";
import type { OfficialTransformerConfig } from "../../config/official/transformer.js";
import type { OfficialVaeConfig } from "../../config/official/vae.js";
import { check, stopIfAborted } from "../../errors.js";
import { loadWeights } from "../../formats/load-weights.js";
import { closeLoras, type LoraChoice, openLoras, type WeightedLora } from "../../formats/official/lora.js";
import { applyLoras, withLoras } from "../../formats/official/lora-merge.js";
import { type OfficialModels, openOfficial } from "../../formats/official/open.js";
import { LatentUpsampler } from "../../models/latent-upsampler.js";
import { T5TextEncoder, type TextEncoder } from "../../models/text-encoder/index.js";
import { LtxVideoTransformer, type TransformerOptions } from "../../models/transformer/index.js";
import { CausalVideoAutoencoder } from "../../models/video-vae/index.js";
import { Initializer, type Module } from "../../nn/index.js";
import { type PrecisionDtypes, precisionDtypes } from "../../nn/precision.js";
import { type Device, device as openDevice } from "../../tensor/index.js";
import { openFiles } from "./open-files.js";
import { Residency } from "./residency.js";

/** The models of a pipeline. */
export interface PipelineModels {
  text: TextEncoder;
  transformer: LtxVideoTransformer;
  vae: CausalVideoAutoencoder;
}

export interface PipelineLoadOptions {
  /** A released safetensors file, or a folder in the layout of diffusers. */
  checkpoint: string;
  /** The VAE's file or folder, where the checkpoint has the transformer alone, as ComfyUI's `diffusion_models` do. */
  vae?: string;
  /**
   * The folder of the T5: with `text_encoder` and `tokenizer` in it, or their files. Unless given, those of the
   * checkpoint's own folder, else what the Hugging Face cache holds. Not needed for `promptEmbeds`.
   */
  textEncoder?: string;
  device?: string;
  /**
   * How weights are kept and computed with: `bfloat16` (the default); `mixed_precision` keeps f32 weights and computes
   * in bf16; `float32`; `float8_e4m3fn` on devices that have it.
   */
  precision?: "bfloat16" | "mixed_precision" | "float32" | "float8_e4m3fn";
  /** Adapters to merge into the transformer. */
  loras?: readonly LoraChoice[];
  /** The times of the steps: the checkpoint's own, or evenly spread, or linear-quadratic, without shifts. */
  sampler?: "from_checkpoint" | "uniform" | "linear-quadratic";
  /** Text encoder, transformer and VAE take turns on the device: each is loaded when it is needed. */
  offload?: boolean;
  /** Prompts are cut to so many tokens; 256 unless given. */
  textEncoderMaxTokens?: number;
  /** Stops loading. */
  signal?: AbortSignal;
  /** Called with what to know of the LoRAs: what was left out or taken for granted. */
  onNotice?: (message: string) => void;
  /** Called while weights are loaded, also those that come with the first video, or with each where they take turns. */
  onLoad?: (progress: LoadProgress) => void;
}

/** How far the weights of a model are loaded. */
export interface LoadProgress {
  model: "text encoder" | "transformer" | "VAE" | "latent upscaler";
  /** Bytes of the file. */
  done: number;
  total: number;
}

/** What there is to know of the models before they are loaded. */
export interface ModelFacts {
  transformer: TransformerOptions;
  /** Whether the first latent frame stands for one frame alone in the transformer's positions. */
  causalTemporalPositioning: boolean;
  scheduler: SchedulerConfig;
  /** The only times that a distilled model knows; null for any. */
  allowedInferenceSteps: readonly number[] | null;
  latentChannels: number;
  /** Pixels of a latent pixel's side, and frames of a latent frame after the first. */
  spatialFactor: number;
  temporalFactor: number;
  /** Whether the decoder expects noise. */
  timestepConditioning: boolean;
}

/** The text encoder of all releases. */
const TEXT_ENCODER = "PixArt-alpha/PixArt-XL-2-1024-MS";

/** @throws {LtxError} `checkpoint` when transformer and VAE do not belong together */
export function factsOf(
  { options, causalTemporalPositioning }: OfficialTransformerConfig,
  vae: OfficialVaeConfig,
  scheduler: SchedulerConfig,
  allowedInferenceSteps: readonly number[] | null = null,
): ModelFacts {
  check(options.input_channels === vae.latent_channels, "checkpoint", () => {
    return `[pipeline] the transformer takes latents of ${options.input_channels} channels, the VAE's have ${vae.latent_channels}`;
  });
  const { time, space } = vaeFactors(vae);
  return {
    transformer: options,
    causalTemporalPositioning,
    scheduler,
    allowedInferenceSteps,
    latentChannels: vae.latent_channels,
    spatialFactor: space,
    temporalFactor: time,
    timestepConditioning: vae.timestep_conditioning,
  };
}

/** Where a file says nothing, the schedule of the releases that have such a transformer. */
const usualScheduler = (causal: boolean) =>
  causal ? { sampler: "LinearQuadratic" } : { shifting: "SD3", target_shift_terminal: 0.1 };

const SAMPLERS = { uniform: "Uniform", "linear-quadratic": "LinearQuadratic" } as const;

/** The files of a pipeline, described. The schemas take long to load: they come with the first pipeline. */
async function describe(files: OfficialModels, sampler: PipelineLoadOptions["sampler"] = "from_checkpoint") {
  const { parseOfficialTransformer } = await import("../../config/official/transformer.js");
  const { parseOfficialVae } = await import("../../config/official/vae.js");
  const { vaeConfigFromKeys } = await import("../../config/official/vae-keys.js");
  const { parseOfficialScheduler } = await import("../../config/official/scheduler.js");
  const { configs, path } = files;
  const transformer = parseOfficialTransformer(configs.transformer, path);
  const vae = parseOfficialVae(configs.vae ?? vaeConfigFromKeys(files.module("vae").tensors, path), path);
  check(sampler === "from_checkpoint" || Object.hasOwn(SAMPLERS, sampler), "invalid_argument", () => {
    return `[pipeline] sampler ${JSON.stringify(sampler)}: needs from_checkpoint, ${Object.keys(SAMPLERS).join(" or ")}`;
  });
  const scheduler =
    sampler === "from_checkpoint"
      ? (configs.scheduler ?? usualScheduler(transformer.causalTemporalPositioning))
      : { sampler: SAMPLERS[sampler] };
  const allowed = configs.allowed_inference_steps ?? null;
  check(allowed === null || (Array.isArray(allowed) && allowed.every(Number.isFinite)), "checkpoint", () => {
    return `[pipeline] ${path}: allowed_inference_steps ${JSON.stringify(allowed)} is no list of numbers: it is damaged`;
  });
  const facts = factsOf(transformer, vae, parseOfficialScheduler(scheduler, path), allowed as number[] | null);
  return { facts, vae };
}

/** The models of a pipeline, and what changes them. */
export interface OpenedModels {
  models: Residency<PipelineModels>;
  facts: ModelFacts;
  device: Device;
  setLoras(loras: readonly LoraChoice[]): Promise<void>;
}

/** Opens the models of a pipeline, and loads transformer and VAE unless they are to take turns. @throws {LtxError} */
export async function openModels(options: PipelineLoadOptions): Promise<OpenedModels> {
  const { checkpoint, precision = "bfloat16", offload = false, signal } = options;
  const dtypes = precisionDtypes(precision);
  const device = openDevice(options.device);
  stopIfAborted(signal, "[pipeline] loading was stopped by the caller");
  const files = await openFiles(options);
  let loras: WeightedLora[] = [];
  /** Where models take turns the files stay open; else they are opened again for what must be loaded again. */
  let open = true;
  const tell = (opened: readonly WeightedLora[]) => {
    for (const { lora } of opened) for (const notice of lora.notices) options.onNotice?.(notice);
  };
  const close = async () => {
    open = false;
    await files.close();
    await closeLoras(loras);
  };
  try {
    const { facts, vae } = await describe(files, options.sampler);
    loras = await openFitting(options.loras ?? [], files);
    tell(loras);
    const withFiles = async <T>(body: (files: OfficialModels, loras: WeightedLora[]) => Promise<T>): Promise<T> => {
      if (open) return body(files, loras);
      const again = await openFiles(options);
      let own: WeightedLora[] = [];
      try {
        own = await openFitting(
          loras.map(({ lora, weight }) => ({ path: lora.path, weight })),
          again,
        );
        return await body(again, own);
      } finally {
        await closeLoras(own);
        await again.close();
      }
    };
    const loading = (model: LoadProgress["model"], stop: AbortSignal) => ({
      source: checkpoint,
      signal: stop,
      onProgress: options.onLoad && ((done: number, total: number) => options.onLoad?.({ model, done, total })),
    });
    const models = new Residency<PipelineModels>(
      {
        text: await textLoader(options, files.textEncoder, { facts, device, dtypes }),
        transformer: (stop) =>
          withFiles((from, adapters) =>
            filled(new LtxVideoTransformer(facts.transformer, unwritten(device, dtypes), dtypes), (module) =>
              loadWeights(module, withLoras(from.module("transformer"), adapters), loading("transformer", stop)),
            ),
          ),
        vae: (stop) =>
          withFiles((from) =>
            filled(new CausalVideoAutoencoder(vae, unwritten(device, dtypes), dtypes), (module) =>
              loadWeights(module, from.module("vae"), {
                optional: CausalVideoAutoencoder.optionalKey,
                ignore: (key) => module.unusedKey(key),
                ...loading("VAE", stop),
                source: options.vae ?? checkpoint,
              }),
            ),
          ),
      },
      offload,
      offload ? close : undefined,
    );
    const change = async (wanted: readonly LoraChoice[]): Promise<void> => {
      const base = offload ? files : await openFiles(options);
      let next: WeightedLora[] = [];
      try {
        next = await openFitting(wanted, base);
        tell(next);
        if (offload) await models.unload("transformer");
        else await merge(base, next);
        [loras, next] = [next, loras];
      } finally {
        // Where models take turns the files are read again with the next video.
        await closeLoras(next);
        if (!offload) {
          await closeLoras(loras);
          await base.close();
        }
      }
    };
    const merge = async (base: OfficialModels, next: readonly WeightedLora[]): Promise<void> => {
      try {
        await models.use("transformer", (it) => applyLoras(it, base.module("transformer"), next, loras));
      } catch (error) {
        // Some weights may have changed and others not: the next video loads them anew, as they were.
        await models.unload("transformer");
        throw error;
      }
    };
    const setLoras = (wanted: readonly LoraChoice[]) => models.change(() => change(wanted));
    if (offload) return { models, facts, device, setLoras };
    try {
      for (const name of ["transformer", "vae"] as const) await models.use(name, async () => {}, signal);
    } catch (error) {
      models.dispose();
      throw error;
    }
    await close();
    return { models, facts, device, setLoras };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Opens LoRAs that fit the transformer. @throws {LtxError} `checkpoint`, `invalid_argument` */
async function openFitting(wanted: readonly LoraChoice[], files: OfficialModels): Promise<WeightedLora[]> {
  const opened = await openLoras(wanted);
  try {
    withLoras(files.module("transformer"), opened);
    return opened;
  } catch (error) {
    await closeLoras(opened);
    throw error;
  }
}

/** Parameters whose values a file will write. */
const unwritten = (device: Device, { weights }: PrecisionDtypes): Initializer =>
  new Initializer(device, 0, { weights, values: false });

/** A module for inference once `load` has filled it. */
async function filled<M extends Module>(module: M, load: (module: M) => Promise<void>): Promise<M> {
  try {
    module.requiresGrad(false).train(false);
    await load(module);
    return module;
  } catch (error) {
    module.dispose();
    throw error;
  }
}

/** How prompts get their encoder. One that is named is looked at now, so that a wrong folder shows at once. */
async function textLoader(
  { textEncoder, textEncoderMaxTokens = 256, onLoad }: PipelineLoadOptions,
  beside: string | undefined,
  { facts, device, dtypes }: { facts: ModelFacts; device: Device; dtypes: PrecisionDtypes },
): Promise<() => Promise<TextEncoder>> {
  const { transformer } = facts;
  const wanted = transformer.caption_channels ?? transformer.cross_attention_dim;
  const path = textEncoder ?? beside;
  const open = async (): Promise<TextEncoder> => {
    const text = await T5TextEncoder.open({
      version: TEXT_ENCODER,
      path,
      maxLength: textEncoderMaxTokens,
      device,
      ...dtypes,
      onLoad: onLoad && ((done, total) => onLoad({ model: "text encoder", done, total })),
    });
    check(text.width === wanted, "config", () => {
      return `[pipeline] the text encoder in ${text.path} gives ${text.width} features, the transformer takes ${wanted}: name the folder of another one`;
    });
    return text;
  };
  let opened = path === undefined ? null : await open();
  // Its network comes with the first prompt; disposing of it lets that go, and the features of known prompts stay.
  return async () => {
    opened ??= await open();
    return opened;
  };
}

/** The upscaler of latents in `path`. @throws {LtxError} */
export async function openUpsampler(
  path: string,
  facts: ModelFacts,
  device: Device,
  { precision = "bfloat16", signal, onLoad }: Pick<PipelineLoadOptions, "precision" | "signal" | "onLoad">,
): Promise<LatentUpsampler> {
  const { parseOfficialUpsampler } = await import("../../config/official/upsampler.js");
  const dtypes = precisionDtypes(precision);
  const files = await openOfficial(path);
  try {
    const weights = files.module("upsampler");
    const config = parseOfficialUpsampler(files.configs.upsampler, path);
    check(config.in_channels === facts.latentChannels, "checkpoint", () => {
      return `[pipeline] the upscaler ${path} takes latents of ${config.in_channels} channels, the model's have ${facts.latentChannels}`;
    });
    check(config.spatial_upsample && !config.temporal_upsample, "checkpoint", () => {
      return `[pipeline] the upscaler ${path} is no spatial one: name ltxv-spatial-upscaler-*.safetensors`;
    });
    const module = new LatentUpsampler(config, unwritten(device, dtypes));
    return await filled(module, (upsampler) =>
      loadWeights(upsampler, weights, {
        source: path,
        signal,
        onProgress: onLoad && ((done, total) => onLoad({ model: "latent upscaler", done, total })),
      }),
    );
  } finally {
    await files.close();
  }
}
