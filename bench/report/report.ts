/** What report.json holds. */
import type { Ceilings } from "../floor.js";
import type { KernelLine } from "../kernels/lines.js";
import type { StepLine } from "../run.js";

export const PART_NAMES = ["tests", "ceilings", "kernels", "steps"] as const;
export type PartName = (typeof PART_NAMES)[number];

export interface Part {
  state: "done" | "failed" | "cut off" | "running" | "left out";
  /** Why it is not done. */
  reason: string | null;
  seconds: number;
}

export interface TestFailure {
  file: string;
  name: string;
  error: string;
}

export interface TestSummary {
  passed: number;
  failed: number;
  skipped: number;
  failures: TestFailure[];
  /** Files that were begun and not finished. */
  unfinished: string[];
}

export interface Report {
  date: string;
  device: string;
  minutes: number;
  machine: string;
  gpu: { name: string; driver: string; totalBytes: number } | null;
  /** ltx-native's version, and the commit where it is known. */
  version: string;
  commit: string | null;
  /** What our device and PyTorch say of themselves. */
  about: { ours: unknown; peer: unknown };
  parts: Partial<Record<PartName, Part>>;
  tests: TestSummary | null;
  ceilings: Ceilings | null;
  kernels: KernelLine[];
  steps: StepLine[];
}
