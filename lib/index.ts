/** The public API: everything a program needs to train, sample and look inside. */
export {
  loadConfig,
  loadPipelineConfig,
  loadSamplingScheme,
  parseConfig,
  parseLossParams,
  parseOfficialTransformer,
  parseOfficialUpsampler,
  parseOfficialVae,
  parseStoredConfig,
  parseTransformerParams,
  parseVaeParams,
} from "./config/deferred.js";
export { innerDim, textWidth, vaeFactors } from "./config/geometry.js";
export type * from "./config/index.js";
export { upsamplerConfigFromKeys } from "./config/official/upsampler-keys.js";
export { vaeConfigFromKeys } from "./config/official/vae-keys.js";
export * from "./data/index.js";
export * as diffusion from "./diffusion/index.js";
export { type ErrorCode, LtxError } from "./errors.js";
export * from "./formats/media/index.js";
export { type Lora, openLora, type WeightedLora } from "./formats/official/lora.js";
export { applyLoras, withLoras } from "./formats/official/lora-merge.js";
export {
  type OfficialConfigs,
  type OfficialLayout,
  type OfficialModels,
  openOfficial,
} from "./formats/official/open.js";
export { readSafetensors, writeSafetensors } from "./formats/safetensors.js";
export { openTensorFile, type TensorEntry, type TensorFile } from "./formats/tensor-file.js";
export { EventWriter } from "./formats/tensorboard.js";
export * from "./models/index.js";
export * as nn from "./nn/index.js";
export * as ops from "./ops/index.js";
export * as optim from "./optim/index.js";
export * from "./pipelines/index.js";
export {
  type BackendStatus,
  backends,
  backward,
  checkpoint,
  Device,
  type DType,
  device,
  empty,
  gradients,
  isRecording,
  keep,
  type MemoryGroup,
  narrow,
  noGrad,
  type Shape,
  type StepReport,
  scope,
  sizeOf,
  Tensor,
  type TensorOptions,
  type TypedArray,
  widen,
  withMemoryGroup,
} from "./tensor/index.js";
export * from "./training/index.js";
export { version } from "./version.js";
