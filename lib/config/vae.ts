import { z } from "zod";
import { count, layers, weight, whole } from "./fields.js";
import { section, unknownKey } from "./problems.js";
import { target } from "./targets.js";

/** Block names of the encoder, each with the parameters that it takes. */
export const ENCODER_BLOCKS = {
  res_x: ["num_layers"],
  res_x_y: ["multiplier"],
  compress_time: [],
  compress_space: [],
  compress_all: ["multiplier"],
  compress_all_x_y: ["multiplier"],
  compress_time_res: ["multiplier"],
  compress_space_res: ["multiplier"],
  compress_all_res: ["multiplier"],
} as const;

/** Block names of the decoder, each with the parameters that it takes. */
export const DECODER_BLOCKS = {
  res_x: ["num_layers", "inject_noise"],
  attn_res_x: ["num_layers", "inject_noise", "attention_head_dim"],
  res_x_y: ["multiplier", "inject_noise"],
  compress_time: ["residual", "multiplier"],
  compress_space: ["residual", "multiplier"],
  compress_all: ["residual", "multiplier"],
} as const;

export type EncoderBlockName = keyof typeof ENCODER_BLOCKS;
export type DecoderBlockName = keyof typeof DECODER_BLOCKS;

const blockParams = section({
  num_layers: layers.optional(),
  multiplier: count.optional(),
  residual: z.boolean().optional(),
  inject_noise: z.boolean().optional(),
  attention_head_dim: count.optional(),
});

/**
 * `num_layers` of the res blocks; `multiplier`, the change of width (default 2; 1 in `compress_time`, `compress_space`
 * and `compress_all`); `residual`, whether a decoder's resampling adds its rearranged input; `inject_noise`, whether each
 * convolution is followed by noise; `attention_head_dim`, the width of the heads in `attn_res_x`.
 */
export type VaeBlockParams = z.output<typeof blockParams>;
/** `[name, n]` is short for `[name, { num_layers: n }]`; only `res_x` blocks read n. */
export type EncoderBlock = [EncoderBlockName, number | VaeBlockParams];
export type DecoderBlock = [DecoderBlockName, number | VaeBlockParams];

function blockList<Names extends Record<string, readonly string[]>>(table: Names) {
  const names = Object.keys(table) as [string, ...string[]];
  const block = z
    .tuple([z.enum(names), z.union([layers, blockParams])])
    .superRefine(([name, params], context) => {
      if (typeof params === "number") return;
      for (const key of Object.keys(params)) {
        if (table[name].includes(key)) continue;
        const message = table[name].length ? unknownKey(key, table[name]) : "takes no keys";
        context.addIssue({ code: "custom", path: [1, key], message: `${name}: ${message}` });
      }
    })
    .transform((value) => value as [keyof Names & string, number | VaeBlockParams]);
  return z.array(block).min(1);
}

export const lossParams = section(
  {
    disc_start: whole.default(0),
    logvar_init: z.number().default(0),
    kl_weight: weight.default(1),
    pixelloss_weight: weight.default(1),
    disc_num_layers: layers.default(3),
    disc_in_channels: count.optional(),
    adversarial_weight: weight.default(1),
    adversarial_start: whole.default(0),
    perceptual_weight: weight.default(1),
    use_actnorm: z.literal(false).default(false),
    disc_conditional: z.literal(false).default(false),
    disc_loss: z.enum(["hinge", "vanilla"]).default("hinge"),
    use_3d: z.boolean().default(false),
    use_reconstruction_gan: z.boolean().default(false),
    wavelet_loss_weight: weight.default(0),
    rec_loss: z.enum(["l1", "l2"]).default("l1"),
    learned_logvar: z.boolean().default(true),
    use_nll: z.boolean().default(true),
    kl_start: whole.default(0),
    perceptual_start: whole.default(0),
    wavelet_start: whole.default(0),
    use_adaptive_adversarial_weight: z.boolean().default(true),
    rec_reduction: z.enum(["mean", "sum"]).default("mean"),
    perceptual_checkpoint: z.union([z.string().min(1), z.array(z.string().min(1)).min(1)]).optional(),
  },
  { disc_weight: "adversarial_weight", disc_factor: "adversarial_weight" },
);

/**
 * The VAE's loss, in the reference's names. Defaults are the reference's too, except that `disc_in_channels` is the
 * number of video channels when left out.
 *
 * Added here: `rec_reduction`, how the element loss becomes a number when `use_nll` is false (`mean` as the reference,
 * or `sum` over a sample and mean over the batch); `perceptual_checkpoint`, the file of the LPIPS weights that a
 * `perceptual_weight` above 0 needs, or a list of files that complete each other (VGG16 and the LPIPS layers). Steps count
 * from 0; a term has weight 0 before its `*_start`.
 */
export type VaeLossConfig = Omit<z.output<typeof lossParams>, "disc_in_channels"> & { disc_in_channels: number };

const lossConfig = section({ target: target("vae_loss"), params: lossParams.prefault({}) });

const vaeShape = {
  dims: z.literal(3).default(3),
  in_channels: count.default(3),
  out_channels: count.default(3),
  input_number_of_frames: count.optional(),
  latent_channels: count,
  encoder_blocks: blockList(ENCODER_BLOCKS),
  decoder_blocks: blockList(DECODER_BLOCKS),
  base_channels: count.default(128),
  encoder_base_channels: count.optional(),
  decoder_base_channels: count.optional(),
  norm_num_groups: count.default(32),
  scaling_factor: z.number().gt(0).default(1),
  patch_size: count.default(1),
  norm_layer: z.enum(["group_norm", "pixel_norm", "layer_norm"]).default("group_norm"),
  latent_log_var: z.enum(["per_channel", "uniform", "constant", "none"]).default("per_channel"),
  use_quant_conv: z.boolean().default(true),
  causal_decoder: z.boolean().default(false),
  timestep_conditioning: z.boolean().default(false),
  spatial_padding_mode: z.enum(["zeros", "replicate", "reflect"]).default("zeros"),
};

const vaeRenamed = { blocks: "encoder_blocks (with decoder_blocks beside it)" };

/** The VAE's own parameters, with no loss beside them. */
export const vaeParams = section(vaeShape, vaeRenamed);

/**
 * The video VAE, in the reference's names and with its defaults; `dims` is always 3. Both lists of blocks are in the
 * order in which they run. `encoder_base_channels` and `decoder_base_channels` stand before `base_channels`.
 * `input_number_of_frames`: clips of another length are cut, or repeated end to end, to that. `scaling_factor` has no
 * effect: the transformer's latents are brought to unit deviation by a factor that is measured, whatever their scale.
 */
export type VaeConfig = Omit<z.output<typeof vaeParams>, "encoder_blocks" | "decoder_blocks"> & {
  encoder_blocks: EncoderBlock[];
  decoder_blocks: DecoderBlock[];
};

/** `vae_config:` of a VAE file and `latent_encoder:` of a diffusion file. */
export const vaeComponent = section({
  target: target("vae"),
  instantiate_with_config_struct: z.boolean().optional(),
  params: section({ ...vaeShape, loss_config: lossConfig.optional() }, vaeRenamed),
});
export type VaeComponent = z.output<typeof vaeComponent>;
