import type { Device } from "../../lib/tensor/index.js";
import { median } from "../measure.js";

export interface TimingOptions {
  /** A round takes about this long: what the clock and the queue's start cost doesn't count. */
  seconds: number;
  rounds: number;
}

const MAX_CALLS = 20_000;

/**
 * Seconds of one call that only queues work, on a device that runs it when it likes: warm, then rounds of as many calls
 * as fill the time, each ended by waiting for the device; the median round counts.
 */
export async function timeCalls(device: Device, call: () => void, options: TimingOptions): Promise<number> {
  const round = async (calls: number) => {
    const begun = performance.now();
    for (let i = 0; i < calls; i++) call();
    await device.synchronize();
    return (performance.now() - begun) / 1000;
  };
  await round(1);
  let calls = 1;
  for (let took = await round(1); took < options.seconds / 2 && calls < MAX_CALLS; took = await round(calls)) {
    // At most tenfold: the first estimates are mostly the start of the queue.
    calls = Math.min(MAX_CALLS, Math.ceil(calls * Math.min(10, (1.2 * options.seconds) / took)));
  }
  const rounds: number[] = [];
  for (let i = 0; i < options.rounds; i++) rounds.push((await round(calls)) / calls);
  return median(rounds);
}
