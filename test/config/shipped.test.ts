import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { FlowRunConfig, QuickstartConfig, VaeRunConfig } from "../../lib/config/index.js";
import { loadConfig, parseConfig, vaeFactors } from "../../lib/config/index.js";

const CONFIGS = join(__dirname, "..", "..", "configs");
const load = (name: string) => loadConfig(join(CONFIGS, name));

const ENCODER = [
  ["res_x", 4],
  ["compress_all", 1],
  ["res_x_y", 1],
  ["res_x", 3],
  ["compress_all", 1],
  ["res_x_y", 1],
  ["res_x", 3],
  ["compress_all", 1],
  ["res_x", 3],
  ["res_x", 4],
];
const DECODER = [
  ["res_x", 4],
  ["res_x", 3],
  ["compress_all", 1],
  ["res_x", 3],
  ["res_x_y", 1],
  ["compress_all", 1],
  ["res_x", 3],
  ["res_x_y", 1],
  ["compress_all", 1],
  ["res_x", 4],
];
const VAE = {
  dims: 3,
  in_channels: 1,
  out_channels: 1,
  input_number_of_frames: 25,
  latent_channels: 128,
  encoder_blocks: ENCODER,
  decoder_blocks: DECODER,
  base_channels: 128,
  norm_num_groups: 32,
  scaling_factor: 1,
  patch_size: 4,
  norm_layer: "pixel_norm",
  latent_log_var: "uniform",
  use_quant_conv: false,
  causal_decoder: false,
  timestep_conditioning: true,
  spatial_padding_mode: "zeros",
};
const DATA = {
  source: "moving-mnist",
  num_channels: 1,
  num_classes: 10,
  frame_processing: "clip",
  digits: 2,
  digit_size: 28,
  seed: 0,
  size: 10000,
  min_speed: 2,
  max_speed: 5,
};
const TRAINING = {
  dataset: "video/moving_mnist",
  gradient_accumulation_steps: 1,
  mixed_precision: "bf16",
  gradient_checkpointing: false,
  lr_schedule: { name: "constant", warmup_steps: 0, final_fraction: 0 },
  max_grad_norm: 1,
  ema_decay: 0,
  seed: 0,
  log_every: 10,
  save_every: 1000,
  validate_every: 1000,
  sample_every: 1000,
};
const FLOW_TRAINING = {
  ...TRAINING,
  batch_size: 128,
  learning_rate: 2e-4,
  optimizer: { name: "adam", betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0 },
  prompt_dropout: 0.2,
  joint_image_video_training_step: -1,
};
const TRANSFORMER = {
  is_learned_sigma: false,
  is_class_conditional: false,
  num_layers: 12,
  activation_fn: "gelu-approximate",
  attention_bias: true,
  attention_head_dim: 64,
  num_attention_heads: 12,
  attention_type: "default",
  cross_attention_dim: 768,
  caption_channels: 768,
  double_self_attention: false,
  dropout: 0,
  norm_elementwise_affine: false,
  norm_eps: 1e-6,
  norm_num_groups: 32,
  num_embeds_ada_norm: 1000,
  num_vector_embeds: null,
  only_cross_attention: false,
  project_to_2d_pos: true,
  upcast_attention: false,
  use_linear_projection: false,
  qk_norm: "rms_norm",
  standardization_norm: "rms_norm",
  positional_embedding_type: "rope",
  positional_embedding_theta: 10000,
  positional_embedding_max_pos: [20, 2048, 2048],
  timestep_scale_multiplier: 1000,
  adaptive_norm: "single_scale_shift",
};
const SAMPLING = {
  channels: 1,
  sampler: "euler",
  steps: 1000,
  initial_timestep: 1,
  guidance: 1,
  num_samples: 8,
  prompts: [],
  seed: 0,
  decode_timestep: 0.001,
};

