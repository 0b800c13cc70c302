export { BatchNorm, CausalConv3d, Conv2d, Conv3d, LayerNorm, Linear, TimestepEmbedding } from "./layers.js";
export {
  Counter,
  checkpointShape,
  checkState,
  fromCheckpoint,
  Initializer,
  type InitializerOptions,
  Module,
  Parameter,
  StateBuffer,
  type StateEntry,
  toCheckpoint,
} from "./module.js";
export { reflectEdges, replicateEdges, type SpatialPadding } from "./padding.js";
export { type PrecisionDtypes, precisionDtypes } from "./precision.js";
