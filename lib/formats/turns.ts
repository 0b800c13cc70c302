/** Long loops that leave the event loop free. */
import { setImmediate } from "node:timers/promises";
import { check } from "../errors.js";

/** Milliseconds of work after which others get their turn. */
const SLICE = 8;

/** Pauses of a loop: `if (turns.due) await turns.next()` in it lets timers, requests and signals through. */
export class Turns {
  private began = performance.now();

  /** @param what names the work in the message when `signal` stops it: `[media] preparing frames` */
  constructor(
    private readonly what: string,
    private readonly signal?: AbortSignal,
  ) {}

  get due(): boolean {
    return performance.now() - this.began > SLICE;
  }

  /** @throws LtxError `aborted` */
  async next(): Promise<void> {
    await setImmediate();
    check(!this.signal?.aborted, "aborted", () => `${this.what} was aborted`);
    this.began = performance.now();
  }
}