describe("shipped configurations", () => {
  it("autoencoder.yaml", async () => {
    expect(await load("moving_mnist/autoencoder.yaml")).toEqual({
      kind: "vae",
      compat: "native",
      vae: VAE,
      loss: {
        disc_start: 10000,
        logvar_init: 0,
        kl_weight: 1e-6,
        pixelloss_weight: 1,
        disc_num_layers: 3,
        disc_in_channels: 1,
        adversarial_weight: 0.5,
        adversarial_start: 10000,
        perceptual_weight: 0.5,
        use_actnorm: false,
        disc_conditional: false,
        disc_loss: "hinge",
        use_3d: true,
        use_reconstruction_gan: true,
        wavelet_loss_weight: 0.5,
        rec_loss: "l2",
        learned_logvar: false,
        use_nll: true,
        kl_start: 0,
        perceptual_start: 0,
        wavelet_start: 0,
        use_adaptive_adversarial_weight: true,
        rec_reduction: "mean",
      },
      data: { ...DATA, frames: 25, height: 64, width: 64 },
      training: {
        ...TRAINING,
        batch_size: 8,
        steps: 10000,
        learning_rate: 4.5e-6,
        optimizer: { name: "adam", betas: [0.5, 0.9], eps: 1e-8, weight_decay: 0 },
        decoder_noise: { max: 0.2, start: 0, warmup_steps: 0 },
      },
    });
  });

  it("ltx_video.yaml", async () => {
    expect(await load("moving_mnist/ltx_video.yaml")).toEqual({
      kind: "flow",
      compat: "native",
      transformer: {
        ...TRANSFORMER,
        input_spatial_size: 2,
        input_channels: 128,
        input_number_of_frames: 4,
        out_channels: 128,
      },
      diffusion: { parameterization: "rectified_flow", time_distribution: "logit-normal", num_timesteps: 1000 },
      text_encoder: { kind: "t5", version: "google/t5-v1_1-base", max_length: 77 },
      data: { ...DATA, frames: 25, height: 64, width: 64 },
      training: { ...FLOW_TRAINING, steps: 100000 },
      sampling: { ...SAMPLING, frames: 25, height: 64, width: 64 },
      latent_encoder: VAE,
    });
  });

  it("ltx_video_pixel_space.yaml", async () => {
    const config = (await load("moving_mnist/ltx_video_pixel_space.yaml")) as FlowRunConfig;
    expect(config.latent_encoder).toBeNull();
    expect(config.transformer).toEqual({
      ...TRANSFORMER,
      input_spatial_size: 32,
      input_channels: 1,
      input_number_of_frames: 16,
      out_channels: 1,
    });
    expect(config.data).toEqual({ ...DATA, frames: 16, height: 32, width: 32 });
    expect(config.training).toEqual({ ...FLOW_TRAINING, steps: 30000 });
    expect(config.sampling).toEqual({ ...SAMPLING, frames: 16, height: 32, width: 32 });
  });

  it("quickstart.yaml", async () => {
    const { kind, vae, flow } = (await load("quickstart.yaml")) as QuickstartConfig;
    expect(kind).toBe("quickstart");
    expect(vae.data).toEqual(flow.data);
    expect(vae.data).toMatchObject({ frames: 9, height: 32, width: 32, digits: 1 });
    expect(flow.latent_encoder).toEqual(vae.vae);
    expect(vae.vae).toMatchObject({ patch_size: 4, base_channels: 32, latent_channels: 16 });
    expect(vaeFactors(vae.vae).latentShape(9, 32, 32)).toEqual([5, 4, 4]);
    expect(vae.loss).toMatchObject({ rec_loss: "l2", use_nll: false, rec_reduction: "sum", adversarial_weight: 0 });
    expect(flow.transformer).toMatchObject({ num_layers: 4, num_attention_heads: 4, attention_head_dim: 48 });
    expect(flow.text_encoder.kind).toBe("byte");
    expect(flow.sampling).toMatchObject({ steps: 40, guidance: 4, initial_timestep: 1 });
    expect(flow.training).toMatchObject({ prompt_dropout: 0.2, ema_decay: 0.999 });
  });

  it("has the whole example for two digits on a small machine", async () => {
    const { vae, flow } = (await load("moving_mnist/two_digits.yaml")) as QuickstartConfig;
    expect(vae.data).toMatchObject({ frames: 17, height: 32, width: 32, digits: 2, digit_size: 16 });
    expect(vaeFactors(vae.vae).latentShape(17, 32, 32)).toEqual([5, 4, 4]);
    expect(flow.sampling.prompts[0]).toBe("three and 7");
    const small = (await load("moving_mnist/small_autoencoder.yaml")) as VaeRunConfig;
    expect(small.vae).toEqual(vae.vae);
    expect(small.data).toEqual(vae.data);
    expect(small.loss).toMatchObject({ adversarial_weight: 0.2, wavelet_loss_weight: 0.05, perceptual_weight: 0.1 });
    expect(small.training.discriminator_learning_rate).toBe(1e-4);
  });

  it("reads Python's spellings of true, false and None", () => {
    for (const name of ["moving_mnist/autoencoder.yaml", "moving_mnist/ltx_video.yaml"]) {
      const text = readFileSync(join(CONFIGS, name), "utf8");
      const python = text.replaceAll(": true", ": True").replaceAll(": false", ": False");
      expect(python).not.toBe(text);
      expect(parseConfig(python, name)).toEqual(parseConfig(text, name));
    }
  });

  it("fits clips of another length to what the VAE expects", () => {
    const text = readFileSync(join(CONFIGS, "moving_mnist/autoencoder.yaml"), "utf8");
    const shorter = text.replace(/^data:\n(.*\n)*? {2}input_number_of_frames: 25/m, (data) => data.replace("25", "10"));
    const config = parseConfig(shorter, "10.yaml") as VaeRunConfig;
    expect(config.vae.input_number_of_frames).toBe(25);
    expect(config.data).toMatchObject({ frames: 25, source_frames: 10 });
    expect((parseConfig(text, "25.yaml") as VaeRunConfig).data).not.toHaveProperty("source_frames");
  });

  it("takes this project's keys beside the reference's", () => {
    const text = readFileSync(join(CONFIGS, "moving_mnist/autoencoder.yaml"), "utf8");
    const more = `compat: reference\n${text}  learning_rate: 1e-4\n  steps: 7\n  optimizer: { name: adamw, weight_decay: 0.1 }\n`;
    const config = parseConfig(more, "more.yaml") as VaeRunConfig;
    expect(config.compat).toBe("reference");
    expect(config.training).toMatchObject({ learning_rate: 1e-4, steps: 7 });
    expect(config.training.optimizer).toEqual({ name: "adamw", betas: [0.5, 0.9], eps: 1e-8, weight_decay: 0.1 });
  });
});
