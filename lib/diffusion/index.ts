export { adainFilterLatent, toneMapLatents } from "./adain.js";
export { guided, joinSamples } from "./guidance.js";
export { type HeldFrames, holdFrames } from "./held-frames.js";
export * as official from "./official/index.js";
export {
  addNoise,
  type FlowLossOptions,
  flowLoss,
  flowLossAt,
  MIN_TIME,
  sampleTimes,
  type TimeDistribution,
  type Velocity,
  velocityError,
  velocityTarget,
} from "./rectified-flow.js";
export {
  eulerSample,
  eulerSteps,
  modelTime,
  remainingNoise,
  type Sample,
  type SamplerOptions,
  type SamplerStep,
} from "./sampler.js";
