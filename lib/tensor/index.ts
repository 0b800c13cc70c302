export { backward, gradients, isRecording, noGrad, record, wantsGrad } from "./autograd.js";
export { checkpoint } from "./checkpoint.js";
export { Device, type StepReport } from "./device.js";
export { type BackendStatus, backends, device } from "./open-device.js";
export { checkFloats, checkLists, checkOperands, checkSingles, sameDevice } from "./operands.js";
export { owning } from "./owning.js";
export { keep, scope } from "./scope.js";
export {
  alias,
  checkTensor,
  type DType,
  empty,
  launch,
  type MemoryGroup,
  narrow,
  type Operand,
  type Shape,
  sizeOf,
  Tensor,
  type TensorOptions,
  type TypedArray,
  widen,
  withMemoryGroup,
} from "./tensor.js";
