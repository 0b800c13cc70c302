export { Attention, type AttentionConfig } from "./attention.js";
export { type AdaptiveNorm, adaRowCount, type BlockConfig, FeedForward, TransformerBlock } from "./block.js";
export {
  absolutePositions,
  type Grid,
  gridPositions,
  type RopeOptions,
  type RopeSpacing,
  type RopeTables,
  ropeFrequencies,
  ropeTables,
} from "./rope.js";
export { LtxVideoTransformer, type TransformerOptions } from "./transformer.js";
