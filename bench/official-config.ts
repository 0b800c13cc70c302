/** The configuration of LTX-Video 2B 0.9.5, in the official names. */

const TRANSFORMER = {
  _class_name: "Transformer3DModel",
  activation_fn: "gelu-approximate",
  attention_bias: true,
  attention_head_dim: 64,
  attention_type: "default",
  caption_channels: 4096,
  cross_attention_dim: 2048,
  double_self_attention: false,
  dropout: 0,
  in_channels: 128,
  norm_elementwise_affine: false,
  norm_eps: 1e-6,
  norm_num_groups: 32,
  num_attention_heads: 32,
  num_embeds_ada_norm: 1000,
  num_layers: 28,
  num_vector_embeds: null,
  only_cross_attention: false,
  out_channels: 128,
  upcast_attention: false,
  use_linear_projection: false,
  qk_norm: "rms_norm",
  standardization_norm: "rms_norm",
  positional_embedding_type: "rope",
  positional_embedding_theta: 10000,
  positional_embedding_max_pos: [20, 2048, 2048],
  timestep_scale_multiplier: 1000,
  causal_temporal_positioning: true,
};

type Block = [
  kind: string,
  options: { num_layers?: number; multiplier?: number; residual?: true; inject_noise?: false },
];

const ENCODER: Block[] = [
  ["res_x", { num_layers: 4 }],
  ["compress_space_res", { multiplier: 2 }],
  ["res_x", { num_layers: 6 }],
  ["compress_time_res", { multiplier: 2 }],
  ["res_x", { num_layers: 6 }],
  ["compress_all_res", { multiplier: 2 }],
  ["res_x", { num_layers: 2 }],
  ["compress_all_res", { multiplier: 2 }],
  ["res_x", { num_layers: 2 }],
];

/** From the side of the pixels. */
const DECODER: Block[] = [
  ["res_x", { num_layers: 5, inject_noise: false }],
  ["compress_all", { residual: true, multiplier: 2 }],
  ["res_x", { num_layers: 5, inject_noise: false }],
  ["compress_all", { residual: true, multiplier: 2 }],
  ["res_x", { num_layers: 5, inject_noise: false }],
  ["compress_all", { residual: true, multiplier: 2 }],
  ["res_x", { num_layers: 5, inject_noise: false }],
];

const VAE = {
  _class_name: "CausalVideoAutoencoder",
  dims: 3,
  in_channels: 3,
  out_channels: 3,
  latent_channels: 128,
  encoder_blocks: ENCODER,
  decoder_blocks: DECODER,
  encoder_base_channels: 128,
  decoder_base_channels: 128,
  timestep_conditioning: true,
  scaling_factor: 1,
  norm_layer: "pixel_norm",
  patch_size: 4,
  latent_log_var: "uniform",
  use_quant_conv: false,
  causal_decoder: false,
};

/** As the checkpoint's metadata has it. */
export const OFFICIAL_2B = {
  transformer: TRANSFORMER,
  vae: VAE,
  scheduler: {
    _class_name: "RectifiedFlowScheduler",
    num_train_timesteps: 1000,
    shifting: "SD3",
    base_resolution: null,
    target_shift_terminal: 0.1,
  },
};
