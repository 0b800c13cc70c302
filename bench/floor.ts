/** The least time that a step could take on a machine, by rates that were measured on it. */
import type { BenchDtype } from "./protocol.js";

/** The most that was reached on this machine, by us or by the peer: bytes and floating-point operations a second. */
export interface Ceilings {
  bandwidth: number | null;
  flops: Partial<Record<BenchDtype, number>>;
}

/** Forward, the gradient of inputs and that of weights. */
export const TRAINING_PASSES = 3;

/** Adam's one pass over f32 values: the gradient is read; parameter and both moments are read and written. */
const ADAM_BYTES = 4 * (1 + 2 * 3);

/** What a step moves at least: Adam's pass, or in inference each weight once, in the dtype of the activations. */
export const leastBytes = (parameters: number, trains: boolean, dtype: BenchDtype): number =>
  parameters * (trains ? ADAM_BYTES : dtype === "bf16" ? 2 : 4);

/**
 * Seconds for `flops` at the highest rate of the dtype, and then `bytes` at the highest bandwidth; null where such a rate
 * was not measured.
 */
export function floorSeconds(flops: number, bytes: number, dtype: BenchDtype, ceilings: Ceilings): number | null {
  const rate = ceilings.flops[dtype];
  return rate && ceilings.bandwidth ? flops / rate + bytes / ceilings.bandwidth : null;
}
