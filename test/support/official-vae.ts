/** The three layouts of released VAEs, small, as their files' metadata have them. */
const shared = {
  _class_name: "CausalVideoAutoencoder",
  dims: 3,
  in_channels: 3,
  out_channels: 3,
  latent_channels: 8,
  norm_layer: "pixel_norm",
  patch_size: 2,
  latent_log_var: "uniform",
  use_quant_conv: false,
  causal_decoder: false,
  scaling_factor: 1,
  encoder_base_channels: 4,
  decoder_base_channels: 4,
};

const encoderOfFirst = [
  ["res_x", 2],
  ["compress_all", 1],
  ["res_x_y", 1],
  ["res_x", 1],
  ["compress_all", 1],
  ["res_x_y", 1],
  ["res_x", 1],
  ["compress_all", 1],
  ["res_x", 1],
  ["res_x", 1],
];

const halving = ["compress_all", { residual: true, multiplier: 2 }];
const layers = (num_layers: number, inject_noise: boolean) => ["res_x", { num_layers, inject_noise }];

export const RELEASES = {
  "0.9.0": { ...shared, blocks: encoderOfFirst },
  "0.9.1": {
    ...shared,
    encoder_blocks: encoderOfFirst,
    decoder_blocks: [layers(1, true), halving, layers(2, true), halving, layers(1, true), halving, layers(1, false)],
    timestep_conditioning: true,
  },
  "0.9.5": {
    ...shared,
    encoder_blocks: [
      ["res_x", { num_layers: 1 }],
      ["compress_space_res", { multiplier: 2 }],
      ["res_x", { num_layers: 2 }],
      ["compress_time_res", { multiplier: 2 }],
      ["res_x", { num_layers: 1 }],
      ["compress_all_res", { multiplier: 2 }],
      ["res_x", { num_layers: 1 }],
      ["compress_all_res", { multiplier: 2 }],
      ["res_x", { num_layers: 1 }],
    ],
    decoder_blocks: [layers(1, false), halving, layers(2, false), halving, layers(1, false), halving, layers(1, false)],
    timestep_conditioning: true,
  },
};
