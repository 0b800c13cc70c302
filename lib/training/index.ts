export { type DigitClassifierTraining, keptDigitClassifier, trainDigitClassifier } from "./digit-classifier-trainer.js";
export type { StepEvent, TrainEvent } from "./events.js";
export { FlowTrainer, type FlowTrainerOptions } from "./flow-trainer.js";
export { promptsOf, type TrainRunOptions, train } from "./run.js";
export { RunDirectory } from "./run-directory.js";
export type { RunOptions } from "./trainer.js";
export { VaeTrainer, type VaeTrainerOptions } from "./vae-trainer.js";
