/** A file that is read piece by piece, at offsets. */
import { open, stat } from "node:fs/promises";
import { path as checkPath } from "../arguments.js";
import { check, LtxError } from "../errors.js";

export interface RandomAccess {
  readonly path: string;
  /** Bytes in the file when it was opened. */
  readonly size: number;
  /** Of the open file, whatever has its path by now. */
  readonly descriptor: number;
  /**
   * `length` bytes from `offset` of the file, in a buffer of their own (so any typed array fits on it).
   * @throws LtxError `io` when they cannot be read or are not there any more, `out_of_memory`
   */
  read(offset: number, length: number): Promise<Uint8Array>;
  /** The same into bytes that are there already. */
  readInto(bytes: Uint8Array, offset: number): Promise<void>;
  /** Closes the file; safe to call again. */
  close(): Promise<void>;
}

/** One read call stops at 2 GiB on Linux. */
const MAX_READ = 1 << 30;

/**
 * Opens a regular file.
 * @param op what stands in brackets before its error messages
 * @throws LtxError `io` when it cannot be opened or is not a regular file
 */
export async function openRandomAccess(path: string, op: string): Promise<RandomAccess> {
  const fault = (what: string) => (cause: Error) => {
    throw new LtxError("io", `[${op}] cannot ${what} ${path}: ${cause.message}`, { cause });
  };
  checkPath(op, "the file", path);
  // Asked before opening: opening a pipe would wait for its writer.
  const info = await stat(path).catch(fault("open"));
  check(!info.isDirectory(), "io", () => `[${op}] ${path} is a folder, expected a file: name the file inside it`);
  check(info.isFile(), "io", () => `[${op}] cannot open ${path}: it is a device, pipe or socket, expected a file`);
  const file = await open(path, "r").catch(fault("open"));
  const { size } = await file.stat().catch(fault("read"));
  let closed = false;
  const readInto = async (bytes: Uint8Array, offset: number): Promise<void> => {
    const { length } = bytes;
    check(!closed, "disposed", () => `[${op}] ${path} is closed; open it again to read from it`);
    for (let done = 0; done < length; ) {
      const { bytesRead } = await file
        .read(bytes, done, Math.min(length - done, MAX_READ), offset + done)
        .catch(fault("read"));
      check(bytesRead > 0, "io", () => `[${op}] ${path} became shorter while it was read; was it being written?`);
      done += bytesRead;
    }
  };
  return {
    path,
    size,
    descriptor: file.fd,
    async read(offset, length) {
      const bytes = allocate(length, `[${op}] ${path}`);
      await readInto(bytes, offset);
      return bytes;
    },
    readInto,
    async close() {
      if (closed) return;
      closed = true;
      await file.close();
    },
  };
}

/** `length` zeros. @throws LtxError `out_of_memory` */
export function allocate(length: number, what: string): Uint8Array {
  try {
    return new Uint8Array(length);
  } catch (cause) {
    throw new LtxError("out_of_memory", `${what}: ${length} bytes in one piece do not fit in memory`, { cause });
  }
}
