/** Reading and writing safetensors files, tensor by tensor. */

import { listed, object, show, text } from "../arguments.js";
import { check } from "../errors.js";
import { writeAll, writeFileAtomic } from "./atomic-file.js";
import { DTYPE_BITS, isDtype, type SafetensorsDtype, toFloat32 } from "./dtypes.js";
import { openRandomAccess, type RandomAccess } from "./random-access.js";
import {
  headerLength,
  LENGTH_BYTES,
  MAX_HEADER_BYTES,
  METADATA_KEY,
  parseSafetensorsHeader,
  type SafetensorsEntry,
  type SafetensorsHeader,
  tensorBytes,
} from "./safetensors-header.js";

export type { SafetensorsDtype } from "./dtypes.js";
export { parseSafetensorsHeader, type SafetensorsEntry, type SafetensorsHeader } from "./safetensors-header.js";

/** An open safetensors file. Only the header is in memory; the tensors are read when asked for. */
export interface SafetensorsFile extends SafetensorsHeader {
  /**
   * The bytes of one tensor, little-endian and row-major, in a buffer of their own (so any typed array fits on it).
   * @throws LtxError `invalid_argument` for an unknown name, `disposed` after `close`, `io`
   */
  read(name: string): Promise<Uint8Array>;
  /**
   * The elements of one tensor as float32: F32 as they are, other floats and integers rounded to nearest, BOOL as 0 or 1.
   * @throws LtxError as `read`, and `dtype_mismatch` for a type that has no float32 reading
   */
  readF32(name: string): Promise<Float32Array>;
  /** Where on disk the bytes of one tensor lie; undefined for a file in memory. @throws LtxError as `read` */
  locate(name: string): { readonly path: string; readonly descriptor: number; readonly offset: number } | undefined;
  /** Closes the file; safe to call again. */
  close(): Promise<void>;
}

/**
 * Opens a safetensors file and checks its header.
 * @throws LtxError `io` when the file cannot be read, `file_format` for everything that the format forbids
 */
