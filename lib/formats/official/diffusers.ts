/** Configurations of diffusers folders and of the official files, each from the other. */
import { LtxError } from "../../errors.js";
import type { ModuleKind } from "./keys.js";

type Json = Record<string, unknown>;
/** A block of the official lists: its kind, and how many layers or which parameters. */
type Block = [kind: string, params: Json];

const VERSION = "0.32.0";

export const DIFFUSERS_CLASSES = {
  transformer: "LTXVideoTransformer3DModel",
  vae: "AutoencoderKLLTXVideo",
  upsampler: "LTXLatentUpsamplerModel",
} as const;

/** Throws unless `config[key]` is `value` or left out. */
function expectValue(config: Json, key: string, value: unknown, where: string): void {
  const found = config[key] ?? value;
  if (found === value) return;
  throw new LtxError(
    "config",
    `[convert] ${where}: ${key} ${JSON.stringify(found)} is not supported, only ${JSON.stringify(value)}`,
  );
}

/** Keys that both sides name alike. */
const SHARED = [
  "activation_fn",
  "attention_bias",
  "attention_head_dim",
  "caption_channels",
  "cross_attention_dim",
  "in_channels",
  "norm_elementwise_affine",
  "norm_eps",
  "num_attention_heads",
  "num_layers",
  "out_channels",
] as const;

const pick = (config: Json, keys: readonly string[]): Json =>
  Object.fromEntries(keys.filter((key) => config[key] !== undefined).map((key) => [key, config[key]]));

/**
 * The official configuration of a diffusers transformer. Diffusers leaves the positions to its pipelines, so the caller
 * says whether they are causal.
 * @param where stands in the messages
 * @throws LtxError `config` for what no official release has
 */
export function officialTransformerConfig(config: Json, causal: boolean, where: string): Json {
  expectValue(config, "patch_size", 1, where);
  expectValue(config, "patch_size_t", 1, where);
  expectValue(config, "qk_norm", "rms_norm_across_heads", where);
  expectValue(config, "attention_out_bias", true, where);
  return {
    _class_name: "Transformer3DModel",
    ...pick(config, SHARED),
    qk_norm: "rms_norm",
    standardization_norm: "rms_norm",
    adaptive_norm: "single_scale_shift",
    positional_embedding_type: "rope",
    positional_embedding_theta: 10000,
    positional_embedding_max_pos: [20, 2048, 2048],
    timestep_scale_multiplier: 1000,
    causal_temporal_positioning: causal,
  };
}

/** The same the other way. @throws LtxError `config` for what diffusers does not have */
export function diffusersTransformerConfig(config: Json, where: string): Json {
  for (const [key, value] of [
    ["adaptive_norm", "single_scale_shift"],
    ["standardization_norm", "rms_norm"],
    ["qk_norm", "rms_norm"],
    ["positional_embedding_type", "rope"],
    ["positional_embedding_theta", 10000],
    ["timestep_scale_multiplier", 1000],
  ] as const) {
    expectValue(config, key, value, where);
  }
  return {
    _class_name: DIFFUSERS_CLASSES.transformer,
    _diffusers_version: VERSION,
    ...pick(config, SHARED),
    attention_out_bias: true,
    patch_size: 1,
    patch_size_t: 1,
    qk_norm: "rms_norm_across_heads",
  };
}

/** What a stage of the encoder ends in: diffusers' word for the official kind of block. */
const RESAMPLING: Record<string, string> = {
  conv: "compress_all",
  spatial: "compress_space_res",
  temporal: "compress_time_res",
  spatiotemporal: "compress_all_res",
};

