export { findModelFile } from "./checkpoint-path.js";
export { type Conversion, type ConvertOptions, convert } from "./convert.js";
export { type DigitScore, type EvaluateOptions, type Evaluation, evaluate } from "./evaluate.js";
export { type ExtendOptions, extendVideo, generateLong } from "./extend.js";
export { gradientMagnitude, psnr, ssim } from "./metrics.js";
export * from "./official/index.js";
export { type OpenedCheckpoint, openCheckpoint } from "./open-checkpoint.js";
export { drawPrompts } from "./prompts.js";
export {
  type Reconstruction,
  type ReconstructionOptions,
  reconstruct,
  reconstructHeldOut,
  sideBySide,
} from "./reconstruct.js";
export { type Generated, generateRelease, type ReleaseOptions } from "./release/generate.js";
export { checkFits, type MemoryPlan, type PlanOptions, planGeneration } from "./release/plan.js";
export type { ReleaseRequest } from "./release/request.js";
export { planAutoregressive, planScheme, type Windows } from "./schemes.js";
export { type GenerateOptions, type LoadOptions, TextToVideo } from "./text-to-video.js";
export { type SaveOptions, Video } from "./video.js";