export async function readSafetensors(path: string): Promise<SafetensorsFile> {
  const file = await openRandomAccess(path, "safetensors");
  const { size } = file;
  try {
    const start = await file.read(0, Math.min(size, LENGTH_BYTES));
    const headerBytes = await file.read(0, LENGTH_BYTES + headerLength(start, size, path));
    return reader(path, parseSafetensorsHeader(headerBytes, size, path), file.read, file.close, file.descriptor);
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * Reads a whole safetensors file that is already in memory. Tensors are copied out when read.
 * @param name what error messages call it
 * @throws LtxError `file_format`
 */
export function openSafetensorsBuffer(bytes: Uint8Array, name = "buffer"): SafetensorsFile {
  const header = parseSafetensorsHeader(bytes, bytes.byteLength, name);
  // Not bytes.slice: that of a Buffer shares its memory.
  const read: RandomAccess["read"] = async (offset, length) => new Uint8Array(bytes.subarray(offset, offset + length));
  return reader(name, header, read, async () => {});
}

function reader(
  path: string,
  header: SafetensorsHeader,
  readBytes: RandomAccess["read"],
  close: () => Promise<void>,
  descriptor?: number,
): SafetensorsFile {
  let closed = false;
  const find = (name: string): SafetensorsEntry => {
    const entry = header.tensors.get(name);
    check(!closed, "disposed", () => `[safetensors] ${path} is closed; open it again to read "${name}"`);
    check(entry !== undefined, "invalid_argument", () => {
      const some = [...header.tensors.keys()].slice(0, 3).map((key) => `"${key}"`);
      return `[safetensors] ${path} has no tensor "${name}" among its ${header.tensors.size} (${some.join(", ")}, ...)`;
    });
    return entry;
  };
  const read = async (name: string): Promise<Uint8Array> => {
    const { offset, byteLength } = find(name);
    return readBytes(offset, byteLength);
  };
  return {
    ...header,
    read,
    async readF32(name) {
      const values = toFloat32(await read(name), find(name).dtype);
      check(
        values !== undefined,
        "dtype_mismatch",
        () => `[safetensors] ${path}: tensor "${name}" of dtype ${find(name).dtype} cannot be read as float32`,
      );
      return values;
    },
    locate(name) {
      const { offset } = find(name);
      return descriptor === undefined ? undefined : { path, descriptor, offset };
    },
    async close() {
      if (closed) return;
      closed = true;
      await close();
    },
  };
}

export interface SafetensorsTensor {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  /** Little-endian, row-major bytes; as a function, asked for when their turn to be written comes. */
  readonly data: Uint8Array | (() => Promise<Uint8Array>);
}

/**
 * Writes a safetensors file: whole, synced to disk and then renamed into place, or not at all. Tensors lie widest type
 * first, then by name, so every tensor is aligned to its element size and equal contents give equal files.
 * @throws LtxError `invalid_argument` or `shape_mismatch` for contents that cannot be written, `io`
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<SafetensorsTensor>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const iterable = tensors !== null && typeof tensors === "object" && Symbol.iterator in tensors;
  check(iterable, "invalid_argument", () => `[safetensors] tensors is ${show(tensors)}, expected a list of tensors`);
  const ordered = [...tensors].map((tensor) => object("safetensors", "tensor", tensor));
  ordered.sort((a, b) => DTYPE_BITS[b.dtype] - DTYPE_BITS[a.dtype] || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
  const sizes = ordered.map((tensor) => checkedBytes(path, tensor));
  const header = encodeHeader(path, ordered, sizes, metadata);
  await writeFileAtomic(path, async (file) => {
    await writeAll(file, header);
    for (const [i, { name, data }] of ordered.entries()) {
      const bytes = typeof data === "function" ? await data() : data;
      checkLength(path, name, bytes, sizes[i]);
      await writeAll(file, bytes);
    }
  });
}

function checkedBytes(path: string, { name, dtype, shape, data }: SafetensorsTensor): number {
  text("safetensors", "a tensor's name", name);
  const invalid = (reason: string) => () => `[safetensors] cannot write tensor "${name}" to ${path}: ${reason}`;
  check(isDtype(dtype), "invalid_argument", invalid(`unknown dtype ${show(dtype)}`));
  check(
    Array.isArray(shape) && shape.every((size) => Number.isSafeInteger(size) && size >= 0),
    "invalid_argument",
    invalid(`impossible shape ${listed(shape)}`),
  );
  const size = tensorBytes(dtype, shape);
  check(size !== undefined, "invalid_argument", invalid(`shape [${shape}] is too large or ends inside a byte`));
  if (typeof data === "function") return size;
  check(
    data instanceof Uint8Array,
    "invalid_argument",
    invalid(`data is ${show(data)}, expected a Uint8Array or a function`),
  );
  checkLength(path, name, data, size);
  return size;
}

function checkLength(path: string, name: string, bytes: Uint8Array, size: number): void {
  check(
    bytes?.byteLength === size,
    "shape_mismatch",
    () =>
      `[safetensors] cannot write tensor "${name}" to ${path}: got ${bytes?.byteLength} bytes, its shape needs ${size}`,
  );
}

function encodeHeader(
  path: string,
  tensors: readonly SafetensorsTensor[],
  sizes: readonly number[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const invalid = (reason: string) => () => `[safetensors] cannot write ${path}: ${reason}`;
  for (const [key, value] of Object.entries(metadata)) {
    check(
      typeof value === "string" && !/\p{Surrogate}/u.test(key + value),
      "invalid_argument",
      invalid(`metadata "${key}" must be text, got ${JSON.stringify(value)}`),
    );
  }
  const entries = new Map<string, unknown>();
  if (Object.keys(metadata).length > 0) entries.set(METADATA_KEY, metadata);
  let begin = 0;
  for (const [i, { name, dtype, shape }] of tensors.entries()) {
    check(
      name !== METADATA_KEY && !/\p{Surrogate}/u.test(name),
      "invalid_argument",
      invalid(`${JSON.stringify(name)} cannot be a tensor's name`),
    );
    check(!entries.has(name), "invalid_argument", invalid(`two tensors are named "${name}"`));
    entries.set(name, { dtype, shape, data_offsets: [begin, begin + sizes[i]] });
    begin += sizes[i];
  }

  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  // Padded with spaces so that the data begins at a multiple of 8.
  const length = Math.ceil(json.length / 8) * 8;
  check(
    length <= MAX_HEADER_BYTES,
    "invalid_argument",
    invalid(`the header would take ${length} bytes, over the limit`),
  );
  const header = Buffer.alloc(LENGTH_BYTES + length, " ");
  header.writeBigUInt64LE(BigInt(length), 0);
  json.copy(header, LENGTH_BYTES);
  return header;
}
