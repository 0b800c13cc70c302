export { loadDigits, type Split } from "./digits.js";
export { withFrames } from "./frames.js";
export { MovingMnist, type MovingMnistClip, type MovingMnistOptions, promptFor } from "./moving-mnist.js";
export { type DataOptions, loadClips, openData } from "./open.js";
export { batchIndices } from "./order.js";
export type { Clip, DataSource } from "./source.js";
