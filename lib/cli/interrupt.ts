/**
 * Runs a command whose work stops at a signal: Ctrl-C, or a polite kill, aborts it, which ends it with code 130; once
 * more ends the process at once. `onInterrupt` is called at the first.
 */
export async function interruptible(
  body: (signal: AbortSignal) => Promise<number>,
  onInterrupt?: () => void,
): Promise<number> {
  const interrupt = new AbortController();
  const onSignal = () => {
    if (interrupt.signal.aborted) process.exit(130);
    onInterrupt?.();
    interrupt.abort();
  };
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  try {
    return await body(interrupt.signal);
  } finally {
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
  }
}
