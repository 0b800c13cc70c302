/** What drawing a video takes in memory, told from the files' headers before anything is loaded. */

import { readFile } from "node:fs/promises";
import { freemem } from "node:os";
import { join } from "node:path";
import { loadPipelineConfig } from "../../config/deferred.js";
import { innerDim, vaeFactors } from "../../config/geometry.js";
import type { PassConfig, PipelineConfig } from "../../config/index.js";
import type { OfficialVaeConfig } from "../../config/official/vae.js";
import { LtxError } from "../../errors.js";
import { paddedSize } from "../../formats/media/sizes.js";
import { openOfficial } from "../../formats/official/open.js";
import type { TensorFile } from "../../formats/tensor-file.js";
import type { T5EncoderConfig } from "../../models/text-encoder/index.js";
import { refuseFile } from "../../models/text-encoder/t5-folder.js";
import { decoderConfig } from "../../models/video-vae/coders.js";
import { DECODE_BUDGET, planDecode, type TilePlan } from "../../models/video-vae/tile-plan.js";
import { precisionDtypes } from "../../nn/precision.js";
import { showBytes } from "../../tensor/byte-size.js";
import { type Device, device as openDevice } from "../../tensor/index.js";
import { openFiles } from "../official/open-files.js";
import { findReleaseConfig, findReleaseFiles, type ReleaseFiles } from "./files.js";

/** The size at which a video is drawn. */
export interface PlannedSize {
  height: number;
  width: number;
  frames: number;
}

/** A part of the work, with the bytes that are on the device while it is done. */
export interface PlannedStage {
  name: string;
  weights: number;
  activations: number;
}

export interface MemoryPlan {
  device: string;
  /** Bytes that the device has free. */
  available: number;
  offload: boolean;
  /** Bytes of each model on the device. */
  weights: Record<string, number>;
  stages: PlannedStage[];
  /** The most that is on the device at a time. */
  peak: number;
  /** The same if models took turns. */
  peakOffloaded: number;
  /** How the video is decoded; null when it can't be. */
  decoding: TilePlan | null;
  /** Bytes in this process beside the device's: the runtime, and frames on their way to the file. */
  host: number;
  /** Bytes that the host has free, of which a CPU's tensors take theirs too. */
  hostAvailable: number;
  /** Whether the device's memory is the host's. */
  shared: boolean;
  /** Tokens of the transformer, of the larger pass. */
  tokens: number;
}

/** What a token has in a step of the transformer at most, in multiples of its width: measured, the same for all widths. */
const TOKEN_VALUES = 20;
/** For what goes in and out, and is narrow. */
const MARGIN = 1.05;
const RUNTIME_BYTES = 250 * 2 ** 20;
const T5_TOKENS = 256;
/** Of a colour of a pixel: as a float, as a byte, and cut out; after two passes also scaled and joined, as floats. */
const PIXEL_BYTES = 4 + 1 + 1;
const RESIZED_BYTES = PIXEL_BYTES + 4 + 4;

export interface PlanOptions {
  /** The YAML file of a release, or the name of one that is shipped. */
  pipelineConfig: string;
  /** Keys that replace the file's. */
  overrides?: Record<string, unknown>;
  /** Of the video as it is asked for. */
  size: { height: number; width: number; numFrames: number };
  device?: string;
  offload?: boolean;
}

/** What drawing a video takes. @throws LtxError as {@link planRelease}, and where a file is missing */
export async function planGeneration(options: PlanOptions): Promise<MemoryPlan> {
  const { pipelineConfig, overrides, size, device, offload } = options;
  const file = await findReleaseConfig(pipelineConfig);
  const config = await loadPipelineConfig(file, overrides);
  const padded = paddedSize({ ...size, frames: size.numFrames });
  return planRelease(config, await findReleaseFiles(config, file), padded, { device: openDevice(device), offload });
}

/**
 * What a release takes to draw a video of `size`.
 * @throws LtxError `checkpoint` and others when a file is damaged or another model's, `unavailable` for a precision that
 *   the device does not have
 */
