export { DigitClassifier, type DigitClassifierOptions, likeliestDigits } from "./digit-classifier.js";
export { Discriminator, type DiscriminatorOptions } from "./discriminator.js";
export { createFlowModel, type FlowModel, loadFlowState } from "./flow-model.js";
export { LatentUpsampler } from "./latent-upsampler.js";
export { Lpips, type LpipsOptions, type LpipsState } from "./lpips.js";
export * from "./text-encoder/index.js";
export * from "./transformer/index.js";
export * from "./video-vae/index.js";
