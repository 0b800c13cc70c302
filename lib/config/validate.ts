import type { DataConfig } from "./data.js";
import type { SamplingConfig, TextEncoderConfig } from "./diffusion.js";
import { framesFault, innerDim, sizeFault, strides, textWidth, vaeFactors } from "./geometry.js";
import { formatPath, type Problem } from "./problems.js";
import type { TransformerConfig } from "./transformer.js";
import type { VaeBlockParams, VaeConfig, VaeLossConfig } from "./vae.js";

type Path = readonly PropertyKey[];

/** The faults of a VAE by itself; `path` is where its parameters stand in the file. */
export function checkVae(vae: VaeConfig, path: Path): Problem[] {
  const problems: Problem[] = [];
  const encoder = strides(vae.encoder_blocks);
  const decoder = strides(vae.decoder_blocks);
  for (const [axis, meaning] of [
    ["time", "frames"],
    ["space", "height and width"],
  ] as const) {
    if (encoder[axis] === decoder[axis]) continue;
    const message =
      `the encoder divides ${meaning} by ${encoder[axis]}, the decoder multiplies by ${decoder[axis]}: ` +
      `they need as many compress_${axis} and compress_all blocks`;
    problems.push({ path: [...path, "decoder_blocks"], message });
  }
  problems.push(...checkCoders(vae, path));
  const { time } = vaeFactors(vae);
  const frames = vae.input_number_of_frames;
  const fault = frames === undefined ? undefined : framesFault("frames", frames, time);
  if (fault) problems.push({ path: [...path, "input_number_of_frames"], message: fault });
  return problems;
}

/** The faults of the encoder and of the decoder, each by itself. */
export function checkCoders(vae: VaeConfig, path: Path): Problem[] {
  const problems = [...checkEncoderWidths(vae, path), ...checkDecoderWidths(vae, path)];
  if (!vae.use_quant_conv || (vae.latent_log_var !== "uniform" && vae.latent_log_var !== "constant")) return problems;
  const message = `found true, latent_log_var "${vae.latent_log_var}" has one variance for all channels and needs false`;
  return [{ path: [...path, "use_quant_conv"], message }, ...problems];
}

const paramOf = (params: number | VaeBlockParams): VaeBlockParams => (typeof params === "number" ? {} : params);

function groupFault(vae: VaeConfig, channels: number): string | undefined {
  if (vae.norm_layer !== "group_norm" || channels % vae.norm_num_groups === 0) return undefined;
  return `group_norm cannot split ${channels} channels into norm_num_groups ${vae.norm_num_groups}`;
}

function checkEncoderWidths(vae: VaeConfig, path: Path): Problem[] {
  let channels = vae.encoder_base_channels ?? vae.base_channels;
  for (const [i, [name, params]] of vae.encoder_blocks.entries()) {
    const multiplier = paramOf(params).multiplier ?? (/^compress_(time|space|all)$/.test(name) ? 1 : 2);
    const volume = strideVolume(name);
    // The res variants fold their stride into channels and average the input's to the output's.
    const wide = channels * multiplier;
    if (name.endsWith("_res") && (wide % volume !== 0 || (channels * volume) % wide !== 0)) {
      const message = `${name} cannot make ${wide} channels of ${channels} with ${volume} positions each`;
      return [{ path: [...path, "encoder_blocks", i], message }];
    }
    if (name !== "res_x") channels = wide;
    const fault = name.startsWith("res_x") ? groupFault(vae, channels) : undefined;
    if (fault) return [{ path: [...path, "encoder_blocks", i], message: fault }];
  }
  const fault = groupFault(vae, channels);
  return fault ? [{ path: [...path, "norm_num_groups"], message: fault }] : [];
}

function strideVolume(name: string): number {
  const { time, space } = strides([[name, 1]]);
  return time * space * space;
}

const decoderMultiplier = (name: string, params: number | VaeBlockParams): number =>
  paramOf(params).multiplier ?? (name === "res_x_y" ? 2 : 1);

