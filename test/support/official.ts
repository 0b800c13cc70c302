/** Tiny checkpoints in the official single-file form, one for each generation of the VAE. */
import { join } from "node:path";
import { type SafetensorsDtype, type SafetensorsTensor, writeSafetensors } from "../../lib/formats/safetensors.js";

type Shapes = Map<string, readonly number[]>;

export type Generation = "0.9.0" | "0.9.1" | "0.9.5";

const DIM = 32;

export const transformerConfig = {
  _class_name: "Transformer3DModel",
  activation_fn: "gelu-approximate",
  attention_bias: true,
  attention_head_dim: 16,
  caption_channels: 24,
  cross_attention_dim: DIM,
  in_channels: 8,
  norm_elementwise_affine: false,
  norm_eps: 1e-6,
  num_attention_heads: 2,
  num_layers: 2,
  out_channels: 8,
  qk_norm: "rms_norm",
  standardization_norm: "rms_norm",
  positional_embedding_type: "rope",
  positional_embedding_theta: 10000,
  positional_embedding_max_pos: [20, 2048, 2048],
  timestep_scale_multiplier: 1000,
};

function layer(shapes: Shapes, name: string, outputs: number, ...inputs: number[]): void {
  shapes.set(`${name}.weight`, [outputs, ...inputs]);
  shapes.set(`${name}.bias`, [outputs]);
}

export function transformerShapes(dim = DIM, layers = 2): Shapes {
  const shapes: Shapes = new Map();
  layer(shapes, "patchify_proj", dim, 8);
  layer(shapes, "adaln_single.emb.timestep_embedder.linear_1", dim, 256);
  layer(shapes, "adaln_single.emb.timestep_embedder.linear_2", dim, dim);
  layer(shapes, "adaln_single.linear", 6 * dim, dim);
  layer(shapes, "caption_projection.linear_1", dim, 24);
  layer(shapes, "caption_projection.linear_2", dim, dim);
  for (let i = 0; i < layers; i++) {
    const block = `transformer_blocks.${i}`;
    shapes.set(`${block}.scale_shift_table`, [6, dim]);
    for (const attention of [`${block}.attn1`, `${block}.attn2`]) {
      for (const norm of ["q_norm", "k_norm"]) shapes.set(`${attention}.${norm}.weight`, [dim]);
      for (const name of ["to_q", "to_k", "to_v", "to_out.0"]) layer(shapes, `${attention}.${name}`, dim, dim);
    }
    layer(shapes, `${block}.ff.net.0.proj`, 4 * dim, dim);
    layer(shapes, `${block}.ff.net.2`, dim, 4 * dim);
  }
  shapes.set("scale_shift_table", [2, dim]);
  layer(shapes, "proj_out", 8, dim);
  return shapes;
}

type Params = Record<string, number | boolean>;
type Block = [string, Params];
const pixelDown: Block[] = ["compress_all", "res_x_y"].map((kind) => [kind, {}]);
const res = (num_layers: number, params: Params = {}): Block => ["res_x", { num_layers, ...params }];
const up: Block = ["compress_all", { residual: true, multiplier: 2 }];

const firstEncoder = [res(2), ...pixelDown, res(1), ...pixelDown, res(1), pixelDown[0], res(1), res(1)];

/** The lists of blocks as the official configurations have them, the decoder's from the pixels' side. */
const blocks: Record<Generation, { encoder_blocks: Block[]; decoder_blocks: Block[] }> = {
  "0.9.0": { encoder_blocks: firstEncoder, decoder_blocks: firstEncoder },
  "0.9.1": {
    encoder_blocks: firstEncoder,
    decoder_blocks: [1, 2, 1].flatMap((n) => [res(n, { inject_noise: true }), up]).concat([res(1)]),
  },
  "0.9.5": {
    encoder_blocks: [
      ...["space", "time", "all", "all"].flatMap((axis): Block[] => [
        res(1),
        [`compress_${axis}_res`, { multiplier: 2 }],
      ]),
      res(2),
    ],
    decoder_blocks: [res(1), up, res(2), up, res(1), up, res(1)],
  },
};

