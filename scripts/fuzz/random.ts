/** Random choices that are a pure function of (seed, target, case), so that any case can be repeated alone. */
import { createHash } from "node:crypto";

/** Whole numbers at which readers tend to break. */
const EDGES = [
  0,
  1,
  2,
  3,
  4,
  7,
  8,
  15,
  16,
  31,
  32,
  63,
  64,
  100,
  127,
  128,
  129,
  254,
  255,
  256,
  257,
  1000,
  1024,
  4095,
  4096,
  32767,
  32768,
  65535,
  65536,
  65537,
  1e6,
  2 ** 24,
  2 ** 24 + 1,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  2 ** 32 + 1,
  2 ** 40,
  2 ** 52,
  2 ** 53 - 1,
  2 ** 53,
  2 ** 62,
  2 ** 63,
  2 ** 64,
];

export class Random {
  private a: number;
  private b: number;
  private c: number;
  private d: number;

  constructor(seed: number, target: string, index: number) {
    const hash = createHash("sha256").update(`${seed} ${target} ${index}`).digest();
    [this.a, this.b, this.c, this.d] = [0, 4, 8, 12].map((at) => hash.readUInt32LE(at));
  }

  /** sfc32: 32 bits. */
  bits(): number {
    const sum = (this.a + this.b + this.d) >>> 0;
    this.d = (this.d + 1) >>> 0;
    this.a = (this.b ^ (this.b >>> 9)) >>> 0;
    this.b = (this.c + (this.c << 3)) >>> 0;
    this.c = (((this.c << 21) | (this.c >>> 11)) + sum) >>> 0;
    return sum;
  }

  /** In [0, 1). */
  unit(): number {
    return this.bits() / 2 ** 32;
  }

  /** A whole number in [0, end). */
  below(end: number): number {
    return Math.floor(this.unit() * end);
  }

  /** A whole number in [from, to]. */
  within(from: number, to: number): number {
    return from + this.below(to - from + 1);
  }

  chance(probability: number): boolean {
    return this.unit() < probability;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)];
  }

  /** A whole number, most often one at which readers break; negative at times. */
  edge(): number {
    const value = this.chance(0.8) ? this.pick(EDGES) + this.within(-1, 1) : this.below(2 ** this.within(1, 31));
    return this.chance(0.15) ? -value : value;
  }

  bytes(length: number): Buffer {
    return Buffer.from(Array.from({ length }, () => this.bits() & 255));
  }

  shuffle<T>(items: readonly T[]): T[] {
    const out = [...items];
    for (let i = out.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [out[i], out[j]] = [out[j], out[i]];
    }
    return out;
  }
}
