export {
  DepthToSpaceUpsample,
  ResnetBlock3D,
  type ResnetOptions,
  SpaceToDepthDownsample,
  UNetMidBlock3D,
} from "./blocks.js";
export {
  CausalVideoAutoencoder,
  type CausalVideoAutoencoderOptions,
  type LatentDecodeOptions,
} from "./causal-video-autoencoder.js";
export { decoderConfig } from "./coders.js";
export { Decoder, type DecoderConfig } from "./decoder.js";
export { Encoder, type EncoderConfig } from "./encoder.js";
export { fitFrames } from "./frames.js";
export { NoisePlanes } from "./noise.js";
export { posteriorLogvars, posteriorMean, posteriorStd } from "./posterior.js";
export { planDecode, type TilePlan } from "./tile-plan.js";
export { type DecodeOptions, VideoVae, type VideoVaeOptions } from "./video-vae.js";
