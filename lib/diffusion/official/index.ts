export {
  type ConditionedState,
  Conditioning,
  type EncodedMedia,
  stirGiven,
  type TokenGroup,
  videoLatents,
} from "./conditioning.js";
export {
  branchCount,
  type Guidance,
  type GuidanceOptions,
  guide,
  planGuidance,
  usesNegative,
  usesPerturbed,
} from "./guidance.js";
export { entryAt, inferenceTimesteps, nextTime, type ScheduleOptions, takesPart } from "./schedule.js";
export { flowStep, mixTokens, noiseTokens, type StepOptions } from "./step.js";
