/** The configuration of a diffusers folder's VAE (AutoencoderKLLTXVideo), told in the official one's terms. */
import { z } from "zod";
import { LtxError } from "../../errors.js";
import { count } from "../fields.js";
import { parseOfficial } from "./parse.js";

const counts = z.array(count).min(1);
const flags = z.array(z.boolean()).min(1);

const diffusersVae = z.looseObject({
  in_channels: count.default(3),
  out_channels: count.default(3),
  latent_channels: count.default(128),
  block_out_channels: counts.default([128, 256, 512, 512]),
  decoder_block_out_channels: counts.default([128, 256, 512, 512]),
  layers_per_block: counts.default([4, 3, 3, 3, 4]),
  decoder_layers_per_block: counts.default([4, 3, 3, 3, 4]),
  spatio_temporal_scaling: flags.default([true, true, true, false]),
  decoder_spatio_temporal_scaling: flags.default([true, true, true, false]),
  decoder_inject_noise: flags.default([false, false, false, false, false]),
  downsample_type: z
    .array(z.enum(["conv", "spatial", "temporal", "spatiotemporal"]))
    .default(["conv", "conv", "conv", "conv"]),
  upsample_residual: flags.default([false, false, false, false]),
  upsample_factor: counts.default([1, 1, 1, 1]),
  timestep_conditioning: z.boolean().default(false),
  patch_size: count.default(4),
  patch_size_t: z.literal(1).default(1),
  resnet_norm_eps: z.literal(1e-6).default(1e-6),
  scaling_factor: z.number().gt(0).default(1),
  encoder_causal: z.literal(true).default(true),
  decoder_causal: z.boolean().default(false),
});
type DiffusersVae = z.output<typeof diffusersVae>;

type Block = [string, Record<string, unknown>];

const RESAMPLING = {
  conv: "compress_all",
  spatial: "compress_space_res",
  temporal: "compress_time_res",
  spatiotemporal: "compress_all_res",
} as const;

/** Whether a VAE's JSON is that of a diffusers folder. */
export const isDiffusersVae = (value: unknown): boolean =>
  (value as { _class_name?: unknown } | null)?._class_name === "AutoencoderKLLTXVideo";

/**
 * @param source stands in the messages
 * @throws LtxError `config`, listing every problem
 */
export function officialFromDiffusers(value: unknown, source: string): Record<string, unknown> {
  const vae = parseOfficial(diffusersVae, value, source);
  const encoder = encoderBlocks(vae, source);
  const decoder = decoderBlocks(vae, source);
  return {
    _class_name: "CausalVideoAutoencoder",
    dims: 3,
    in_channels: vae.in_channels,
    out_channels: vae.out_channels,
    latent_channels: vae.latent_channels,
    encoder_blocks: encoder,
    decoder_blocks: decoder.blocks.reverse(),
    encoder_base_channels: vae.block_out_channels[0],
    decoder_base_channels: decoder.width,
    norm_layer: "pixel_norm",
    patch_size: vae.patch_size,
    latent_log_var: "uniform",
    scaling_factor: vae.scaling_factor,
    use_quant_conv: false,
    causal_decoder: vae.decoder_causal,
    timestep_conditioning: vae.timestep_conditioning,
  };
}

/** A block list's lengths must fit each other. */
function checkLength(source: string, key: string, found: number, expected: number): void {
  if (found === expected) return;
  throw new LtxError("config", `[config] ${source}: ${key}: found ${found} entries, expected ${expected}`);
}

function encoderBlocks(vae: DiffusersVae, source: string): Block[] {
  const { layers_per_block: layers, spatio_temporal_scaling: scaling, downsample_type: types } = vae;
  const widths = vae.block_out_channels;
  const count = scaling.length;
  checkLength(source, "layers_per_block", layers.length, count + 1);
  checkLength(source, "downsample_type", types.length, count);
  const blocks: Block[] = [];
  for (let i = 0; i < count; i++) {
    const multiplier = (widths[i + 1] ?? widths[i]) / widths[i];
    blocks.push(["res_x", { num_layers: layers[i] }]);
    if (scaling[i]) {
      const resampled = types[i] === "conv" ? {} : { multiplier };
      blocks.push([RESAMPLING[types[i]], resampled]);
    }
    if (multiplier !== 1 && (types[i] === "conv" || !scaling[i])) blocks.push(["res_x_y", { multiplier }]);
  }
  blocks.push(["res_x", { num_layers: layers[count] }]);
  return blocks;
}

/** The decoder's blocks in the order in which they run, and the width behind the last one. */
function decoderBlocks(vae: DiffusersVae, source: string): { blocks: Block[]; width: number } {
  const widths = vae.decoder_block_out_channels.slice().reverse();
  const layers = vae.decoder_layers_per_block.slice().reverse();
  const scaling = vae.decoder_spatio_temporal_scaling.slice().reverse();
  const noise = vae.decoder_inject_noise.slice().reverse();
  const residual = vae.upsample_residual.slice().reverse();
  const factors = vae.upsample_factor.slice().reverse();
  const count = widths.length;
  const lengths = { decoder_layers_per_block: layers.length - 1, decoder_spatio_temporal_scaling: scaling.length };
  const others = { decoder_inject_noise: noise.length - 1, upsample_residual: residual.length };
  for (const [key, length] of Object.entries({ ...lengths, ...others, upsample_factor: factors.length })) {
    checkLength(source, key, length, count);
  }
  const blocks: Block[] = [["res_x", { num_layers: layers[0], inject_noise: noise[0] }]];
  let width = widths[0];
  for (let i = 0; i < count; i++) {
    // Behind the change of width, before the unfolding that divides it.
    const wide = widths[i];
    if (width !== wide) blocks.push(["res_x_y", { multiplier: width / wide, inject_noise: noise[i + 1] }]);
    const factor = factors[i];
    if (scaling[i]) blocks.push(["compress_all", { multiplier: factor, residual: residual[i] }]);
    blocks.push(["res_x", { num_layers: layers[i + 1], inject_noise: noise[i + 1] }]);
    width = wide / factor;
  }
  return { blocks, width };
}