function checkDecoderWidths(vae: VaeConfig, path: Path): Problem[] {
  const base = vae.decoder_base_channels ?? vae.base_channels;
  let channels = vae.decoder_blocks.reduce((width, [name, params]) => width * decoderMultiplier(name, params), base);
  for (const [i, [name, params]] of vae.decoder_blocks.entries()) {
    const at = [...path, "decoder_blocks", i];
    const multiplier = decoderMultiplier(name, params);
    const volume = strideVolume(name);
    if (name.startsWith("compress_") && (volume * channels) % multiplier !== 0) {
      const message = `${name} cannot divide its ${volume * channels} channels by multiplier ${multiplier}`;
      return [{ path: at, message }];
    }
    // The residual path repeats the rearranged input a whole number of times.
    if (paramOf(params).residual && (volume % multiplier !== 0 || channels % volume !== 0)) {
      const message =
        `${name} with residual needs a multiplier that divides ${volume} and channels that ${volume} divides; ` +
        `found multiplier ${multiplier} and ${channels} channels`;
      return [{ path: at, message }];
    }
    const headDim = paramOf(params).attention_head_dim;
    if (name === "attn_res_x" && headDim === undefined) {
      return [{ path: at, message: "attn_res_x needs attention_head_dim, the width of its heads" }];
    }
    if (headDim !== undefined && channels % headDim !== 0) {
      return [{ path: at, message: `attention_head_dim ${headDim} does not divide the ${channels} channels` }];
    }
    const fault = name.includes("res_x") ? groupFault(vae, channels) : undefined;
    if (fault) return [{ path: at, message: fault }];
    channels /= multiplier;
  }
  const fault = groupFault(vae, channels);
  return fault ? [{ path: [...path, "norm_num_groups"], message: fault }] : [];
}

interface Clip {
  frames: number;
  height: number;
  width: number;
}

/** Where the keys of a clip's size stand in the file. */
interface ClipPaths {
  frames: Path;
  height: Path;
  width: Path;
}

/** Whether `vae` can take clips of this size. */
export function checkClip(vae: VaeConfig, clip: Clip, paths: ClipPaths): Problem[] {
  const { time, space } = vaeFactors(vae);
  const faults: [Path, string | undefined][] = [
    [paths.frames, framesFault("frames", clip.frames, time)],
    [paths.height, sizeFault("height", clip.height, space)],
  ];
  // One key may stand for both sides.
  if (formatPath(paths.width) !== formatPath(paths.height)) {
    faults.push([paths.width, sizeFault("width", clip.width, space)]);
  }
  return faults.flatMap(([path, message]) => (message ? [{ path, message }] : []));
}

/** The data as `vae` takes them: clips of another length than it expects are cut or repeated to that. */
export function fitData(data: DataConfig, vae: VaeConfig): DataConfig {
  const { input_number_of_frames: frames = data.frames } = vae;
  const impossible = framesFault("frames", frames, vaeFactors(vae).time) !== undefined;
  return frames === data.frames || impossible ? data : { ...data, frames, source_frames: data.frames };
}

/** Whether the data have the channels that the VAE takes and gives. */
export function checkVaeData(vae: VaeConfig, data: DataConfig, vaePath: Path, dataPath: Path): Problem[] {
  const problems: Problem[] = [];
  for (const key of ["in_channels", "out_channels"] as const) {
    if (vae[key] === data.num_channels) continue;
    const message = `found ${vae[key]}, but ${formatPath([...dataPath, "num_channels"])} is ${data.num_channels}`;
    problems.push({ path: [...vaePath, key], message });
  }
  return problems;
}

