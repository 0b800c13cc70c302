/** Zip archives (zip64 too) as PyTorch and NumPy write them: entries read by offset, whole or in part. */

import { freemem } from "node:os";
import { Readable } from "node:stream";
import { createInflateRaw } from "node:zlib";
import type { Entry, RandomAccessReader, ZipFile } from "yauzl";
import { check, LtxError } from "../errors.js";
import { crc32 } from "./crc.js";
import { allocate, openRandomAccess, type RandomAccess } from "./random-access.js";

export interface ZipEntry {
  readonly name: string;
  /** Bytes of the contents. */
  readonly size: number;
  /** Whether the contents lie in the file as they are, so that a part can be read alone. */
  readonly stored: boolean;
  /** Where the entry's bytes, compressed or not, begin in the file. */
  readonly start: number;
  readonly compressedSize: number;
  readonly crc32: number;
}

export interface ZipArchive {
  readonly path: string;
  /** Files by name, in the archive's order; folders are left out. */
  readonly entries: ReadonlyMap<string, ZipEntry>;
  /**
   * `length` bytes of an entry from `offset`, by default all, in a buffer of their own. The first read of an entry checks
   * its CRC-32, for which it is read whole. A compressed entry that is read in parts is kept inflated, as far as
   * 1 GiB allows.
   * @throws LtxError `file_format` when the contents are damaged, `out_of_memory`, `io`
   */
  read(entry: ZipEntry, offset?: number, length?: number): Promise<Uint8Array>;
  /** Compares an entry with its CRC-32, once. @throws LtxError as `read` */
  verify(entry: ZipEntry): Promise<void>;
  close(): Promise<void>;
}

export interface ZipOptions {
  /** A CRC-32 of 0 means that none was computed, as `torch.serialization.set_crc32_options(False)` has it. */
  zeroIsUnchecked?: boolean;
}

const STORED = 0;
const DEFLATED = 8;
/** Deflate cannot shrink further; an entry that claims more is an attack on the reader's memory. */
const MAX_DEFLATE_RATIO = 1032;
/** More than any model has tensors; each takes some memory. */
const MAX_ENTRIES = 1_000_000;
/** What is inflated has to be held in memory. */
export const MAX_INFLATED = 4 * 2 ** 30;
const MAX_KEPT = 2 ** 30;
/** An entry that is inflated more often is one that many tensors share, too large to be kept. */
const MAX_INFLATIONS = 16;
const CHUNK = 1 << 20;
const BLOCK = 4096;

/**
 * Opens an archive and reads its list of entries.
 * @param op what stands in brackets before its error messages
 * @throws LtxError `file_format` when it is not a zip archive or a damaged one, `io`
 */
