import { vaeFactors } from "../config/geometry.js";
import type { RunConfig } from "../config/index.js";
import { type DataSource, loadClips, openData } from "../data/index.js";
import { LtxError, stopIfAborted } from "../errors.js";
import { fitFrames, VideoVae } from "../models/video-vae/index.js";
import { affine } from "../ops/index.js";
import { type Device, noGrad, device as openDevice, scope, Tensor } from "../tensor/index.js";
import { Purpose } from "../training/purposes.js";
import { gradientMagnitude, psnr, ssim } from "./metrics.js";
import { type OpenedCheckpoint, openCheckpoint, vaeTensors } from "./open-checkpoint.js";
import { Video } from "./video.js";

/**
 * x (B,F,H,W,C) in [0,1] through the posterior's mean and back, with clean latents. Where F frames would not come back,
 * the video goes through repeated to the next number that does, and is cut to F again.
 */
export function reconstruct(vae: VideoVae, x: Tensor): Tensor {
  const frames = x.shape[1];
  const { time } = vaeFactors(vae.config);
  const moments = vae.encodeMoments(fitFrames(x, Math.ceil((frames - 1) / time) * time + 1));
  const clean = vae.config.timestep_conditioning ? new Float32Array(x.shape[0]) : null;
  const y = vae.decode(vae.mode(moments), clean && Tensor.from(clean, [x.shape[0]], { device: x.device }), {
    noise: { seed: 0, step: 0, purpose: Purpose.sampleLayerNoise },
  });
  return fitFrames(y, frames);
}

export interface ReconstructionOptions {
  clips?: number;
  seed?: number;
  /** Configuration or YAML file, for checkpoints that carry none; else used in place of the checkpoint's own. */
  config?: RunConfig | string;
  device?: string;
  signal?: AbortSignal;
}

/** Held-out clips and what the VAE makes of them. */
export interface Reconstruction {
  originals: Video;
  reconstructions: Video;
  /** Over all pixels, in dB. */
  psnr: number;
  /** Structural similarity, the mean over frames. */
  ssim: number;
  /** The mean gradient's magnitude as a part of that of the originals: below 1 where the VAE blurs. */
  sharpness: number;
}

/** Each clip and, right of it, its reconstruction; an even number of columns keeps the pairs together. */
export function sideBySide({
  originals,
  reconstructions,
}: Pick<Reconstruction, "originals" | "reconstructions">): Video {
  const { frames, height, width, channels, prompts } = originals;
  const clips = originals.clips.flatMap((clip, i) => [clip, reconstructions.clips[i]]);
  const names = prompts.flatMap((prompt) => [prompt, `${prompt} (VAE)`]);
  return new Video(clips, frames, height, width, channels, names);
}

/**
 * The VAE of an opened checkpoint: of a VAE run, or inside a diffusion checkpoint. The caller disposes of it.
 * @throws LtxError `checkpoint`
 */
export function loadVae(checkpoint: OpenedCheckpoint, device: Device): VideoVae {
  const { file, config } = checkpoint;
  const vaeConfig = config.kind === "vae" ? config.vae : config.latent_encoder;
  if (!vaeConfig) throw new LtxError("checkpoint", `[reconstruct] ${file} holds no VAE`);
  const computeDtype = config.training.mixed_precision === "bf16" ? "bf16" : "f32";
  const vae = new VideoVae(vaeConfig, { device, computeDtype }).requiresGrad(false);
  try {
    vae.loadStateDict(vaeTensors(checkpoint));
    return vae;
  } catch (error) {
    vae.dispose();
    throw error;
  }
}

/** Clips that go through the VAE at once. */
const BATCH = 8;

/**
 * Sends the first clips of a data set, at most `wanted`, through a VAE and compares.
 * @throws LtxError `aborted` when the signal stops it
 */
export async function reconstructClips(
  vae: VideoVae,
  data: DataSource,
  wanted: number,
  signal?: AbortSignal,
): Promise<Reconstruction> {
  const { frames, height, width, channels } = data;
  const count = Math.min(wanted, data.length);
  const size = frames * height * width * channels;
  const originals = new Float32Array(count * size);
  const decoded = new Float32Array(count * size);
  const prompts: string[] = [];
  for (let from = 0; from < count; from += BATCH) {
    stopIfAborted(signal, "[reconstruct] stopped by the caller");
    const indices = Array.from({ length: Math.min(BATCH, count - from) }, (_, i) => from + i);
    const bytes = await loadClips(data, indices);
    const result = scope(() =>
      noGrad(() => {
        const shape = [indices.length, frames, height, width, channels];
        return reconstruct(vae, affine(Tensor.from(bytes, shape, { device: vae.device }), 1 / 255));
      }),
    );
    for (const [i, value] of bytes.entries()) originals[from * size + i] = value / 255;
    const values = await result.read().finally(() => result.dispose());
    decoded.set(values as Float32Array, from * size);
    for (const i of indices) prompts.push((await data.clip(i)).prompt ?? "");
  }
  const shape = [count, frames, height, width, channels];
  let error = 0;
  for (let i = 0; i < decoded.length; i++) error += (decoded[i] - originals[i]) ** 2;
  return {
    originals: Video.fromFloats(originals, shape, prompts),
    reconstructions: Video.fromFloats(decoded, shape, prompts),
    psnr: psnr(error, decoded.length),
    ssim: ssim(originals, decoded, shape),
    sharpness: gradientMagnitude(decoded, shape) / gradientMagnitude(originals, shape),
  };
}

/**
 * Sends clips of held-out digits through a trained VAE, of a VAE run or inside a flow checkpoint.
 * @throws LtxError `checkpoint`
 */
export async function reconstructHeldOut(path: string, options: ReconstructionOptions = {}): Promise<Reconstruction> {
  const checkpoint = await openCheckpoint(path, "vae", options.config);
  const { data: dataConfig } = checkpoint.config;
  const vae = loadVae(checkpoint, openDevice(options.device));
  try {
    const count = options.clips ?? 8;
    const data = await openData({ ...dataConfig, seed: options.seed ?? dataConfig.seed }, "test", count);
    return await reconstructClips(vae, data, count, options.signal);
  } finally {
    vae.dispose();
  }
}
