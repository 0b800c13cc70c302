/** What bench/kernels/run.ts and its workers (worker.ts, ../peers/kernels.py) say to each other, a line of JSON each. */
import type { TimingOptions } from "./timing.js";

/** The first line: where and how to measure. It is answered by what the worker is. Then each line is a CaseSpec. */
export interface LabSetup extends TimingOptions {
  device: string;
}

export interface LabGreeting {
  about: Record<string, string | number>;
}

export interface LabTiming {
  id: string;
  /** Of one call. */
  seconds: number;
  /** What must be moved at least; said by our worker. */
  bytes?: number;
  /** Most memory beyond the operands. */
  extra_bytes?: number;
  /** The fastest way, where a worker knows several, and what became of the others: seconds, or an error. */
  variant?: string;
  others?: Record<string, number | string>;
}

/** After an error the worker is started anew: on a GPU nothing works any more when a kernel has failed. */
export type LabReply = LabTiming | { id: string; error: string };