export async function planRelease(
  config: PipelineConfig,
  files: ReleaseFiles,
  size: PlannedSize,
  { device, offload = false }: { device: Device; offload?: boolean },
): Promise<MemoryPlan> {
  const { weights: stored, computeDtype } = precisionDtypes(config.precision);
  const bytes = { weight: stored === "bf16" ? 2 : 4, value: computeDtype === "bf16" ? 2 : 4 };
  const text = await readTextConfig(files.textEncoder);
  const models = await readModels(files);
  const available = device.available();
  const weights: Record<string, number> = {
    "text encoder": t5Bytes(text, bytes.weight),
    transformer: moduleBytes(models.transformer.tensors, bytes.weight),
    VAE: moduleBytes(models.vae.tensors, bytes.weight),
    ...(models.upsampler && { "latent upscaler": moduleBytes(models.upsampler.tensors, bytes.weight) }),
  };
  const { time, space } = vaeFactors(models.vae.config);
  const passes = passSizes(config, size, space).map(({ pass, height, width }) => ({
    rows: largestBatch(pass),
    tokens: ((size.frames - 1) / time + 1) * (height / space) * (width / space),
    grid: [(size.frames - 1) / time + 1, height / space, width / space] as const,
    pixels: size.frames * height * width,
  }));
  const last = passes[passes.length - 1];
  const always = weights["latent upscaler"] ?? 0;
  const all = Object.values(weights).reduce((a, b) => a + b, 0);
  const resident = (own: number) => (offload ? own + always : all);

  let decoding: TilePlan | null = null;
  const room = DECODE_BUDGET * (available - resident(weights.VAE));
  const shape = [1, ...last.grid, models.vae.config.latent_channels];
  try {
    decoding = planDecode(decoderConfig(models.vae.config), shape, room, bytes.value);
  } catch (error) {
    if (!(error instanceof LtxError && error.code === "out_of_memory")) throw error;
  }
  // What the smallest tiles take is told by the refusal; the whole is what it would take otherwise.
  const whole = planDecode(decoderConfig(models.vae.config), shape, Number.POSITIVE_INFINITY, bytes.value);
  // What comes out is brought to [0, 1] in copies.
  const decode = Math.max((decoding ?? whole).bytes, 3 * 3 * 4 * last.pixels);

  const { transformer } = models;
  const draw = Math.max(
    ...passes.map(({ rows, tokens }) => denoisingBytes(rows, tokens, transformer.width, bytes.value)),
  );
  const activations = [t5Activations(text, bytes.value), draw, decode];
  const own = [weights["text encoder"], weights.transformer, weights.VAE];
  const stages = ["text", "denoising", "decoding"].map((name, i) => ({
    name,
    weights: resident(own[i]),
    activations: activations[i],
  }));
  const most = (inTurns: boolean) =>
    Math.max(...own.map((bytes, i) => (inTurns ? bytes + always : all) + activations[i]));
  return {
    device: device.name,
    available,
    offload,
    weights,
    stages,
    peak: most(offload),
    peakOffloaded: most(true),
    decoding,
    host: RUNTIME_BYTES + (passes.length > 1 ? RESIZED_BYTES : PIXEL_BYTES) * 3 * last.pixels,
    hostAvailable: process.availableMemory?.() ?? freemem(),
    shared: device.name === "cpu" || device.name === "emulator",
    tokens: Math.max(...passes.map(({ tokens }) => tokens)),
  };
}

/** @throws LtxError `out_of_memory` when a plan's memory is more than there is, naming the setting to change */
export function checkFits(plan: MemoryPlan): void {
  const { available, device, offload, decoding, host, hostAvailable, shared } = plan;
  const fits = (peak: number) => peak <= available && (!shared || peak + host <= hostAvailable);
  if (fits(plan.peak) && decoding) return;
  const stage = plan.stages.reduce((a, b) => (a.weights + a.activations >= b.weights + b.activations ? a : b));
  throw new LtxError(
    "out_of_memory",
    `[plan] ${stage.name} needs ${showBytes(stage.weights)} for weights and ${showBytes(stage.activations)} for activations on ` +
      `${device}, where ${showBytes(available)} are free${shared ? ` and ${showBytes(host)} go to frames and Node` : ""}: ${remedy(plan)}`,
  );

  function remedy({ peakOffloaded, weights }: MemoryPlan): string {
    if (!offload && fits(peakOffloaded)) {
      return `let text encoder, transformer and VAE take turns with --offload (then at most ${gib(peakOffloaded)})`;
    }
    const most = Math.max(...Object.values(weights));
    const turns = offload ? "" : "--offload, and ";
    if (most > available) {
      const [name] = Object.entries(weights).find(([, bytes]) => bytes === most) as [string, number];
      return `the ${name} alone takes ${gib(most)}: take a smaller release (--pipeline-config), precision bfloat16, or a device with more memory`;
    }
    return `${turns}lower --num-frames, --height or --width`;
  }
}