export function vaeConfig(generation: Generation): Record<string, unknown> {
  const { encoder_blocks, decoder_blocks } = blocks[generation];
  const lists = generation === "0.9.0" ? { blocks: encoder_blocks } : { encoder_blocks, decoder_blocks };
  return {
    _class_name: "CausalVideoAutoencoder",
    dims: 3,
    in_channels: 3,
    out_channels: 3,
    latent_channels: 8,
    ...lists,
    timestep_conditioning: generation !== "0.9.0",
    scaling_factor: 1,
    norm_layer: "pixel_norm",
    patch_size: 4,
    latent_log_var: "uniform",
    use_quant_conv: false,
    causal_decoder: false,
    encoder_base_channels: 2,
    decoder_base_channels: 4,
  };
}

function resnet(shapes: Shapes, name: string, inputs: number, outputs: number, params: Params): void {
  layer(shapes, `${name}.conv1.conv`, outputs, inputs, 3, 3, 3);
  layer(shapes, `${name}.conv2.conv`, outputs, outputs, 3, 3, 3);
  if (params.time) shapes.set(`${name}.scale_shift_table`, [4, outputs]);
  if (params.inject_noise) {
    for (const i of [1, 2]) shapes.set(`${name}.per_channel_scale${i}`, [outputs, 1, 1]);
  }
  if (inputs === outputs) return;
  layer(shapes, `${name}.norm3.norm`, inputs);
  shapes.set(`${name}.norm3.norm.weight`, [inputs]);
  layer(shapes, `${name}.conv_shortcut`, outputs, inputs, 1, 1, 1);
}

function embedder(shapes: Shapes, name: string, width: number): void {
  layer(shapes, `${name}.timestep_embedder.linear_1`, width, 256);
  layer(shapes, `${name}.timestep_embedder.linear_2`, width, width);
}

export function vaeShapes(generation: Generation): Shapes {
  const shapes: Shapes = new Map();
  const time = generation !== "0.9.0";
  let width = 2;
  layer(shapes, "encoder.conv_in.conv", width, 48, 3, 3, 3);
  for (const [i, [kind, params]] of blocks[generation].encoder_blocks.entries()) {
    const name = `encoder.down_blocks.${i}`;
    if (kind === "res_x") {
      for (let j = 0; j < Number(params.num_layers); j++) resnet(shapes, `${name}.res_blocks.${j}`, width, width, {});
    } else if (kind === "res_x_y") {
      resnet(shapes, name, width, 2 * width, {});
      width *= 2;
    } else if (kind === "compress_all") layer(shapes, `${name}.conv`, width, width, 3, 3, 3);
    else {
      const volume = { compress_space_res: 4, compress_time_res: 2, compress_all_res: 8 }[kind] ?? 1;
      layer(shapes, `${name}.conv.conv`, Math.ceil((2 * width) / volume), width, 3, 3, 3);
      width *= 2;
    }
  }
  layer(shapes, "encoder.conv_out.conv", 9, width, 3, 3, 3);
  const decoder = blocks[generation].decoder_blocks;
  width = decoder.reduce((n, [kind, { multiplier }]) => n * Number(multiplier ?? (kind === "res_x_y" ? 2 : 1)), 4);
  layer(shapes, "decoder.conv_in.conv", width, 8, 3, 3, 3);
  for (const [i, [kind, params]] of [...decoder].reverse().entries()) {
    const name = `decoder.up_blocks.${i}`;
    if (kind === "res_x") {
      if (time) embedder(shapes, `${name}.time_embedder`, 4 * width);
      const layers = Number(params.num_layers);
      for (let j = 0; j < layers; j++) resnet(shapes, `${name}.res_blocks.${j}`, width, width, { ...params, time });
    } else if (kind === "res_x_y") {
      resnet(shapes, name, width, width / 2, {});
      width /= 2;
    } else {
      const multiplier = Number(params.multiplier ?? 1);
      layer(shapes, `${name}.conv.conv`, (8 * width) / multiplier, width, 3, 3, 3);
      width /= multiplier;
    }
  }
  layer(shapes, "decoder.conv_out.conv", 48, width, 3, 3, 3);
  if (time) {
    shapes.set("decoder.timestep_scale_multiplier", []);
    shapes.set("decoder.last_scale_shift_table", [2, width]);
    embedder(shapes, "decoder.last_time_embedder", 2 * width);
  }
  for (const name of ["channel", "mean-of-means", "mean-of-stds", "mean-of-stds_over_std-of-means", "std-of-means"]) {
    shapes.set(`per_channel_statistics.${name}`, [8]);
  }
  return shapes;
}

