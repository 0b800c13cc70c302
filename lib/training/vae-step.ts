/** The gradients of one micro-batch of a VAE's training: the generator's turn, then the discriminator's. */
import type { VaeLoss } from "../losses/index.js";
import type { DecodeOptions, VideoVae } from "../models/video-vae/index.js";
import { affine, detach, mixRows } from "../ops/index.js";
import { noGrad, type Shape, scope, type Tensor } from "../tensor/index.js";
import { backwardShare, type LossTerms } from "./trainer.js";

/** What is drawn for one pass through the VAE. */
export interface VaeDraws {
  /** Noise of the posterior's sample (B,f,h,w,C); null for a VAE without variances. */
  posterior: Tensor | null;
  /** Amplitude (B) of the noise on the decoder's latents, and that noise; null for none. */
  amplitude: Tensor | null;
  latent: Tensor | null;
  /** Of decoders that inject noise. */
  layers: DecodeOptions["noise"];
}

export interface VaeStepOptions {
  /** Micro-batches that share the update; 1 unless given. */
  share?: number;
  /**
   * The reference's step: the decoder's output is cut to [0, 1], and the discriminator judges a second reconstruction,
   * from draws of its own.
   */
  reference?: boolean;
}

/**
 * Adds the gradients of one micro-batch: of the loss to encoder and decoder, of the discriminator's own loss to the
 * discriminator.
 * @param x the video (B,F,H,W,C) f32 in [0,1]
 * @param step counted from 0
 * @param draw the draws of a pass through the VAE with latents of a shape: the generator's is 0, the reference's second
 * one 1
 */
export function vaeStep(
  { vae, loss }: { vae: VideoVae; loss: VaeLoss },
  x: Tensor,
  step: number,
  draw: (pass: number, latentShape: Shape) => VaeDraws,
  { share = 1, reference = false }: VaeStepOptions = {},
): LossTerms {
  const reconstruct = (pass: number) => {
    const moments = vae.encodeMoments(x);
    const shape = [...moments.shape.slice(0, -1), vae.config.latent_channels];
    const { posterior, amplitude, latent, layers: noise } = draw(pass, shape);
    const sample = vae.sample(moments, posterior);
    const z = amplitude && latent ? mixRows(sample, latent, null, amplitude) : sample;
    // The reference cuts the decoder's output to [0, 1] in training too, where no gradient passes: a decoder that
    // overshoots everywhere (all black, early on) never comes back.
    const timestep = vae.config.timestep_conditioning ? amplitude : null;
    const video = reference
      ? vae.decode(z, timestep, { noise })
      : affine(vae.decodeUnclamped(z, timestep, { noise }), 0.5, 0.5);
    return { video, moments: vae.stochastic ? moments : null };
  };
  return scope(() => {
    const first = scope(() => {
      const { video, moments } = reconstruct(0);
      const terms = loss.forward(x, video, moments, step, vae.decoder.conv_out.conv.weight);
      return { ...terms, video: detach(video) };
    });
    backwardShare(first.loss, share);
    const judged = reference && loss.discriminator ? noGrad(() => scope(() => reconstruct(1).video)) : first.video;
    const second = scope(() => loss.discriminate(x, judged, step));
    if (second) backwardShare(second.loss, share);
    return { loss: first.loss, terms: { ...first.terms, ...second?.terms } };
  });
}
