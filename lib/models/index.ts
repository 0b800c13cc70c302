export { createFlowModel, type FlowModel, loadFlowState } from "./flow-model.js";
export * from "./text-encoder/index.js";
export * from "./transformer/index.js";
export * from "./video-vae/index.js";
