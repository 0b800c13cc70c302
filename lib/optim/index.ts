export { Adam, type AdamOptions } from "./adam.js";
export { Ema } from "./ema.js";
export { type ScheduleOptions, scheduleFactor } from "./schedule.js";
