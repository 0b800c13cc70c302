export { Attention, type AttentionConfig } from "./attention.js";
export { type AdaptiveNorm, adaRowCount, type BlockConfig, FeedForward, TransformerBlock } from "./block.js";
export { type CoordinateOptions, latentCoordinates } from "./coordinates.js";
export {
  absolutePositions,
  type Grid,
  gridPositions,
  type Positions,
  prepareRope,
  type RopeOptions,
  type RopeSpacing,
  type RopeTables,
  ropeFrequencies,
  ropeTables,
} from "./rope.js";
export { SKIP_MODES, type SkipLayers, type SkipMode, skipMask } from "./skip-layers.js";
export { LtxVideoTransformer, type TokenOptions, type TransformerOptions } from "./transformer.js";
