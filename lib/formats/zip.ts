/** Zip archives (zip64 too) as PyTorch and NumPy write them: entries read by offset, whole or in part. */

import { Readable } from "node:stream";
import { createInflateRaw } from "node:zlib";
import type { ZipFile } from "yauzl";
import { check, LtxError } from "../errors.js";
import { openRandomAccess, type RandomAccess } from "./random-access.js";

export interface ZipEntry {
  readonly name: string;
  /** Bytes of the contents. */
  readonly size: number;
  /** Whether the contents lie in the file as they are, so that a part can be read alone. */
  readonly stored: boolean;
  /** Where the entry's bytes, compressed or not, begin in the file. */
  readonly start: number;
  readonly compressedSize: number;
}

export interface ZipArchive {
  readonly path: string;
  /** Files by name, in the archive's order; folders are left out. */
  readonly entries: ReadonlyMap<string, ZipEntry>;
  /**
   * `length` bytes of an entry from `offset`, by default all; a compressed entry is inflated from its start each time.
   * The bytes have a buffer of their own.
   * @throws LtxError `file_format` when the contents are damaged, `io`
   */
  read(entry: ZipEntry, offset?: number, length?: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

const STORED = 0;
const DEFLATED = 8;
/** Deflate cannot shrink further; an entry that claims more is an attack on the reader's memory. */
const MAX_DEFLATE_RATIO = 1032;
const INFLATE_CHUNK = 1 << 20;

/**
 * Opens an archive and reads its list of entries.
 * @param op what stands in brackets before its error messages
 * @throws LtxError `file_format` when it is no zip archive or a damaged one, `io`
 */
export async function openZip(path: string, op: string): Promise<ZipArchive> {
  const file = await openRandomAccess(path, op);
  const damaged = (reason: string, cause?: unknown) =>
    new LtxError("file_format", `[${op}] ${path}: ${reason}; the archive is damaged or not complete`, { cause });
  try {
    const entries = await listEntries(file, damaged);
    return {
      path,
      entries,
      read: (entry, offset = 0, length = entry.size - offset) => readEntry(file, entry, offset, length, damaged),
      close: () => file.close(),
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

type Damaged = (reason: string, cause?: unknown) => LtxError;

async function listEntries(file: RandomAccess, damaged: Damaged): Promise<Map<string, ZipEntry>> {
  const entries = new Map<string, ZipEntry>();
  let zip: ZipFile | undefined;
  try {
    const { openPromise } = await import("yauzl");
    zip = await openPromise(file.path, { autoClose: false, lazyEntries: true, strictFileNames: true });
    for await (const entry of zip.eachEntry()) {
      const { fileName: name, uncompressedSize: size, compressedSize, compressionMethod: method } = entry;
      if (name.endsWith("/")) continue;
      const shown = JSON.stringify(name.slice(0, 100));
      if (entries.has(name)) throw damaged(`it holds ${shown} twice`);
      if (entry.isEncrypted()) throw damaged(`${shown} is encrypted`);
      if (method !== STORED && method !== DEFLATED) throw damaged(`${shown} has unknown compression method ${method}`);
      const { fileDataStart: start } = await zip.readLocalFileHeaderPromise(entry, { minimal: true });
      if (start + compressedSize > file.size) {
        throw damaged(`${shown} reaches past the ${file.size} bytes there are`);
      }
      const stored = method === STORED;
      if (stored ? size !== compressedSize : size > compressedSize * MAX_DEFLATE_RATIO) {
        throw damaged(`${shown} claims ${size} bytes made from ${compressedSize}`);
      }
      entries.set(name, { name, size, stored, start, compressedSize });
    }
    checkApart([...entries.values()], damaged);
    return entries;
  } catch (cause) {
    if (cause instanceof LtxError) throw cause;
    throw damaged((cause as Error).message.replace(/\.$/, ""), cause);
  } finally {
    zip?.close();
  }
}

/** Entries that share their bytes are how a small archive unfolds without end. */
function checkApart(entries: ZipEntry[], damaged: Damaged): void {
  entries.sort((a, b) => a.start - b.start);
  let end = 0;
  for (const { name, start, compressedSize } of entries) {
    if (start < end && compressedSize > 0)
      throw damaged(`${JSON.stringify(name.slice(0, 100))} overlaps another entry`);
    end = Math.max(end, start + compressedSize);
  }
}

async function readEntry(
  file: RandomAccess,
  entry: ZipEntry,
  offset: number,
  length: number,
  damaged: Damaged,
): Promise<Uint8Array> {
  check(
    offset >= 0 && length >= 0 && offset + length <= entry.size,
    "invalid_argument",
    () => `[zip] bytes ${offset} to ${offset + length} of ${entry.name} were asked for, it has ${entry.size}`,
  );
  if (entry.stored) return file.read(entry.start + offset, length);
  const whole = await inflate(file, entry, damaged);
  return length === entry.size ? whole : whole.slice(offset, offset + length);
}

async function inflate(file: RandomAccess, entry: ZipEntry, damaged: Damaged): Promise<Uint8Array> {
  const out = new Uint8Array(entry.size);
  let done = 0;
  const inflater = createInflateRaw({ chunkSize: INFLATE_CHUNK });
  const compressed = Readable.from(compressedChunks(file, entry), { objectMode: false });
  // Passed on, so that the loop below ends with the reader's own error.
  compressed.on("error", (error) => inflater.destroy(error));
  try {
    for await (const chunk of compressed.pipe(inflater)) {
      if (done + chunk.length > out.length)
        throw damaged(`${entry.name} inflates to more than its ${out.length} bytes`);
      out.set(chunk, done);
      done += chunk.length;
    }
  } catch (cause) {
    if (cause instanceof LtxError) throw cause;
    throw damaged(`${entry.name} cannot be inflated (${(cause as Error).message})`, cause);
  } finally {
    compressed.destroy();
  }
  if (done !== out.length) throw damaged(`${entry.name} inflates to ${done} bytes, not ${out.length}`);
  return out;
}

async function* compressedChunks(file: RandomAccess, entry: ZipEntry): AsyncGenerator<Uint8Array> {
  for (let done = 0; done < entry.compressedSize; done += INFLATE_CHUNK) {
    yield file.read(entry.start + done, Math.min(INFLATE_CHUNK, entry.compressedSize - done));
  }
}
