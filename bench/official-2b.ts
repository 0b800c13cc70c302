/**
 * A checkpoint of LTX-Video 2B 0.9.5 in all its sizes with random weights, in the official single-file format and bf16;
 * and what loading it and one step of its transformer take. See bench/README.md.
 */
import { Command } from "commander";
import { parseOfficialTransformer } from "../lib/config/official/transformer.js";
import { PhiloxRandom } from "../lib/data/philox.js";
import { loadWeights } from "../lib/formats/load-weights.js";
import { readSafetensors, type SafetensorsTensor, writeSafetensors } from "../lib/formats/safetensors.js";
import { LtxVideoTransformer } from "../lib/models/transformer/index.js";
import { Initializer, precisionDtypes } from "../lib/nn/index.js";
import { normal } from "../lib/ops/index.js";
import { device, narrow, noGrad, scope, Tensor } from "../lib/tensor/index.js";
import { describeLoad } from "./machine.js";
import { median } from "./measure.js";
import { deviceName, positive } from "./options.js";

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

/** How many pixels of its input become one, by kind of block. */
const FACTORS: Record<string, number> = {
  compress_space_res: 4,
  compress_time_res: 2,
  compress_all_res: 8,
  compress_all: 8,
};

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

const CONFIG = {
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

const PREFIX = "model.diffusion_model.";

type Named = [name: string, shape: readonly number[]];

function* linear(name: string, inputs: number, outputs: number): Generator<Named> {
  yield [`${name}.weight`, [outputs, inputs]];
  yield [`${name}.bias`, [outputs]];
}

function* conv(name: string, inputs: number, outputs: number): Generator<Named> {
  yield [`${name}.conv.weight`, [outputs, inputs, 3, 3, 3]];
  yield [`${name}.conv.bias`, [outputs]];
}

/** Of a time embedding: 256 sinusoids to a width, and on. */
function* embedder(name: string, width: number): Generator<Named> {
  yield* linear(`${name}.timestep_embedder.linear_1`, 256, width);
  yield* linear(`${name}.timestep_embedder.linear_2`, width, width);
}

function* transformerShapes(): Generator<Named> {
  const { num_attention_heads: heads, attention_head_dim, in_channels, out_channels, caption_channels } = TRANSFORMER;
  const dim = heads * attention_head_dim;
  yield ["scale_shift_table", [2, dim]];
  yield* linear("patchify_proj", in_channels, dim);
  yield* embedder("adaln_single.emb", dim);
  yield* linear("adaln_single.linear", dim, 6 * dim);
  yield* linear("caption_projection.linear_1", caption_channels, dim);
  yield* linear("caption_projection.linear_2", dim, dim);
  for (let i = 0; i < TRANSFORMER.num_layers; i++) {
    const block = `transformer_blocks.${i}`;
    yield [`${block}.scale_shift_table`, [6, dim]];
    for (const attention of ["attn1", "attn2"]) {
      for (const norm of ["q_norm", "k_norm"]) yield [`${block}.${attention}.${norm}.weight`, [dim]];
      for (const part of ["to_q", "to_k", "to_v", "to_out.0"]) yield* linear(`${block}.${attention}.${part}`, dim, dim);
    }
    yield* linear(`${block}.ff.net.0.proj`, dim, 4 * dim);
    yield* linear(`${block}.ff.net.2`, 4 * dim, dim);
  }
  yield* linear("proj_out", dim, out_channels);
}

function* vaeShapes(): Generator<Named> {
  const { latent_channels: latents, patch_size: patch } = VAE;
  const pixels = 3 * patch ** 2;
  let width = VAE.encoder_base_channels;
  yield* conv("encoder.conv_in", pixels, width);
  for (const [i, [kind, { num_layers = 0, multiplier = 1 }]] of ENCODER.entries()) {
    const block = `encoder.down_blocks.${i}`;
    for (let j = 0; j < num_layers; j++) {
      for (const part of ["conv1", "conv2"]) yield* conv(`${block}.res_blocks.${j}.${part}`, width, width);
    }
    if (kind === "res_x") continue;
    yield* conv(`${block}.conv`, width, (width * multiplier) / FACTORS[kind]);
    width *= multiplier;
  }
  yield* conv("encoder.conv_out", width, latents + 1);

  width = DECODER.reduce((sum, [, { multiplier = 1 }]) => sum * multiplier, VAE.decoder_base_channels);
  yield* conv("decoder.conv_in", latents, width);
  for (const [i, [kind, { num_layers = 0, multiplier = 1 }]] of [...DECODER].reverse().entries()) {
    const block = `decoder.up_blocks.${i}`;
    if (kind === "res_x") yield* embedder(`${block}.time_embedder`, 4 * width);
    for (let j = 0; j < num_layers; j++) {
      yield [`${block}.res_blocks.${j}.scale_shift_table`, [4, width]];
      for (const part of ["conv1", "conv2"]) yield* conv(`${block}.res_blocks.${j}.${part}`, width, width);
    }
    if (kind === "res_x") continue;
    yield* conv(`${block}.conv`, width, (FACTORS[kind] * width) / multiplier);
    width /= multiplier;
  }
  yield* conv("decoder.conv_out", width, pixels);
  yield ["decoder.timestep_scale_multiplier", []];
  yield* embedder("decoder.last_time_embedder", 2 * width);
  yield ["decoder.last_scale_shift_table", [2, width]];
  for (const name of ["std-of-means", "mean-of-means"]) yield [`per_channel_statistics.${name}`, [latents]];
}

/** Random values are drawn once for each power of two and serve all tensors, each from another place on. */
const POOL = (1 << 20) - 3;
const pools = new Map<number, Uint16Array>();

function pool(exponent: number): Uint16Array {
  let values = pools.get(exponent);
  if (!values) {
    const random = new PhiloxRandom(exponent + 100);
    values = narrow(Float32Array.from({ length: POOL }, () => random.uniform(-1, 1) * 2 ** exponent));
    pools.set(exponent, values);
  }
  return values;
}

/** bf16, such that what goes through the layers keeps its size. */
function values(name: string, shape: readonly number[], seed: number): Uint8Array {
  const result = new Uint16Array(shape.reduce((a, b) => a * b, 1));
  const constant = /timestep_scale_multiplier$/.test(name) ? 1000 : /norm\.weight$|std-of-means$/.test(name) ? 1 : 0;
  if (shape.length < 2) return new Uint8Array(result.fill(narrow(Float32Array.of(constant))[0]).buffer);
  const inputs = /table$/.test(name) ? shape[1] : shape.slice(1).reduce((a, b) => a * b);
  const source = pool(Math.round(Math.log2(Math.sqrt(3 / inputs))));
  for (let done = 0, at = (7919 * seed) % POOL; done < result.length; at = 0) {
    const part = source.subarray(at, at + Math.min(POOL - at, result.length - done));
    result.set(part, done);
    done += part.length;
  }
  return new Uint8Array(result.buffer);
}

async function write(path: string): Promise<void> {
  const named = [
    ...[...transformerShapes()].map(([name, shape]): Named => [PREFIX + name, shape]),
    ...[...vaeShapes()].map(([name, shape]): Named => [`vae.${name}`, shape]),
  ];
  const tensors = named.map(
    ([name, shape], i): SafetensorsTensor => ({
      name,
      dtype: "BF16",
      shape,
      data: async () => values(name, shape, i),
    }),
  );
  await writeSafetensors(path, tensors, { config: JSON.stringify(CONFIG) });
}

interface StepOptions {
  device: string;
  steps: number;
}

/** Loads the transformer and runs it on latents of 768 x 512 x 25 frames; a line of JSON. */
async function step(path: string, { device: name, steps }: StepOptions): Promise<void> {
  console.error(describeLoad());
  const peak = () => process.resourceUsage().maxRSS * 1024;
  const target = device(name);
  await target.synchronize();
  const node_bytes = peak();
  const file = await readSafetensors(path);
  const { options } = parseOfficialTransformer(JSON.parse(file.metadata.config).transformer, path);
  const { weights, computeDtype } = precisionDtypes("bfloat16");
  const begun = performance.now();
  const init = new Initializer(target, 0, { weights, values: false });
  const model = new LtxVideoTransformer(options, init, { computeDtype }).requiresGrad(false).train(false);
  const rename = (key: string) => PREFIX + key;
  await loadWeights(model, file, { rename, ignore: (tensor) => !tensor.startsWith(PREFIX) });
  const load_s = (performance.now() - begun) / 1000;
  const model_bytes = target.memory().live;
  const load_peak_bytes = peak();
  const random = (shape: number[], purpose: number) => normal(shape, { seed: 1, step: 0, purpose }, { device: target });
  const [latents, text] = [random([1, 4, 16, 24, options.input_channels], 1), random([1, 256, 4096], 2)];
  const mask = Tensor.from(new Float32Array(256).fill(1), [1, 256], { device: target });
  const t = Tensor.from([0.5], [1], { device: target });
  const times: number[] = [];
  let finite = true;
  for (let i = 0; i < steps; i++) {
    const start = performance.now();
    const velocity = scope(() => noGrad(() => model.forward(latents, t, text, mask)));
    finite = ((await velocity.read()) as Float32Array).every(Number.isFinite);
    times.push((performance.now() - start) / 1000);
    velocity.dispose();
  }
  const line = {
    kind: "official-2b",
    device: target.name,
    tokens: 4 * 16 * 24,
    parameters: model.parameterCount,
    load_s,
    step_s: median(times),
    first_step_s: times[0],
    node_bytes,
    model_bytes,
    load_peak_bytes,
    peak_bytes: peak(),
    device_peak_bytes: target.memory().peak,
    finite,
  };
  console.log(JSON.stringify(line));
  await file.close();
}

const program = new Command("official-2b").description("a full-size random checkpoint of LTX-Video 2B 0.9.5");
program.command("write").argument("<file>").description("write it: 6.3 GB").action(write);
program
  .command("step")
  .argument("<file>")
  .description("load its transformer and time one denoising step at 768x512, 25 frames")
  .option("--device <name>", "where to run", deviceName, "cpu")
  .option("--steps <n>", "how often", positive, 1)
  .action(step);
program.parseAsync().catch((error: Error) => {
  console.error(error.message);
  process.exitCode = 1;
});
