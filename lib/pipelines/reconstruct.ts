import type { RunConfig } from "../config/index.js";
import { loadClips, openData } from "../data/index.js";
import { LtxError } from "../errors.js";
import { VideoVae } from "../models/video-vae/index.js";
import { affine } from "../ops/index.js";
import { noGrad, device as openDevice, scope, Tensor } from "../tensor/index.js";
import { psnr } from "./metrics.js";
import { openCheckpoint, vaeTensors } from "./open-checkpoint.js";
import { Video } from "./video.js";

/** x (B,F,H,W,C) in [0,1] through the posterior's mean and back, with clean latents. */
export function reconstruct(vae: VideoVae, x: Tensor): Tensor {
  const moments = vae.encodeMoments(x);
  const clean = vae.config.timestep_conditioning ? new Float32Array(x.shape[0]) : null;
  return vae.decode(vae.mode(moments), clean && Tensor.from(clean, [x.shape[0]], { device: x.device }));
}

export interface ReconstructionOptions {
  clips?: number;
  seed?: number;
  /** Configuration or YAML file, for checkpoints that carry none; else used in place of the checkpoint's own. */
  config?: RunConfig | string;
  device?: string;
}

/** Held-out clips and what the VAE makes of them. */
export interface Reconstruction {
  originals: Video;
  reconstructions: Video;
  /** Over all pixels, in dB. */
  psnr: number;
}

/** Each clip and, right of it, its reconstruction; an even number of columns keeps the pairs together. */
export function sideBySide({ originals, reconstructions }: Reconstruction): Video {
  const { frames, height, width, channels, prompts } = originals;
  const clips = originals.clips.flatMap((clip, i) => [clip, reconstructions.clips[i]]);
  const names = prompts.flatMap((prompt) => [prompt, `${prompt} (VAE)`]);
  return new Video(clips, frames, height, width, channels, names);
}

/**
 * Sends clips of held-out digits through a trained VAE, of a VAE run or inside a flow checkpoint.
 * @throws LtxError `checkpoint`
 */
export async function reconstructHeldOut(path: string, options: ReconstructionOptions = {}): Promise<Reconstruction> {
  const checkpoint = await openCheckpoint(path, "vae", options.config);
  const { file, config } = checkpoint;
  const vaeConfig = config.kind === "vae" ? config.vae : config.latent_encoder;
  if (!vaeConfig) throw new LtxError("checkpoint", `[reconstruct] ${file} holds no VAE`);
  const device = openDevice(options.device);
  const computeDtype = config.training.mixed_precision === "bf16" ? "bf16" : "f32";
  const vae = new VideoVae(vaeConfig, { device, computeDtype }).requiresGrad(false);
  try {
    vae.loadStateDict(vaeTensors(checkpoint));
    const count = options.clips ?? 8;
    const data = openData({ ...config.data, seed: options.seed ?? config.data.seed }, "test", count);
    const clips = await loadClips(
      data,
      Array.from({ length: count }, (_, i) => i),
    );
    const shape = [count, data.frames, data.height, data.width, data.channels];
    const decoded = scope(() => noGrad(() => reconstruct(vae, affine(Tensor.from(clips, shape, { device }), 1 / 255))));
    const values = (await decoded.read()) as Float32Array;
    decoded.dispose();
    const prompts = await Promise.all(Array.from({ length: count }, async (_, i) => (await data.clip(i)).prompt ?? ""));
    let error = 0;
    for (let i = 0; i < values.length; i++) error += (values[i] - clips[i] / 255) ** 2;
    return {
      originals: Video.fromFloats(
        Float32Array.from(clips, (v) => v / 255),
        shape,
        prompts,
      ),
      reconstructions: Video.fromFloats(values, shape, prompts),
      psnr: psnr(error, values.length),
    };
  } finally {
    vae.dispose();
  }
}
