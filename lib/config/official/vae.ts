/** The configuration of an official VAE, as its checkpoint's metadata or a diffusers folder holds it. */
import { z } from "zod";
import { LtxError } from "../../errors.js";
import { count, layers } from "../fields.js";
import { formatPath } from "../problems.js";
import type { DecoderBlockName, EncoderBlockName, VaeBlockParams, VaeConfig } from "../vae.js";
import { checkCoders } from "../validate.js";
import { isDiffusersVae, officialFromDiffusers } from "./diffusers-vae.js";
import { parseOfficial } from "./parse.js";

/** What each block reads of its parameters, with its defaults; others have no effect on it, whatever they say. */
const ENCODER_BLOCKS = {
  res_x: { num_layers: 1 },
  res_x_y: { multiplier: 2 },
  compress_time: {},
  compress_space: {},
  compress_all: {},
  compress_all_x_y: { multiplier: 2 },
  compress_all_res: { multiplier: 2 },
  compress_space_res: { multiplier: 2 },
  compress_time_res: { multiplier: 2 },
};
const DECODER_BLOCKS = {
  res_x: { num_layers: 1, inject_noise: false },
  attn_res_x: { num_layers: 1, inject_noise: false, attention_head_dim: undefined },
  res_x_y: { multiplier: 2, inject_noise: false },
  compress_time: {},
  compress_space: {},
  compress_all: { residual: false, multiplier: 1 },
};

const blockParams = z.looseObject({
  num_layers: layers.optional(),
  multiplier: count.optional(),
  residual: z.boolean().optional(),
  inject_noise: z.boolean().optional(),
  attention_head_dim: count.optional(),
});

function blockList<Name extends string>(defaults: Record<Name, VaeBlockParams>) {
  const names = Object.keys(defaults) as [Name, ...Name[]];
  const block = z.tuple([z.enum(names), z.union([layers, blockParams])]).transform(([name, params]) => {
    // A bare number counts layers, in blocks that have layers.
    const given: VaeBlockParams = typeof params === "number" ? { num_layers: params } : params;
    const read = Object.entries(defaults[name as Name]).map(([key, value]) => [
      key,
      given[key as keyof VaeBlockParams] ?? value,
    ]);
    return [name, Object.fromEntries(read)] as [Name, VaeBlockParams];
  });
  return z.array(block).min(1);
}

/** Loose: files carry keys of their own (`_class_name`, versions) that say nothing about the model. */
const officialVae = z.looseObject({
  dims: z.literal(3).default(3),
  in_channels: count.default(3),
  out_channels: count.default(3),
  latent_channels: count,
  encoder_blocks: blockList<EncoderBlockName>(ENCODER_BLOCKS),
  decoder_blocks: blockList<DecoderBlockName>(DECODER_BLOCKS),
  encoder_base_channels: count.default(128),
  decoder_base_channels: count.default(128),
  norm_num_groups: count.default(32),
  scaling_factor: z.number().gt(0).default(1),
  patch_size: count.default(1),
  norm_layer: z.enum(["group_norm", "pixel_norm", "layer_norm"]).default("group_norm"),
  double_z: z.boolean().default(true),
  latent_log_var: z.enum(["per_channel", "uniform", "constant", "none"]).optional(),
  use_quant_conv: z.boolean().default(true),
  normalize_latent_channels: z.boolean().default(false),
  causal_decoder: z.boolean().default(false),
  timestep_conditioning: z.boolean().default(false),
  spatial_padding_mode: z.enum(["zeros", "replicate", "reflect"]).default("zeros"),
});

/** An official VAE: the blocks of both halves in the order in which they run. */
export type OfficialVaeConfig = VaeConfig & {
  /** Whether the posterior's means are brought to unit scale by statistics of the model's own. */
  normalize_latent_channels: boolean;
};

/**
 * The `vae` section of a checkpoint's metadata, or the `config.json` of a diffusers folder's VAE. What a file leaves out
 * has the value that the official code takes then.
 * @param source stands in the messages
 * @throws LtxError `config`, listing every problem
 */
export function parseOfficialVae(value: unknown, source: string): OfficialVaeConfig {
  const name = `${source} (vae)`;
  const own = isDiffusersVae(value) ? officialFromDiffusers(value, name) : value;
  const { double_z, latent_log_var, decoder_blocks, ...given } = parseOfficial(officialVae, withHalves(own), name);
  const config: OfficialVaeConfig = {
    dims: given.dims,
    in_channels: given.in_channels,
    out_channels: given.out_channels,
    latent_channels: given.latent_channels,
    encoder_blocks: given.encoder_blocks,
    decoder_blocks: decoder_blocks.reverse(), // they are listed from the pixels on
    base_channels: 128,
    encoder_base_channels: given.encoder_base_channels,
    decoder_base_channels: given.decoder_base_channels,
    norm_num_groups: given.norm_num_groups,
    scaling_factor: given.scaling_factor,
    patch_size: given.patch_size,
    norm_layer: given.norm_layer,
    latent_log_var: latent_log_var ?? (double_z ? "per_channel" : "none"),
    use_quant_conv: given.use_quant_conv,
    normalize_latent_channels: given.normalize_latent_channels,
    causal_decoder: given.causal_decoder,
    timestep_conditioning: given.timestep_conditioning,
    spatial_padding_mode: given.spatial_padding_mode,
  };
  const problems = checkCoders(config, []).map(({ path, message }) => {
    const [list, index, ...rest] = path;
    const listed = list === "decoder_blocks" && typeof index === "number";
    return `${formatPath(listed ? [list, decoder_blocks.length - 1 - index, ...rest] : path)}: ${message}`;
  });
  if (problems.length > 0) throw new LtxError("config", `[config] ${name}: ${problems.join("; ")}`);
  return config;
}

/** The first release has one list of blocks for both halves. */
function withHalves(value: unknown): unknown {
  const { blocks } = (value ?? {}) as { blocks?: unknown };
  return blocks === undefined ? value : { encoder_blocks: blocks, decoder_blocks: blocks, ...(value as object) };
}