/** Tensors whose bytes differ from one name to the next; small numbers in every type. */
export function tensorsOf(shapes: Shapes, dtype: (name: string) => SafetensorsDtype, prefix = ""): SafetensorsTensor[] {
  const width = { F32: 4, BF16: 2, F16: 2, F8_E4M3: 1 } as Record<string, number>;
  return [...shapes].map(([name, shape], i) => {
    const type = dtype(name);
    const size = shape.reduce((n, d) => n * d, 1);
    const data = new Uint8Array(size * width[type]);
    // The highest byte holds sign and most of the exponent: below 0x40, numbers are below 2.
    for (let j = 0; j < data.length; j++) {
      const highest = j % width[type] === width[type] - 1;
      data[j] = (highest ? 0x20 : 0) + ((j * 7 + i * 13) % (highest ? 0x1e : 251));
    }
    return { name: prefix + name, dtype: type, shape, data };
  });
}

const isFp8Weight = (name: string): boolean =>
  /^transformer_blocks\..*\.(attn[12]|ff)\..*\.weight$/.test(name) && !/norm/.test(name);

/** Writes `<folder>/ltxv-<generation>-<kind>.safetensors` and gives its path. */
export async function writeOfficial(
  folder: string,
  generation: Generation,
  kind: "f32" | "bf16" | "fp8" = "bf16",
): Promise<string> {
  const path = join(folder, `ltxv-${generation}-${kind}.safetensors`);
  const plain = kind === "f32" ? "F32" : "BF16";
  const config = {
    transformer: { ...transformerConfig, ...(generation === "0.9.5" ? { causal_temporal_positioning: true } : {}) },
    vae: vaeConfig(generation),
    scheduler: {
      _class_name: "RectifiedFlowScheduler",
      num_train_timesteps: 1000,
      shifting: "SD3",
      base_resolution: null,
      target_shift_terminal: 0.1,
    },
    allowed_inference_steps: [1, 0.725, 0],
  };
  const tensors = [
    ...tensorsOf(
      transformerShapes(),
      (name) => (kind === "fp8" && isFp8Weight(name) ? "F8_E4M3" : plain),
      "model.diffusion_model.",
    ),
    ...tensorsOf(vaeShapes(generation), () => plain, "vae."),
  ];
  await writeSafetensors(path, tensors, { config: JSON.stringify(config) });
  return path;
}

/** Writes a LoRA of the given rank for the attention of a transformer. */
export async function writeLora(
  path: string,
  { prefix = "diffusion_model.", rank = 4, dim = DIM, layers = 2, metadata = {} } = {},
): Promise<string> {
  const shapes: Shapes = new Map();
  for (let i = 0; i < layers; i++) {
    for (const name of ["attn1.to_q", "attn2.to_v"]) {
      shapes.set(`transformer_blocks.${i}.${name}.lora_A.weight`, [rank, dim]);
      shapes.set(`transformer_blocks.${i}.${name}.lora_B.weight`, [dim, rank]);
    }
  }
  await writeSafetensors(
    path,
    tensorsOf(shapes, () => "F32", prefix),
    metadata,
  );
  return path;
}
