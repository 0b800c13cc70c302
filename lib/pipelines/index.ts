export { findModelFile } from "./checkpoint-path.js";
export { psnr } from "./metrics.js";
export {
  type Reconstruction,
  type ReconstructionOptions,
  reconstruct,
  reconstructHeldOut,
  sideBySide,
} from "./reconstruct.js";
export { type GenerateOptions, TextToVideo } from "./text-to-video.js";
export { type SaveOptions, Video } from "./video.js";