export const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(bytes < 2 ** 30 ? 2 : 1)} GiB`;

interface Models {
  transformer: { width: number; tensors: TensorFile["tensors"] };
  vae: { config: OfficialVaeConfig; tensors: TensorFile["tensors"] };
  upsampler?: { tensors: TensorFile["tensors"] };
}

/** What the headers say. */
async function readModels(files: ReleaseFiles): Promise<Models> {
  const { checkpoint, spatialUpscaler } = files;
  const { parseOfficialTransformer } = await import("../../config/official/transformer.js");
  const { parseOfficialVae } = await import("../../config/official/vae.js");
  const { vaeConfigFromKeys } = await import("../../config/official/vae-keys.js");
  const main = await openFiles(files);
  try {
    const transformer = main.module("transformer");
    const vae = main.module("vae");
    const { options } = parseOfficialTransformer(main.configs.transformer, checkpoint);
    const config = parseOfficialVae(main.configs.vae ?? vaeConfigFromKeys(vae.tensors, checkpoint), checkpoint);
    const result: Models = {
      transformer: { width: innerDim(options), tensors: transformer.tensors },
      vae: { config, tensors: vae.tensors },
    };
    if (spatialUpscaler === undefined) return result;
    const upscaler = await openOfficial(spatialUpscaler);
    try {
      return { ...result, upsampler: { tensors: upscaler.module("upsampler").tensors } };
    } finally {
      await upscaler.close();
    }
  } finally {
    await main.close();
  }
}

/** The sizes of the text encoder; whether its files are whole is looked at when it is opened. */
async function readTextConfig(folder: string): Promise<T5EncoderConfig> {
  const { parseT5Config } = await import("../../models/text-encoder/t5-config.js");
  await refuseFile(folder);
  const paths = [join(folder, "text_encoder", "config.json"), join(folder, "config.json")];
  for (const path of paths) {
    const text = await readFile(path, "utf8").catch(() => null);
    if (text === null) continue;
    try {
      return parseT5Config(JSON.parse(text), path);
    } catch (cause) {
      if (cause instanceof LtxError) throw cause;
      throw new LtxError("file_format", `[plan] ${path} is no JSON: ${(cause as Error).message}`, { cause });
    }
  }
  throw new LtxError("checkpoint", `[plan] ${folder} holds no T5: looked for ${paths.join(" and ")}`);
}

/** Weights of products are stored as the precision says, everything else in f32. */
function moduleBytes(tensors: TensorFile["tensors"], weightBytes: number): number {
  let total = 0;
  for (const [name, { shape }] of tensors) {
    const size = shape.reduce((a, b) => a * b, 1);
    total += size * (shape.length >= 2 && name.endsWith(".weight") ? weightBytes : 4);
  }
  return total;
}

function t5Bytes(config: T5EncoderConfig, weightBytes: number): number {
  const { d_model: width, d_kv, d_ff: inner, num_heads: heads, num_layers: layers, vocab_size } = config;
  const block = 4 * heads * d_kv * width + 3 * inner * width;
  return weightBytes * (vocab_size * width + layers * block) + 4 * width * (2 * layers + 1);
}

/** One prompt at a time, at the longest. */
function t5Activations({ d_model: width, d_ff: inner, num_heads: heads }: T5EncoderConfig, valueBytes: number): number {
  return T5_TOKENS * (4 * width * 4 + 3 * inner * valueBytes) + heads * T5_TOKENS ** 2 * 4;
}

/** The sizes at which a release draws, and by which keys. */
function passSizes(config: PipelineConfig, size: PlannedSize, space: number) {
  const { first_pass: first, second_pass: second, downscale_factor: factor = 1 } = config;
  const { height, width } = size;
  if (!first || !second) return [{ pass: config as PassConfig, height, width }];
  const small = (side: number) => Math.max(space, Math.floor(Math.trunc(side * factor) / space) * space);
  const reduced = { height: small(height), width: small(width) };
  return [
    { pass: { ...config, ...first }, ...reduced },
    { pass: { ...config, ...second }, height: 2 * reduced.height, width: 2 * reduced.width },
  ];
}

/** How many answers of the transformer the guidance needs at once. */
function largestBatch(pass: PassConfig): number {
  const list = (value: number | number[] | undefined, otherwise: number) => [value ?? otherwise].flat();
  const [cfg, stg] = [list(pass.guidance_scale, 4.5), list(pass.stg_scale, 1)];
  const { skip_block_list: blocks = [] } = pass;
  const perturbed = Array.isArray(blocks[0])
    ? (blocks as number[][]).map((own) => own.length > 0)
    : [blocks.length > 0];
  const at = <T>(values: readonly T[], i: number): T => values[Math.min(i, values.length - 1)];
  const steps = Array.from({ length: Math.max(cfg.length, stg.length, perturbed.length) }, (_, i) => {
    return 1 + Number(at(cfg, i) > 1) + Number(at(stg, i) > 0 && at(perturbed, i));
  });
  return Math.max(...steps);
}

/** What a step holds at most: the widest moment of a block for each token, and rotary tables that all rows share. */
function denoisingBytes(rows: number, tokens: number, width: number, valueBytes: number): number {
  return MARGIN * rows * tokens * width * TOKEN_VALUES * valueBytes + tokens * width * 2 * 4;
}
