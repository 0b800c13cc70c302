/** What is fuzzed: one reader of files, or one set of functions. */
import type { Random } from "./random.js";

/**
 * One case: it returns when the input was accepted, and throws the reader's own error when it was refused. `label` says
 * before a call that may end the process what is called.
 */
export type Case = (random: Random, label: (text: string) => void) => Promise<void>;

export interface Target {
  readonly name: string;
  /** What it reads, for the list of targets. */
  readonly about: string;
  /** Share of the cases: about as many as fit into a millisecond's worth of ten. */
  readonly weight: number;
  /** Resident bytes at which the process counts as out of bounds; default 1 GiB. */
  readonly maxMemory?: number;
  /** Makes the corpus in `folder`, which is empty, and gives the function that runs one case there. */
  setup(folder: string): Promise<Case>;
}

/** A case whose outcome is wrong although nothing was thrown: what was accepted, and what it should have been. */
export class Garbage extends Error {
  override name = "Garbage";
}

/** Throws {@link Garbage} unless `condition` holds. */
export function must(condition: unknown, message: () => string): asserts condition {
  if (!condition) throw new Garbage(message());
}

export const outcomes = ["accepted", "refused", "crash", "hang", "wrong class", "silent", "memory"] as const;
export type Outcome = (typeof outcomes)[number];
export const faults: readonly Outcome[] = ["crash", "hang", "wrong class", "silent", "memory"];

/** What a child says of one case. */
export interface Report {
  readonly index: number;
  readonly outcome: Outcome;
  /** Of a fault: what happened, on one line. */
  readonly what?: string;
  /** Of a fault: the error's stack. */
  readonly stack?: string;
}