/** The faults of a VAE loss, given the video it compares. The reference has a discriminator whatever its weight. */
export function checkLoss(
  loss: VaeLossConfig,
  data: DataConfig,
  path: Path,
  compat: "native" | "reference",
): Problem[] {
  const problems: Problem[] = [];
  if (loss.wavelet_loss_weight > 0 && !loss.use_3d) {
    problems.push({ path: [...path, "wavelet_loss_weight"], message: "above 0 needs use_3d: true" });
  }
  if (loss.perceptual_weight > 0 && loss.perceptual_checkpoint !== undefined) {
    const fits = [1, 3].includes(data.num_channels) && Math.min(data.height, data.width) >= 16;
    const found = `${data.height}x${data.width} with ${data.num_channels} channels`;
    const message = `above 0 needs videos of 16x16 or more with 1 or 3 channels, found ${found}; use 0`;
    if (!fits) problems.push({ path: [...path, "perceptual_weight"], message });
  }
  if (loss.adversarial_weight === 0 && compat === "native") return problems;
  if (loss.disc_in_channels !== data.num_channels) {
    const message = `found ${loss.disc_in_channels}, but the video has ${data.num_channels} channels`;
    problems.push({ path: [...path, "disc_in_channels"], message });
  }
  // Each of the n strided convolutions halves, the two after them take one position each.
  const axes = loss.use_3d ? [data.frames, data.height, data.width] : [data.height, data.width];
  const smallest = Math.min(...axes);
  const needed = 3 * 2 ** loss.disc_num_layers;
  if (smallest < needed) {
    const most = Math.floor(Math.log2(smallest / 3));
    const remedy = most >= 1 ? `nearest ${most}, or` : "use";
    const what = loss.use_3d ? "frames, height and width" : "height and width";
    const message =
      `found ${loss.disc_num_layers}, which needs ${what} of ${needed} or more (here ${axes.join("x")}); ` +
      `${remedy} ${compat === "native" ? "" : "compat: native with "}adversarial_weight: 0`;
    problems.push({ path: [...path, "disc_num_layers"], message });
  }
  return problems;
}

/** What reaches the transformer: channels, and frames, height and width of its tokens. */
export interface TokenGrid {
  readonly channels: number;
  readonly frames: number;
  readonly height: number;
  readonly width: number;
}

/** The faults of a transformer that is to read `grid` (of `source`, as the messages call it) and the prompts' text. */
export function checkTransformer(
  transformer: TransformerConfig,
  text: TextEncoderConfig,
  grid: TokenGrid | undefined,
  source: string,
  path: Path,
): Problem[] {
  const problems: Problem[] = [];
  const expect = (key: keyof TransformerConfig, value: unknown, wanted: unknown, why: string) => {
    // Sizes may be lists: their texts are equal when they are.
    if (String(value) !== String(wanted)) {
      problems.push({ path: [...path, key], message: `found ${value}, ${why} ${wanted}` });
    }
  };
  const width = innerDim(transformer);
  const { input_spatial_size: size } = transformer;
  expect(
    "cross_attention_dim",
    transformer.cross_attention_dim,
    width,
    "needs num_attention_heads x attention_head_dim =",
  );
  if (grid) {
    const side = Array.isArray(size) ? [grid.height, grid.width] : grid.height;
    expect("input_channels", transformer.input_channels, grid.channels, `the channels of ${source} are`);
    expect("out_channels", transformer.out_channels, grid.channels, `the channels of ${source} are`);
    expect("input_number_of_frames", transformer.input_number_of_frames, grid.frames, `the frames of ${source} are`);
    if (!Array.isArray(size) && grid.height !== grid.width) {
      const message = `found ${size}, ${source} are not square: write [${grid.height}, ${grid.width}]`;
      problems.push({ path: [...path, "input_spatial_size"], message });
    } else expect("input_spatial_size", size, side, `height and width of ${source} are`);
  }
  const captions = textWidth(text);
  if (transformer.caption_channels === null) {
    if (captions !== undefined)
      expect("cross_attention_dim", width, captions, "without caption_channels the width must be the text encoder's");
  } else if (captions !== undefined) {
    expect("caption_channels", transformer.caption_channels, captions, "the text encoder's width is");
  }
  if (transformer.positional_embedding_type === "absolute" && width % 4 !== 0) {
    problems.push({
      path: [...path, "attention_head_dim"],
      message: `absolute positions need a width divisible by 4, found ${width}`,
    });
  }
  return problems;
}

/** The faults of a text encoder by itself. */
export function checkTextEncoder(text: TextEncoderConfig, path: Path): Problem[] {
  if (text.kind !== "byte" || text.width % text.heads === 0) return [];
  return [{ path: [...path, "width"], message: `found ${text.width}, needs a multiple of heads ${text.heads}` }];
}

/** The faults of the sampling section by itself. */
export function checkSampling(sampling: SamplingConfig, path: Path): Problem[] {
  if (sampling.initial_timestep < sampling.steps) return [];
  const message = `found ${sampling.initial_timestep}, needs less than the ${sampling.steps} steps, nearest ${sampling.steps - 1}`;
  return [{ path: [...path, "initial_timestep"], message }];
}
