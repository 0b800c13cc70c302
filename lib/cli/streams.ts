/**
 * Standard output and standard error, when they can't be written: a reader that went away (`| head`), a full disk, a
 * terminal that was closed. No work is lost for it.
 */

/** Of standard output. */
let failure: NodeJS.ErrnoException | null = null;
let watching = false;
const closed = new Set<() => void>();

function onFailure(error: NodeJS.ErrnoException): void {
  if (failure) return;
  failure = error;
  if (error.code === "EPIPE") {
    for (const listener of closed) listener();
  } else {
    writeError(`ltx-native: cannot write standard output, going on without it: ${error.message}`);
  }
}

/** Makes failures of the standard streams harmless; see {@link outputFailure} and {@link onOutputClosed}. */
export function watchStreams(): void {
  if (watching) return;
  watching = true;
  process.stdout.on("error", onFailure);
  // Nobody is left who could be told.
  process.stderr.on("error", () => {});
}

/** Why standard output lacks something, though somebody may still want it; null when nothing is missing. */
export const outputFailure = (): Error | null => (failure && failure.code !== "EPIPE" ? failure : null);

/**
 * Calls `listener` when the reader of standard output goes away, at once when it has gone already.
 * @returns stops that
 */
export function onOutputClosed(listener: () => void): () => void {
  closed.add(listener);
  if (failure?.code === "EPIPE") listener();
  return () => closed.delete(listener);
}

export function writeOutput(line: string): void {
  // Files are written at once, and may throw at once.
  try {
    if (!failure) process.stdout.write(`${line}\n`);
  } catch (error) {
    onFailure(error as NodeJS.ErrnoException);
  }
}

export function writeError(line: string): void {
  try {
    process.stderr.write(`${line}\n`);
  } catch {
    // As above.
  }
}
