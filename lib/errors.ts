/** What went wrong, as a word a program can switch on. */
export type ErrorCode =
  | "invalid_argument"
  | "shape_mismatch"
  | "dtype_mismatch"
  | "config"
  | "checkpoint"
  | "file_format"
  | "file_exists"
  | "io"
  | "unavailable"
  | "out_of_memory"
  | "non_finite"
  | "disposed"
  | "aborted"
  | "native";

/** The one error class of the library: `message` says what was found, what was expected and what to do. */
export class LtxError extends Error {
  readonly code: ErrorCode;
  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = "LtxError";
    this.code = code;
  }
}

/** Throws an {@link LtxError} with `code` unless `condition` holds; the message is built only on failure. */
export function check(condition: unknown, code: ErrorCode, message: () => string): asserts condition {
  if (!condition) throw new LtxError(code, message());
}

/** @throws LtxError `aborted`, whose cause is the signal's reason */
export function stopIfAborted(signal: AbortSignal | undefined, what = "[generate] stopped by the caller"): void {
  if (signal?.aborted) throw new LtxError("aborted", what, { cause: signal.reason });
}
