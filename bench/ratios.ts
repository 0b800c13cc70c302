/** What bench/epoch.ts and bench/growth.ts conclude from their times. */
import { median } from "./measure.js";

/** Seconds of one run at one size. */
export interface Sized {
  batch: number;
  seconds: number;
}

/**
 * Seconds a clip at each batch size over those at the first one: the median of the rounds' ratios. A round holds the same
 * sizes in the same order.
 */
export function clipTimeGrowth(rounds: readonly (readonly Sized[])[]): number[] {
  return rounds[0].map((_, i) =>
    median(
      rounds.map((sizes) => {
        const [first, here] = [sizes[0], sizes[i]];
        return here.seconds / here.batch / (first.seconds / first.batch);
      }),
    ),
  );
}

/** Bytes at a size. */
export interface Weighed {
  batch: number;
  bytes: number;
}

/** Bytes that one more clip takes, from each size to the next: all the same where memory is linear. */
export function clipBytes(sizes: readonly Weighed[]): number[] {
  return sizes.slice(1).map(({ batch, bytes }, i) => (bytes - sizes[i].bytes) / (batch - sizes[i].batch));
}

/** What a batch will take by the last two sizes that were measured, with some room; null where there are none yet. */
export function predictBytes(sizes: readonly Weighed[], batch: number): number | null {
  if (sizes.length < 2) return null;
  const [before, last] = sizes.slice(-2);
  const slope = (last.bytes - before.bytes) / (last.batch - before.batch);
  return 1.1 * (last.bytes + slope * (batch - last.batch));
}

export interface EpochTimes {
  /** Our first epoch, in which the caches are filled. */
  first: number;
  /** Another one of ours. */
  later: number;
  /** Any epoch of the peer. */
  peer: number;
}

/** How much longer the peer takes for so many epochs: above 1 we are faster. */
export function epochRatio({ first, later, peer }: EpochTimes, epochs: number): number {
  return (epochs * peer) / (first + (epochs - 1) * later);
}
