import { onOutputClosed } from "./streams.js";

/** Ctrl-C, a polite kill, a terminal that is closed. */
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
/** Milliseconds within which a second signal belongs to the first: npx passes on what the terminal sends to both. */
const ECHO = 250;

/**
 * Runs a command whose work stops at a signal, or when nobody reads its output any more: that aborts it, which ends it
 * with code 130; a signal once more ends the process at once. `onInterrupt` is called at the first.
 */
export async function interruptible(
  body: (signal: AbortSignal) => Promise<number>,
  onInterrupt?: () => void,
): Promise<number> {
  const interrupt = new AbortController();
  let signalled = Number.POSITIVE_INFINITY;
  const stop = () => {
    if (interrupt.signal.aborted) return;
    onInterrupt?.();
    interrupt.abort();
  };
  const onSignal = () => {
    if (performance.now() - signalled > ECHO) process.exit(130);
    signalled = Math.min(signalled, performance.now());
    stop();
  };
  for (const name of SIGNALS) process.on(name, onSignal);
  const release = onOutputClosed(stop);
  try {
    return await body(interrupt.signal);
  } finally {
    for (const name of SIGNALS) process.off(name, onSignal);
    release();
  }
}
