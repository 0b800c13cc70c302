export { CausalConv3d, Conv3d, LayerNorm, Linear, TimestepEmbedding } from "./layers.js";
export { fromCheckpoint, Initializer, Module, Parameter, toCheckpoint } from "./module.js";
