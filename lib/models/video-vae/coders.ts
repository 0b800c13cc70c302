/** What the parts of a VAE take of its configuration. */
import type { VaeConfig } from "../../config/index.js";
import { check } from "../../errors.js";
import { Conv3d, type Initializer } from "../../nn/index.js";
import type { DecoderConfig } from "./decoder.js";
import type { EncoderConfig } from "./encoder.js";

const shared = ({ norm_layer, norm_num_groups, patch_size, spatial_padding_mode }: VaeConfig) => ({
  norm_layer,
  norm_num_groups,
  patch_size,
  spatial_padding_mode,
});

export const encoderConfig = (vae: VaeConfig): EncoderConfig => ({
  ...shared(vae),
  in_channels: vae.in_channels,
  out_channels: vae.latent_channels,
  blocks: vae.encoder_blocks,
  base_channels: vae.encoder_base_channels ?? vae.base_channels,
  latent_log_var: vae.latent_log_var,
});

export const decoderConfig = (vae: VaeConfig): DecoderConfig => ({
  ...shared(vae),
  in_channels: vae.latent_channels,
  out_channels: vae.out_channels,
  blocks: vae.decoder_blocks,
  base_channels: vae.decoder_base_channels ?? vae.base_channels,
  causal: vae.causal_decoder,
  timestep_conditioning: vae.timestep_conditioning,
});

/**
 * The pointwise convolutions between the coders and the latents, where the configuration has them.
 * @throws {LtxError} `invalid_argument` where the variances don't allow it
 */
export function quantConvs(vae: VaeConfig, init: Initializer): Record<"quant_conv" | "post_quant_conv", Conv3d | null> {
  const { latent_channels: latents, latent_log_var, use_quant_conv } = vae;
  if (!use_quant_conv) return { quant_conv: null, post_quant_conv: null };
  check(latent_log_var !== "uniform" && latent_log_var !== "constant", "invalid_argument", () => {
    return '[video vae] use_quant_conv needs a variance per channel: set it to false, or latent_log_var to "per_channel"';
  });
  const point = (channels: number) => new Conv3d(channels, channels, [1, 1, 1], init);
  return { quant_conv: point(latent_log_var === "none" ? latents : 2 * latents), post_quant_conv: point(latents) };
}