export async function openZip(path: string, op: string, options: ZipOptions = {}): Promise<ZipArchive> {
  const file = await openRandomAccess(path, op);
  const fault: Fault = (reason, cause) => new LtxError("file_format", `[${op}] ${path}: ${reason}`, { cause });
  const damaged: Fault = (reason, cause) => fault(`${reason}; the archive is damaged or not complete`, cause);
  try {
    const entries = await listEntries(file, damaged);
    const reader = new EntryReader(file, damaged, fault, options.zeroIsUnchecked ?? false);
    return {
      path,
      entries,
      read: (entry, offset = 0, length = entry.size - offset) => reader.read(entry, offset, length),
      verify: (entry) => reader.verify(entry),
      close: () => file.close(),
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

type Fault = (reason: string, cause?: unknown) => LtxError;

async function listEntries(file: RandomAccess, damaged: Fault): Promise<Map<string, ZipEntry>> {
  const entries = new Map<string, ZipEntry>();
  let zip: ZipFile | undefined;
  try {
    const { fromRandomAccessReaderPromise, RandomAccessReader } = await import("yauzl");
    const { reader, faulted } = blockReader(RandomAccessReader, file);
    // What goes wrong in the library's own callbacks comes out here, instead of ending the process.
    const unlessFaulted = <T>(work: Promise<T>): Promise<T> => Promise.race([work, faulted]);
    zip = await unlessFaulted(
      fromRandomAccessReaderPromise(reader, file.size, { autoClose: false, strictFileNames: true }),
    );
    const listed: Entry[] = [];
    const all = zip.eachEntry();
    for (;;) {
      const { done, value } = await unlessFaulted(all.next());
      if (done) break;
      listed.push(value);
      if (listed.length > MAX_ENTRIES) throw damaged(`it holds more than ${MAX_ENTRIES} files`);
    }
    for (const entry of listed) {
      const { fileName: name, uncompressedSize: size, compressedSize, compressionMethod: method } = entry;
      if (name.endsWith("/")) continue;
      const shown = show(name);
      if (entries.has(name)) throw damaged(`it holds ${shown} twice`);
      if (entry.isEncrypted()) throw damaged(`${shown} is encrypted`);
      if (method !== STORED && method !== DEFLATED) throw damaged(`${shown} has unknown compression method ${method}`);
      const { fileDataStart: start } = await unlessFaulted(zip.readLocalFileHeaderPromise(entry, { minimal: true }));
      if (start + compressedSize > file.size) {
        throw damaged(`${shown} reaches past the ${file.size} bytes there are`);
      }
      const stored = method === STORED;
      if (stored ? size !== compressedSize : size > compressedSize * MAX_DEFLATE_RATIO) {
        throw damaged(`${shown} claims ${size} bytes made from ${compressedSize}`);
      }
      entries.set(name, { name, size, stored, start, compressedSize, crc32: entry.crc32 });
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

const show = (name: string): string => JSON.stringify(name.slice(0, 100));

/**
 * The file as yauzl reads it: positions outside of it are errors, short reads come from a block that is kept, and an
 * exception that yauzl throws in a callback rejects `faulted`.
 */
function blockReader(
  Base: typeof RandomAccessReader,
  file: RandomAccess,
): { reader: RandomAccessReader; faulted: Promise<never> } {
  let fault: (error: unknown) => void = () => {};
  const faulted = new Promise<never>((_, reject) => {
    fault = reject;
  });
  faulted.catch(() => {});
  let block: { begin: number; bytes: Uint8Array } = { begin: 0, bytes: new Uint8Array(0) };
  const load = async (position: number, length: number): Promise<Uint8Array> => {
    if (!(position >= 0 && position + length <= file.size)) {
      throw new Error(`it refers to bytes ${position} to ${position + length}, there are ${file.size}`);
    }
    let at = position - block.begin;
    if (at < 0 || at + length > block.bytes.length) {
      const begin = position;
      const bytes = await file.read(begin, Math.min(Math.max(length, BLOCK), file.size - begin));
      block = { begin, bytes };
      at = 0;
    }
    return block.bytes.subarray(at, at + length);
  };
  class BlockReader extends Base {
    override read(
      buffer: Buffer,
      offset: number,
      length: number,
      position: number,
      callback: (error: Error | null, bytes?: number) => void,
    ): void {
      load(position, length)
        .then((bytes) => {
          buffer.set(bytes, offset);
          callback(null, length);
        }, callback)
        .catch(fault);
    }
  }
  return { reader: new BlockReader(), faulted };
}

/** Entries that share their bytes are how a small archive unfolds without end. */
function checkApart(entries: ZipEntry[], damaged: Fault): void {
  entries.sort((a, b) => a.start - b.start);
  let end = 0;
  for (const { name, start, compressedSize } of entries) {
    if (start < end && compressedSize > 0) throw damaged(`${show(name)} overlaps another entry`);
    end = Math.max(end, start + compressedSize);
  }
}

/** The contents of one archive's entries. */
class EntryReader {
  private readonly verified = new Map<ZipEntry, Promise<void>>();
  /** Inflated entries of which parts were read, the one read last behind the others. */
  private readonly kept = new Map<ZipEntry, Promise<Uint8Array>>();
  private readonly inflations = new Map<ZipEntry, number>();

  constructor(
    private readonly file: RandomAccess,
    private readonly damaged: Fault,
    private readonly fault: Fault,
    private readonly zeroIsUnchecked: boolean,
  ) {}

  async read(entry: ZipEntry, offset: number, length: number): Promise<Uint8Array> {
    check(
      offset >= 0 && length >= 0 && offset + length <= entry.size,
      "invalid_argument",
      () => `[zip] bytes ${offset} to ${offset + length} of ${entry.name} were asked for, it has ${entry.size}`,
    );
    const whole = length === entry.size;
    if (whole) return entry.stored ? this.readStored(entry) : this.inflate(entry);
    if (!entry.stored) return (await this.inflated(entry)).slice(offset, offset + length);
    await this.verify(entry);
    return this.file.read(entry.start + offset, length);
  }

  verify(entry: ZipEntry): Promise<void> {
    let check = this.verified.get(entry);
    if (!check) {
      check = entry.stored ? this.checkStored(entry) : this.inflate(entry).then(() => {});
      // A read that failed for another reason than damage may be tried again.
      check.catch(() => this.verified.delete(entry));
      this.verified.set(entry, check);
    }
    return check;
  }

  private compare(entry: ZipEntry, found: number): void {
    if (found === entry.crc32 || (this.zeroIsUnchecked && entry.crc32 === 0)) return;
    const hex = (crc: number) => crc.toString(16).padStart(8, "0");
    throw this.damaged(
      `${show(entry.name)} has the checksum ${hex(found)}, not the ${hex(entry.crc32)} it was stored with`,
    );
  }

  /** Piece by piece, so that a checksum over gigabytes doesn't keep the event loop waiting. */
  private async readStored(entry: ZipEntry): Promise<Uint8Array> {
    const bytes = allocate(entry.size, `[zip] ${this.file.path}, ${show(entry.name)}`);
    let crc = 0;
    for (let at = 0; at < bytes.length; at += CHUNK) {
      const part = bytes.subarray(at, at + CHUNK);
      await this.file.readInto(part, entry.start + at);
      crc = crc32(part, crc);
    }
    this.compare(entry, crc);
    this.verified.set(entry, Promise.resolve());
    return bytes;
  }

  private async checkStored(entry: ZipEntry): Promise<void> {
    const chunk = new Uint8Array(Math.min(CHUNK, entry.size));
    let crc = 0;
    for (let at = 0; at < entry.size; at += CHUNK) {
      const part = chunk.subarray(0, Math.min(CHUNK, entry.size - at));
      await this.file.readInto(part, entry.start + at);
      crc = crc32(part, crc);
    }
    this.compare(entry, crc);
  }

  private inflated(entry: ZipEntry): Promise<Uint8Array> {
    const known = this.kept.get(entry);
    this.kept.delete(entry);
    if (known) {
      this.kept.set(entry, known);
      return known;
    }
    const times = (this.inflations.get(entry) ?? 0) + 1;
    if (times > MAX_INFLATIONS) {
      throw this.fault(
        `many tensors share the compressed ${show(entry.name)} of ${entry.size} bytes, which would have to be inflated ` +
          "for each of them; save it uncompressed, as torch.save does",
      );
    }
    this.inflations.set(entry, times);
    const bytes = this.inflate(entry);
    bytes.catch(() => this.kept.delete(entry));
    this.kept.set(entry, bytes);
    let size = [...this.kept.keys()].reduce((n, { size }) => n + size, 0);
    for (const oldest of this.kept.keys()) {
      if (size <= MAX_KEPT) break;
      this.kept.delete(oldest);
      size -= oldest.size;
    }
    return bytes;
  }

  private async inflate(entry: ZipEntry): Promise<Uint8Array> {
    const { file, damaged } = this;
    const shown = show(entry.name);
    const most = Math.min(MAX_INFLATED, process.availableMemory?.() ?? freemem());
    check(entry.size <= most, "out_of_memory", () => {
      return `[zip] ${file.path}: ${shown} inflates to ${entry.size} bytes, at most ${most} fit in memory; store it uncompressed`;
    });
    const out = allocate(entry.size, `[zip] ${file.path}, ${shown}`);
    let done = 0;
    let crc = 0;
    const inflater = createInflateRaw({ chunkSize: CHUNK });
    const compressed = Readable.from(compressedChunks(file, entry), { objectMode: false });
    // Passed on, so that the loop below ends with the reader's own error.
    compressed.on("error", (error) => inflater.destroy(error));
    try {
      for await (const chunk of compressed.pipe(inflater)) {
        if (done + chunk.length > out.length) throw damaged(`${shown} inflates to more than its ${out.length} bytes`);
        out.set(chunk, done);
        crc = crc32(chunk, crc);
        done += chunk.length;
      }
    } catch (cause) {
      if (cause instanceof LtxError) throw cause;
      throw damaged(`${shown} cannot be inflated (${(cause as Error).message})`, cause);
    } finally {
      compressed.destroy();
    }
    if (done !== out.length) throw damaged(`${shown} inflates to ${done} bytes, not ${out.length}`);
    this.compare(entry, crc);
    return out;
  }
}

async function* compressedChunks(file: RandomAccess, entry: ZipEntry): AsyncGenerator<Uint8Array> {
  for (let done = 0; done < entry.compressedSize; done += CHUNK) {
    yield file.read(entry.start + done, Math.min(CHUNK, entry.compressedSize - done));
  }
}
