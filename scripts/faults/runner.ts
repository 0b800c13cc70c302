/** What the kinds of faults have in common: which calls fail, and the account of what came of it. */
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { LtxError } from "../../lib/errors.js";
import { device } from "../../lib/tensor/index.js";

export interface Context {
  /** A folder of the kind's own, empty. */
  folder: string;
  /** Failures a kind injects for each thing that it tries; a kind may ask for fewer. */
  count: number;
  /** From 0 to 1, the same for the same seed. */
  random(): number;
  /** Counts an injected failure. */
  injected(): void;
  /** Notes a wrong outcome: what was done, and what came of it. */
  wrong(what: string): void;
  /** A line of progress. */
  say(text: string): void;
}

/** A kind of fault. A file for each; see scripts/faults.ts. */
export interface FaultKind {
  name: string;
  /** One line for the list of kinds. */
  what: string;
  run(context: Context): Promise<void>;
}

/** `count` different numbers from 1 to `total` in ascending order, the first and the last among them. */
export function picks(total: number, count: number, random: () => number): number[] {
  if (total <= count) return Array.from({ length: total }, (_, i) => i + 1);
  const chosen = new Set([1, total]);
  while (chosen.size < count) chosen.add(1 + Math.floor(random() * total));
  return [...chosen].sort((a, b) => a - b);
}

/** Numbers from 0 to 1 by a seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Live bytes on the device when all that was queued has run. */
export async function liveBytes(): Promise<number> {
  await device()
    .synchronize()
    .catch(() => {});
  return device().memory().live;
}

/** Whether an error is one that a user may see: an LtxError with a message. */
export const isTold = (error: unknown): boolean => error instanceof LtxError && error.message.length > 0;

export const shown = (error: unknown): string =>
  error instanceof Error ? `${error.name}: ${error.message.split("\n")[0]}` : String(error);

export const sha256 = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");

/** Files below a folder, by their names relative to it. */
export function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(folder, join(entry.parentPath, entry.name)))
    .sort();
}

export function freshFolder(context: Context, name: string): string {
  const path = join(context.folder, name);
  mkdirSync(path, { recursive: true });
  return path;
}
