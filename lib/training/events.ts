/** What a training run tells its caller, in order. */
export type TrainEvent =
  | { type: "start"; stage: string; step: number; steps: number; parameters: number; device: string }
  | { type: "notice"; stage: string; message: string }
  | { type: "prepare"; stage: string; what: string; done: number; total: number }
  | StepEvent
  | { type: "validate"; stage: string; step: number; metrics: Record<string, number> }
  | { type: "checkpoint"; stage: string; step: number; path: string }
  | { type: "picture"; stage: string; step: number; what: string; path: string }
  | { type: "end"; stage: string; step: number; reason: "finished" | "aborted"; seconds: number };

/** After each update. */
export interface StepEvent {
  type: "step";
  stage: string;
  /** Updates done, counted from 1. */
  step: number;
  steps: number;
  loss: number;
  /** The parts of the loss, before their weights. */
  terms: Record<string, number>;
  learningRate: number;
  /** Global L2 norm of the gradients before clipping. */
  gradientNorm: number;
  stepsPerSecond: number;
  secondsLeft: number;
}
