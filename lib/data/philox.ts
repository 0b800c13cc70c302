/**
 * Philox 4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC11).
 * A draw is a pure function of (key, counter), so data can be made in any order, on any machine, without state.
 */

import { show } from "../arguments.js";
import { check } from "../errors.js";

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;
const ROUNDS = 10;
const TWO_32 = 2 ** 32;

/** High 32 bits of the 64-bit product of two unsigned 32-bit integers. */
function mulHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const cross = aHigh * bLow + ((aLow * bLow) >>> 16);
  const cross2 = aLow * bHigh + (cross & 0xffff);
  return (aHigh * bHigh + (cross >>> 16) + (cross2 >>> 16)) >>> 0;
}

/**
 * One Philox 4x32-10 block: four counter words and two key words (taken modulo 2^32) to four uniform 32-bit words.
 * Written into `out`, which may not be longer or shorter than four.
 */
export function philox4x32(
  counter: readonly [number, number, number, number],
  key: readonly [number, number],
  out: Uint32Array = new Uint32Array(4),
): Uint32Array {
  let [c0, c1, c2, c3] = [counter[0] >>> 0, counter[1] >>> 0, counter[2] >>> 0, counter[3] >>> 0];
  let [k0, k1] = [key[0] >>> 0, key[1] >>> 0];
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = mulHigh(M0, c0);
    const low0 = Math.imul(M0, c0);
    const high1 = mulHigh(M1, c2);
    const low1 = Math.imul(M1, c2);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    c0 >>>= 0;
    c2 >>>= 0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
  return out;
}

/** A non-negative safe integer as its low and high 32-bit words. */
export function words(value: number): [low: number, high: number] {
  return [value % TWO_32, Math.floor(value / TWO_32)];
}

/** @throws LtxError `invalid_argument` unless `value` is a whole number from 0 to 2^53 - 1 */
export function checkCount(op: string, name: string, value: number): void {
  check(
    Number.isSafeInteger(value) && value >= 0,
    "invalid_argument",
    () => `[${op}] ${name} must be a whole number from 0 to 2^53 - 1, got ${show(value)}`,
  );
}

/**
 * A stream of draws, wholly determined by (seed, stream, index): `stream` names the purpose, `index` the sample.
 *
 * Key = seed; counter = (block, stream, index low, index high); words are used in the order of the block.
 */
export class PhiloxRandom {
  readonly #key: [number, number];
  readonly #counter: [number, number, number, number];
  readonly #block = new Uint32Array(4);
  #used = 4;

  /**
   * @param seed from 0 to 2^53 - 1
   * @param stream from 0 to 2^32 - 1
   * @param index from 0 to 2^53 - 1
   * @throws LtxError `invalid_argument` for values outside these ranges
   */
  constructor(seed: number, stream = 0, index = 0) {
    checkCount("random", "seed", seed);
    checkCount("random", "index", index);
    check(
      Number.isInteger(stream) && stream >= 0 && stream < TWO_32,
      "invalid_argument",
      () => `[random] stream must be a whole number from 0 to 2^32 - 1, got ${stream}`,
    );
    this.#key = words(seed);
    this.#counter = [0, stream, ...words(index)];
  }

  /** The next 32 random bits, as a number from 0 to 2^32 - 1. */
  uint32(): number {
    if (this.#used === 4) {
      philox4x32(this.#counter, this.#key, this.#block);
      this.#counter[0]++;
      this.#used = 0;
    }
    return this.#block[this.#used++];
  }

  /** A number in [low, high), uniform with 53 random bits; [0, 1) without arguments. */
  uniform(low = 0, high = 1): number {
    const unit = ((this.uint32() >>> 5) * 2 ** 26 + (this.uint32() >>> 6)) / 2 ** 53;
    return low + (high - low) * unit;
  }

  /** A whole number in [0, bound), every value exactly as likely (rejection); `bound` from 1 to 2^32. */
  int(bound: number): number {
    check(
      Number.isInteger(bound) && bound >= 1 && bound <= TWO_32,
      "invalid_argument",
      () => `[random] int needs a bound from 1 to 2^32, got ${bound}`,
    );
    const limit = TWO_32 - (TWO_32 % bound);
    for (;;) {
      const draw = this.uint32();
      if (draw < limit) return draw % bound;
    }
  }
}
