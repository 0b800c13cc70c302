import { expect } from "vitest";
import { LtxError } from "../../lib/errors.js";

/** The error that `run` throws, which must be an LtxError. */
export async function failure(run: () => unknown): Promise<LtxError> {
  try {
    await run();
  } catch (error) {
    expect(error).toBeInstanceOf(LtxError);
    return error as LtxError;
  }
  throw new Error("nothing was thrown");
}
