export { BatchNorm, CausalConv3d, Conv2d, Conv3d, LayerNorm, Linear, TimestepEmbedding } from "./layers.js";
export { Counter, fromCheckpoint, Initializer, Module, Parameter, StateBuffer, toCheckpoint } from "./module.js";
export { replicateEdges } from "./padding.js";
