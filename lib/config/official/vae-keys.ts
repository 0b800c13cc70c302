/** A VAE's configuration told from its tensors alone, for files without metadata. */
import { LtxError } from "../../errors.js";

type Shape = readonly number[];
type Block = [name: string, params: Record<string, unknown>];
/** Shapes by the official keys, without a prefix. */
type Shapes = ReadonlyMap<string, { readonly shape: Shape }>;

const RESAMPLING: Record<number, string> = { 2: "compress_time", 4: "compress_space", 8: "compress_all" };

/**
 * The official configuration of a released kind of VAE (see `parseOfficialVae`): widths, layers and blocks as the shapes
 * have them; what leaves no trace in shapes (padding, causality, the order of a stride) as all releases have it.
 * @param source stands in the messages
 * @throws LtxError `checkpoint` when the tensors are not those of such a VAE
 */
export function vaeConfigFromKeys(tensors: Shapes, source: string): Record<string, unknown> {
  const shape = (key: string): Shape => {
    const found = tensors.get(key)?.shape;
    if (found) return found;
    throw new LtxError(
      "checkpoint",
      `[official] ${source} has no VAE that can be told from its keys: ${key} is missing`,
    );
  };
  const has = (key: string) => tensors.has(key);
  const [decoderWidth, latents] = shape("decoder.conv_in.conv.weight");
  const [encoderWidth, patches] = shape("encoder.conv_in.conv.weight");
  const [moments] = shape("encoder.conv_out.conv.weight");
  const [pixels, lastWidth] = shape("decoder.conv_out.conv.weight");
  const colours = 3;
  const patch = Math.sqrt(patches / colours);
  if (!Number.isInteger(patch) || pixels !== patches) {
    const found = `${patches} channels into the encoder and ${pixels} out of the decoder`;
    throw new LtxError("checkpoint", `[official] ${source}: ${found} are not square patches of three colours`);
  }
  const encoder = blocksIn(
    tensors,
    source,
    "encoder.down_blocks",
    encoderWidth,
    shape("encoder.conv_out.conv.weight")[1],
  );
  const decoder = blocksIn(tensors, source, "decoder.up_blocks", decoderWidth, lastWidth);
  const logvar: Record<number, string> = { [latents]: "none", [latents + 1]: "uniform", [2 * latents]: "per_channel" };
  return {
    _class_name: "CausalVideoAutoencoder",
    dims: 3,
    in_channels: colours,
    out_channels: colours,
    latent_channels: latents,
    encoder_blocks: encoder.map(downBlock),
    decoder_blocks: decoder.map(upBlock).reverse(), // they are listed from the pixels on
    encoder_base_channels: encoderWidth,
    decoder_base_channels: lastWidth,
    norm_layer: has("decoder.conv_norm_out.norm.weight")
      ? "layer_norm"
      : has("decoder.conv_norm_out.weight")
        ? "group_norm"
        : "pixel_norm",
    patch_size: patch,
    latent_log_var: logvar[moments],
    use_quant_conv: has("quant_conv.weight"),
    normalize_latent_channels: has("latent_norm_out.running_mean"),
    causal_decoder: false,
    timestep_conditioning: has("decoder.last_time_embedder.timestep_embedder.linear_1.weight"),
  };
}

/** What the tensors say of one block. */
interface Found {
  /** Of a run of residual blocks, how many they are. */
  layers: number;
  injectsNoise: boolean;
  /** Outputs of its one convolution, and whether that is wrapped once more; 0 where there is none. */
  convolution: number;
  folds: boolean;
  inputs: number;
  outputs: number;
}

function blocksIn(tensors: Shapes, source: string, prefix: string, first: number, last: number): Found[] {
  const names = [...tensors.keys()].filter((key) => key.startsWith(`${prefix}.`));
  const numbers = new Set(names.map((key) => key.slice(prefix.length + 1).split(".")[0]));
  const count = numbers.size;
  const gap = Array.from({ length: count }, (_, i) => i).find((i) => !numbers.has(String(i)));
  if (gap !== undefined) {
    const found = [...numbers].slice(0, 5).join(", ");
    throw new LtxError(
      "checkpoint",
      `[official] ${source}: ${prefix} lacks block ${gap} of ${count} (it has ${found})`,
    );
  }
  const of = (i: number, key: string) => tensors.get(`${prefix}.${i}.${key}`)?.shape;
  // What a block takes shows in each kind's first convolution.
  const inputsOf = (i: number) =>
    i === count
      ? last
      : (of(i, "res_blocks.0.conv1.conv.weight") ??
          of(i, "conv1.conv.weight") ??
          of(i, "conv.conv.weight") ??
          of(i, "conv.weight") ?? [0, first])[1];
  return Array.from({ length: count }, (_, i) => {
    const layers = new Set(
      names.flatMap((key) => new RegExp(`^${prefix}\\.${i}\\.res_blocks\\.(\\d+)\\.`).exec(key)?.[1] ?? []),
    ).size;
    const folding = of(i, "conv.conv.weight");
    return {
      layers,
      injectsNoise: Boolean(of(i, "res_blocks.0.per_channel_scale1") ?? of(i, "per_channel_scale1")),
      convolution: (folding ?? of(i, "conv.weight"))?.[0] ?? 0,
      folds: folding !== undefined,
      inputs: inputsOf(i),
      outputs: inputsOf(i + 1),
    };
  });
}

function downBlock({ layers, convolution, folds, inputs, outputs }: Found): Block {
  if (layers > 0) return ["res_x", { num_layers: layers }];
  if (convolution === 0) return ["res_x_y", { multiplier: outputs / inputs }];
  // A strided convolution's stride doesn't show; the releases that have any stride along all axes.
  if (!folds) return outputs === inputs ? ["compress_all", {}] : ["compress_all_x_y", { multiplier: outputs / inputs }];
  return [`${RESAMPLING[outputs / convolution]}_res`, { multiplier: outputs / inputs }];
}

function upBlock({ layers, injectsNoise, convolution, inputs, outputs }: Found): Block {
  const inject_noise = injectsNoise;
  if (layers > 0) return ["res_x", { num_layers: layers, inject_noise }];
  const multiplier = inputs / outputs;
  if (convolution === 0) return ["res_x_y", { multiplier, inject_noise }];
  // The releases whose upsampling narrows add its rearranged input; the first one does neither.
  const name = RESAMPLING[convolution / outputs];
  return name === "compress_all" ? [name, { multiplier, residual: multiplier > 1 }] : [name, {}];
}