/** The diffusers configuration of an official VAE. @throws LtxError `config` for what diffusers does not have */
export function diffusersVaeConfig(config: Json, where: string): Json {
  for (const [key, value] of [
    ["dims", 3],
    ["norm_layer", "pixel_norm"],
    ["latent_log_var", "uniform"],
    ["use_quant_conv", false],
    ["normalize_latent_channels", false],
    ["spatial_padding_mode", "zeros"],
  ] as const) {
    expectValue(config, key, value, where);
  }
  const encoder = stagesOf(blocksOf(config, "encoder_blocks", where), where);
  const decoder = stagesOf(blocksOf(config, "decoder_blocks", where), where);
  const base = (key: string) => Number(config[key] ?? config.base_channels ?? 128);
  const encoderWidths = widthsOf(base("encoder_base_channels"), encoder);
  const decoderWidths = widthsOf(base("decoder_base_channels"), decoder);
  const factors = decoder.slice(0, -1).map(({ resample }) => multiplierOf(resample));
  const residual = encoder.some(({ resample }) => resample?.[0].endsWith("_res"));
  const kinds = encoder.slice(0, -1).map(({ resample }) => {
    const kind = resample?.[0] ?? "compress_all";
    return Object.keys(RESAMPLING).find((name) => RESAMPLING[name] === kind) ?? unsupported(kind, where);
  });
  const patch = Number(config.patch_size ?? 4);
  const factorOf = (...axes: string[]) =>
    2 ** encoder.filter(({ resample }) => axes.some((axis) => resample?.[0].startsWith(`compress_${axis}`))).length;
  for (const { resample } of decoder) {
    if (resample && resample[0] !== "compress_all") unsupported(resample[0], where);
  }
  return {
    _class_name: DIFFUSERS_CLASSES.vae,
    _diffusers_version: VERSION,
    // The residual kind widens on the way down, so that the last width is that of the middle.
    block_out_channels: residual ? encoderWidths : encoderWidths.slice(0, -1),
    // Given before the resampling divides it.
    decoder_block_out_channels: decoderWidths.slice(0, -1).map((width, i) => width * factors[i]),
    decoder_causal: config.causal_decoder ?? false,
    decoder_inject_noise: decoder.map(({ blocks }) => blocks.inject_noise === true),
    decoder_layers_per_block: decoder.map(({ blocks }) => blocks.num_layers),
    decoder_spatio_temporal_scaling: decoder.slice(0, -1).map(({ resample }) => resample !== undefined),
    down_block_types: kinds.map(() => (residual ? "LTXVideo095DownBlock3D" : "LTXVideoDownBlock3D")),
    downsample_type: kinds,
    encoder_causal: true,
    in_channels: config.in_channels ?? 3,
    latent_channels: config.latent_channels ?? 128,
    layers_per_block: encoder.map(({ blocks }) => blocks.num_layers),
    out_channels: config.out_channels ?? 3,
    patch_size: patch,
    patch_size_t: 1,
    resnet_norm_eps: 1e-6,
    scaling_factor: config.scaling_factor ?? 1,
    spatial_compression_ratio: patch * factorOf("all", "space"),
    spatio_temporal_scaling: encoder.slice(0, -1).map(({ resample }) => resample !== undefined),
    temporal_compression_ratio: factorOf("all", "time"),
    timestep_conditioning: config.timestep_conditioning ?? false,
    upsample_factor: factors,
    upsample_residual: decoder.slice(0, -1).map(({ resample }) => resample?.[1].residual === true),
  };
}

/** The blocks between two changes of size: layers, then resampling, then another width. */
interface Stage {
  blocks: Json;
  resample?: Block;
  width?: Block;
}

/** The official list `key`, or the one of both halves; whole numbers stand for layers alone. */
function blocksOf(config: Json, key: string, where: string): Block[] {
  const value = config[key] ?? config.blocks;
  const fits = (block: unknown): block is [string, number | Json] =>
    Array.isArray(block) &&
    typeof block[0] === "string" &&
    (typeof block[1] === "number" || typeof block[1] === "object");
  if (!Array.isArray(value) || !value.every(fits)) {
    throw new LtxError("config", `[convert] ${where}: ${key} is missing or no list of blocks`);
  }
  return value.map(([kind, params]) => [
    kind,
    typeof params === "number" ? (kind === "res_x" ? { num_layers: params } : {}) : (params ?? {}),
  ]);
}

