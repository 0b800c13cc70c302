export type { DataConfig } from "./data.js";
export type {
  ByteEncoderConfig,
  DiffusionConfig,
  SamplingConfig,
  T5Config,
  TextEncoderConfig,
} from "./diffusion.js";
export { innerDim, textWidth, type VaeFactors, vaeFactors } from "./geometry.js";
export {
  loadConfig,
  loadPipelineConfig,
  loadSamplingScheme,
  parseConfig,
  parseLossParams,
  parseTransformerParams,
  parseVaeParams,
} from "./load.js";
export type { PassConfig, PipelineConfig } from "./official/pipeline.js";
export { type OfficialTransformerConfig, parseOfficialTransformer } from "./official/transformer.js";
export { parseOfficialUpsampler, type UpsamplerConfig } from "./official/upsampler.js";
export { upsamplerConfigFromKeys } from "./official/upsampler-keys.js";
export { type OfficialVaeConfig, parseOfficialVae } from "./official/vae.js";
export { vaeConfigFromKeys } from "./official/vae-keys.js";
export type { SamplingSchemeConfig } from "./sampling-scheme.js";
export type { Compat, FlowRunConfig, QuickstartConfig, RunConfig, VaeRunConfig } from "./schema.js";
export { parseStoredConfig } from "./stored.js";
export type { FlowTrainingConfig, TrainingConfig, VaeTrainingConfig } from "./training.js";
export type { TransformerConfig } from "./transformer.js";
export type {
  DecoderBlock,
  DecoderBlockName,
  EncoderBlock,
  EncoderBlockName,
  VaeBlockParams,
  VaeConfig,
  VaeLossConfig,
} from "./vae.js";
