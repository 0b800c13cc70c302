/** Case kind to the function that computes it: one file a family, one line here for each kind. */
import type { GoldenCase } from "../support/fixture.js";
import { checkpointPt } from "./checkpoint.js";
import { causalConv3d, depthToSpaceUpsample, patchify } from "./convolution.js";
import { discriminator2d, discriminator3d } from "./discriminator.js";
import { timestepEmbedding } from "./embedding.js";
import { flowCurve, flowLossCase, qsample, sampler, times } from "./flow.js";
import { lora } from "./lora.js";
import { lpips } from "./lpips.js";
import { mediaLoad } from "./media.js";
import { officialCheckpoint } from "./official-checkpoint.js";
import { samplingLoop } from "./official-sampling.js";
import { schedulerStep, schedulerTimesteps } from "./official-scheduler.js";
import { officialRope, officialTransformer, patchifier } from "./official-transformer.js";
import { latentUpsampler } from "./official-upsampler.js";
import { decodeOfficial, encodeOfficial, fullOfficial } from "./official-vae.js";
import { adam } from "./optimizer.js";
import { midBlock, resnetBlock } from "./resnet.js";
import { t5Encoder, t5Tokenizer } from "./text.js";
import { vaeCurve } from "./train.js";
import { ropeTurn, transformer } from "./transformer.js";
import { decode, encode, forward, inference } from "./vae.js";
import { vaeLoss } from "./vae-loss.js";
import { dwt3 } from "./wavelet.js";

export const cases: Readonly<Record<string, GoldenCase>> = {
  "o-checkpoint": officialCheckpoint,
  "o-lora": lora,
  "o-media-load": mediaLoad,
  "o-latent-upsampler": latentUpsampler,
  "o-patchifier": patchifier,
  "o-sampling-loop": samplingLoop,
  "o-scheduler-step": schedulerStep,
  "o-scheduler-timesteps": schedulerTimesteps,
  "o-t5-base-hash": t5Encoder,
  "o-t5-small": t5Encoder,
  "o-t5-tokenizer": t5Tokenizer,
  "o-transformer": officialTransformer,
  "o-transformer-rope": officialRope,
  "o-vae-decode": decodeOfficial,
  "o-vae-encode": encodeOfficial,
  "o-vae-full-hash": fullOfficial,
  "x-adam": adam,
  "x-checkpoint-pt": checkpointPt,
  "x-conv3d-causal": causalConv3d,
  "x-depth-to-space": depthToSpaceUpsample,
  "x-discriminator2d": discriminator2d,
  "x-discriminator3d": discriminator3d,
  "x-dwt3": dwt3,
  "x-lpips": lpips,
  "x-patchify": patchify,
  "x-resnet-block": resnetBlock,
  "x-resnet-block-mid": midBlock,
  "x-timestep-embed": timestepEmbedding,
  "x-rectified-flow-loss": flowLossCase,
  "x-rectified-flow-qsample": qsample,
  "x-rectified-flow-times": times,
  "x-rope": ropeTurn,
  "x-sampler": sampler,
  "x-train-flow-curve": flowCurve,
  "x-train-vae-curve": vaeCurve,
  "x-transformer": transformer,
  "x-transformer-full-hash": transformer,
  "x-vae-decode": decode,
  "x-vae-encode": encode,
  "x-vae-forward": forward,
  "x-vae-full-hash": inference,
  "x-vae-loss": vaeLoss,
};

/** The case of a kind or, where it has none of its own, of the kinds that begin as it does: releases, sizes, options. */
export function caseOf(kind: string): GoldenCase | undefined {
  for (let name = kind; name !== ""; name = name.slice(0, Math.max(0, name.lastIndexOf("-")))) {
    if (Object.hasOwn(cases, name)) return cases[name];
  }
  return undefined;
}