function stagesOf(blocks: readonly Block[], where: string): Stage[] {
  const stages: Stage[] = [];
  for (const block of blocks) {
    const [kind, params] = block;
    const stage = stages.at(-1);
    if (kind === "res_x") stages.push({ blocks: params });
    else if (!stage || stage.width) unsupported(kind, where);
    else if (kind === "res_x_y") stage.width = block;
    else if (kind.startsWith("compress_") && !stage.resample) stage.resample = block;
    else unsupported(kind, where);
  }
  const last = stages.at(-1);
  if (!last || last.resample || last.width) unsupported(blocks.at(-1)?.[0] ?? "no block", where);
  return stages;
}

function unsupported(kind: string, where: string): never {
  throw new LtxError("config", `[convert] ${where}: diffusers has no VAE with ${kind} at this place`);
}

/** How much a block widens; the official defaults are 1 for plain resampling and 2 for what else changes the width. */
const multiplierOf = (block: Block | undefined): number =>
  block === undefined ? 1 : Number(block[1].multiplier ?? (/^compress_(all|space|time)$/.test(block[0]) ? 1 : 2));

/** The width at the start of every stage. */
function widthsOf(base: number, stages: readonly Stage[]): number[] {
  const widths = [base];
  for (const { resample, width } of stages.slice(0, -1)) {
    widths.push((widths.at(-1) as number) * multiplierOf(resample) * multiplierOf(width));
  }
  return widths;
}

/** The scheduler that a diffusers pipeline builds for an official section. */
export function diffusersSchedulerConfig(config: Json | undefined): Json {
  const dynamic = config?.shifting === "SD3";
  return {
    _class_name: "FlowMatchEulerDiscreteScheduler",
    _diffusers_version: VERSION,
    base_image_seq_len: 1024,
    base_shift: 0.95,
    invert_sigmas: false,
    max_image_seq_len: 4096,
    max_shift: 2.05,
    num_train_timesteps: config?.num_train_timesteps ?? 1000,
    shift: 1,
    shift_terminal: dynamic ? (config?.target_shift_terminal ?? null) : null,
    use_beta_sigmas: false,
    use_dynamic_shifting: dynamic,
    use_exponential_sigmas: false,
    use_karras_sigmas: false,
  };
}

/** The official section for a diffusers scheduler: without dynamic shifting its pipeline brings linear-quadratic times. */
export function officialSchedulerConfig(config: Json): Json {
  const dynamic = config.use_dynamic_shifting === true;
  return {
    _class_name: "RectifiedFlowScheduler",
    num_train_timesteps: config.num_train_timesteps ?? 1000,
    sampler: dynamic ? "Uniform" : "LinearQuadratic",
    shifting: dynamic ? "SD3" : null,
    base_resolution: null,
    target_shift_terminal: dynamic ? (config.shift_terminal ?? null) : null,
  };
}

/**
 * What says which parts a diffusers folder has, and which pipeline they are for; null for parts that are none of a whole.
 * @param causal whether the first latent frame stands for one frame in the transformer's positions: LTXPipeline takes it
 *   for as many as the others
 */
export function diffusersModelIndex(kinds: readonly ModuleKind[], causal: boolean): Json | null {
  const has = (kind: ModuleKind) => kinds.includes(kind);
  if (has("upsampler") && !has("transformer")) {
    return {
      _class_name: "LTXLatentUpsamplePipeline",
      _diffusers_version: VERSION,
      latent_upsampler: ["diffusers", DIFFUSERS_CLASSES.upsampler],
      // Alone it is given the VAE of the pipeline that it works with.
      vae: has("vae") ? ["diffusers", DIFFUSERS_CLASSES.vae] : [null, null],
    };
  }
  if (!has("transformer") || !has("vae")) return null;
  return {
    _class_name: causal ? "LTXConditionPipeline" : "LTXPipeline",
    _diffusers_version: VERSION,
    scheduler: ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    text_encoder: ["transformers", "T5EncoderModel"],
    tokenizer: ["transformers", "T5Tokenizer"],
    transformer: ["diffusers", DIFFUSERS_CLASSES.transformer],
    vae: ["diffusers", DIFFUSERS_CLASSES.vae],
  };
}
