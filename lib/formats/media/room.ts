/** Memory for frames, asked for before they are read. */

import { freemem } from "node:os";
import { LtxError } from "../../errors.js";
import { showBytes } from "../../tensor/byte-size.js";

interface Kind<Data> {
  new (length: number): Data;
  readonly BYTES_PER_ELEMENT: number;
}

/**
 * @param what names what takes so many bytes: `the 900 frames of a.mp4`
 * @param remedy what would make it smaller
 * @throws LtxError `out_of_memory` where the memory that is left can't hold it
 */
export function checkRoom(bytes: number, what: string, remedy: string): void {
  // Linux hands out more than there is, and ends the process when it is used.
  const left = process.availableMemory?.() ?? freemem();
  if (!(bytes <= left)) throw tooMuch(bytes, what, `${showBytes(left)} are left`, remedy);
}

/**
 * An array of so many zeros, if {@link checkRoom} allows it.
 * @throws LtxError `out_of_memory`
 */
export function room<Data extends Uint8Array | Float32Array>(
  kind: Kind<Data>,
  length: number,
  what: string,
  remedy: string,
): Data {
  const bytes = length * kind.BYTES_PER_ELEMENT;
  checkRoom(bytes, what, remedy);
  try {
    return new kind(length);
  } catch (cause) {
    throw tooMuch(bytes, what, "more than one array can hold", remedy, cause);
  }
}

function tooMuch(bytes: number, what: string, limit: string, remedy: string, cause?: unknown): LtxError {
  const message = `[media] ${what} would take ${showBytes(bytes)} of memory, ${limit}: ${remedy}`;
  return new LtxError("out_of_memory", message, { cause });
}
