export type { ConditioningItem } from "./check-media.js";
export type { PromptOptions } from "./check-prompts.js";
export type { DenoisingStep } from "./denoise.js";
export type { LoraChoice, ModelFacts, PipelineLoadOptions } from "./models.js";
export { LtxMultiScalePipeline, type MultiScaleLoadOptions, type MultiScaleOptions } from "./multi-scale.js";
export { type Draw, type NoiseSource, SeededNoise } from "./noise.js";
export type { OutputType } from "./output.js";
export { type LtxGenerateOptions, LtxVideoPipeline } from "./pipeline.js";
export type { LtxVideoOptions, PassOptions } from "./request.js";
