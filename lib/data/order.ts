/**
 * The order in which training reads its samples: a pure function of (seed, step, rank), with no state to save.
 *
 * Epoch e visits every sample once, in the order of a pseudorandom permutation keyed by (seed, e). The permutation is
 * a Feistel network on pairs of digits (a, b) with a, b <= floor(sqrt(length)), walked until it falls below `length`
 * (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002), so one index costs a few Philox blocks
 * and nothing grows with `length`.
 */

import { object, show } from "../arguments.js";
import { check } from "../errors.js";
import { checkCount, philox4x32, words } from "./philox.js";

const FEISTEL_ROUNDS = 8;
// High half of the counter word that holds the round: keeps these draws apart from every other use of the seed.
const ORDER_STREAM = 0x4f524400;
const TWO_32 = 2 ** 32;

export interface BatchPosition {
  /** From 0 to 2^53 - 1. */
  readonly seed: number;
  /** Training step, from 0. */
  readonly step: number;
  /** Samples in the batch of one rank. */
  readonly batchSize: number;
  /** Samples in the data set. */
  readonly length: number;
  readonly rank?: number;
  readonly worldSize?: number;
}

/**
 * Indices of the samples that `rank` reads at `step`, `batchSize` of them.
 *
 * The ranks of a step read neighbouring stretches of one endless sequence of shuffled epochs: within an epoch no sample
 * comes twice, and the union over ranks depends only on `batchSize * worldSize`. A batch may span the end of an epoch.
 * @throws LtxError `invalid_argument`
 */
export function batchIndices(position: BatchPosition): number[] {
  const { seed, step, batchSize, length, rank = 0, worldSize = 1 } = object("data order", "the position", position);
  checkCount("data order", "seed", seed);
  checkCount("data order", "step", step);
  for (const [name, value] of Object.entries({ batchSize, length, worldSize })) {
    check(
      Number.isSafeInteger(value) && value >= 1,
      "invalid_argument",
      () => `[data order] ${name} must be a positive whole number, got ${show(value)}`,
    );
  }
  check(
    Number.isInteger(rank) && rank >= 0 && rank < worldSize,
    "invalid_argument",
    () => `[data order] rank must be from 0 to worldSize - 1 = ${worldSize - 1}, got ${show(rank)}`,
  );
  const first = (step * worldSize + rank) * batchSize;
  check(
    Number.isSafeInteger(first + batchSize),
    "invalid_argument",
    () => `[data order] step ${step} x batch ${batchSize} x ${worldSize} ranks passes 2^53 samples; lower one of them`,
  );

  return Array.from({ length: batchSize }, (_, i) => {
    const position = first + i;
    return permuted(position % length, length, seed, Math.floor(position / length));
  });
}

/** Where position `index` of epoch `epoch` points: a bijection of [0, length). */
function permuted(index: number, length: number, seed: number, epoch: number): number {
  const side = Math.floor(Math.sqrt(length)) + 1;
  const key = words(seed);
  const [epochLow, epochHigh] = words(epoch);
  const block = new Uint32Array(4);
  let value = index;
  do {
    let left = Math.floor(value / side);
    let right = value % side;
    for (let round = 0; round < FEISTEL_ROUNDS; round++) {
      philox4x32([right, ORDER_STREAM + round, epochLow, epochHigh], key, block);
      const shift = Math.floor((block[0] / TWO_32) * side);
      [left, right] = [right, (left + shift) % side];
    }
    value = left * side + right;
  } while (value >= length);
  return value;
}
