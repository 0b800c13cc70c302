/**
 * NumPy arrays: `.npy` files, and the first array of an `.npz` archive. Format:
 * https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
 */
import { check, LtxError } from "../errors.js";
import { fileIdentity } from "./paths.js";
import { openRandomAccess, type RandomAccess } from "./random-access.js";
import { openZip } from "./zip.js";

/** Element types, by NumPy's names without the byte order. */
const ELEMENT_BYTES = { u1: 1, i1: 1, u2: 2, i2: 2, u4: 4, i4: 4, u8: 8, i8: 8, f4: 4, f8: 8 } as const;
export type NpyDtype = keyof typeof ELEMENT_BYTES;

export interface NpyHeader {
  readonly dtype: NpyDtype;
  readonly bigEndian: boolean;
  /** First index fastest, as Fortran lays arrays out. */
  readonly fortran: boolean;
  readonly shape: readonly number[];
  /** Where the elements begin, from the start of the file. */
  readonly dataStart: number;
}

/** An array whose elements are read when asked for. */
export interface NpyArray {
  readonly dtype: NpyDtype;
  readonly shape: readonly number[];
  /** Elements in all. */
  readonly size: number;
  /**
   * `count` elements from `begin` in row-major order; 64-bit integers rounded to a double.
   * @throws LtxError `io`
   */
  read(begin: number, count: number): Promise<NpyValues>;
}

export type NpyValues =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array;

const MAGIC = "\x93NUMPY";
/** NumPy's own bound for files that are not trusted. */
const MAX_HEADER_BYTES = 10_000;
const MAX_DIMS = 64;
/** What is inflated or reordered has to be held in memory. */
const MAX_IN_MEMORY = 4 * 2 ** 30;
/** Magic, version and the longer of the two forms of the header's length. */
const PREFIX_BYTES = 12;

type Fail = (reason: string) => never;

const failing =
  (name: string): Fail =>
  (reason) => {
    throw new LtxError("file_format", `[npy] ${name}: ${reason}`);
  };

/**
 * Reads the header at the start of `bytes`.
 * @param name what messages call the file
 * @throws LtxError `file_format`
 */
export function parseNpyHeader(bytes: Uint8Array, name = "buffer"): NpyHeader {
  const fail = failing(name);
  const short = () => fail("ends inside its header; the file is damaged or no .npy file");
  if (Buffer.from(bytes.subarray(0, 6)).toString("latin1") !== MAGIC) fail("is no .npy file");
  if (bytes.length < 10) short();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [major, minor] = [bytes[6], bytes[7]];
  if (major < 1 || major > 3 || minor !== 0) fail(`has unknown version ${major}.${minor}, expected 1.0 to 3.0`);
  if (major > 1 && bytes.length < PREFIX_BYTES) short();
  const [start, length] = major === 1 ? [10, view.getUint16(8, true)] : [PREFIX_BYTES, view.getUint32(8, true)];
  if (length > MAX_HEADER_BYTES) fail(`has a header of ${length} bytes, the limit is ${MAX_HEADER_BYTES}`);
  if (bytes.length < start + length) short();
  const text = Buffer.from(bytes.subarray(start, start + length)).toString("latin1");
  return { ...parseDescription(text, fail), dataStart: start + length };
}

/** The header's text: a Python dict of exactly the keys descr, fortran_order and shape. */
function parseDescription(text: string, fail: Fail): Omit<NpyHeader, "dataStart"> {
  const shown = () => JSON.stringify(text.trim().slice(0, 200));
  const dict = /^\{(.*)\}\s*$/s.exec(text)?.[1] ?? fail(`has a header that is no dict: ${shown()}`);
  const found = new Map<string, string>();
  let rest = dict.trim();
  while (rest.length > 0) {
    const item = /^(['"])(\w+)\1\s*:\s*('[^']*'|"[^"]*"|True|False|\([\d\s,L]*\)|\[.*?\])\s*(?:,\s*|$)/s.exec(rest);
    if (!item || found.has(item[2])) return fail(`has a header that cannot be read: ${shown()}`);
    found.set(item[2], item[3]);
    rest = rest.slice(item[0].length);
  }
  const descr = found.get("descr");
  const order = found.get("fortran_order");
  const sizes = /^\((.*)\)$/s.exec(found.get("shape") ?? "")?.[1];
  if (found.size !== 3 || descr === undefined || (order !== "True" && order !== "False") || sizes === undefined) {
    return fail(`needs descr, fortran_order and shape in its header, found ${shown()}`);
  }
  const [, endian, dtype] = /^['"]([<>|=])?(\w+)['"]$/.exec(descr) ?? [];
  if (dtype === undefined || !Object.hasOwn(ELEMENT_BYTES, dtype)) {
    const reason = /O/.test(descr) ? "Python objects, which are not read" : `elements of type ${descr.slice(0, 60)}`;
    return fail(`holds ${reason}; numbers of type ${Object.keys(ELEMENT_BYTES).join(", ")} are expected`);
  }
  const parts = sizes.split(",").map((part) => part.trim().replace(/L$/, ""));
  if (parts[parts.length - 1] === "") parts.pop();
  const shape = parts.map((part) => (/^\d+$/.test(part) ? Number(part) : Number.NaN));
  let bytes: number = ELEMENT_BYTES[dtype as NpyDtype];
  // Checked at each factor: a later 0 must not hide an overflow.
  const possible = shape.every((size) => {
    bytes *= size;
    return Number.isSafeInteger(bytes);
  });
  if (!possible || shape.length > MAX_DIMS) fail(`has the impossible shape (${sizes.slice(0, 200)})`);
  return { dtype: dtype as NpyDtype, bigEndian: endian === ">", fortran: order === "True", shape };
}

/**
 * Opens a `.npy` file. No file stays open: each read opens it anew.
 * @throws LtxError `file_format`, `io`
 */
export async function openNpy(path: string): Promise<NpyArray> {
  return withFile(path, async (file) => {
    const header = parseNpyHeader(await file.read(0, Math.min(file.size, PREFIX_BYTES + MAX_HEADER_BYTES)), path);
    return arrayAt(path, header, 0, file.size, path);
  });
}

/**
 * Opens the first array of an `.npz` archive, as the reference does. One that is not compressed is read in place; else it
 * is inflated into memory, once for all who read that file.
 * @throws LtxError `file_format`, `io`
 */
export async function openNpz(path: string): Promise<NpyArray> {
  const archive = await openZip(path, "npz");
  try {
    const entry = [...archive.entries.values()].find(({ name }) => name.endsWith(".npy"));
    if (!entry) return failing(path)("holds no array; expected an .npz archive");
    const name = `${path}, ${entry.name}`;
    if (entry.stored) {
      const header = parseNpyHeader(
        await archive.read(entry, 0, Math.min(entry.size, PREFIX_BYTES + MAX_HEADER_BYTES)),
        name,
      );
      return await arrayAt(path, header, entry.start, entry.size, name);
    }
    if (entry.size > MAX_IN_MEMORY) failing(name)(tooLarge(entry.size, "store it uncompressed with numpy.savez"));
    return await shared(await fileIdentity(path), async () => {
      const bytes = await archive.read(entry);
      const header = parseNpyHeader(bytes, name);
      checkLength(header, bytes.length, name);
      const data = bytes.subarray(header.dataStart);
      return inMemory(header, header.fortran ? rowMajor(data, header) : data);
    });
  } finally {
    await archive.close();
  }
}

const tooLarge = (bytes: number, remedy: string) =>
  `takes ${bytes} bytes of memory to read, the limit is ${MAX_IN_MEMORY}; ${remedy}`;

async function withFile<T>(path: string, body: (file: RandomAccess) => Promise<T>): Promise<T> {
  const file = await openRandomAccess(path, "npy");
  try {
    return await body(file);
  } finally {
    await file.close();
  }
}

/** Arrays in memory, by file, as long as anyone uses them: training and held-out clips come from one file. */
const kept = new Map<string, WeakRef<NpyArray>>();
const loading = new Map<string, Promise<NpyArray>>();
const forgotten = new FinalizationRegistry<string>((key) => {
  // Another array may have taken the place of the one that went.
  if (!kept.get(key)?.deref()) kept.delete(key);
});

/** The array of that key, loaded once however many ask for it, also at once. */
async function shared(key: string, load: () => Promise<NpyArray>): Promise<NpyArray> {
  const there = kept.get(key)?.deref() ?? loading.get(key);
  if (there) return there;
  const work = load();
  loading.set(key, work);
  try {
    const array = await work;
    kept.set(key, new WeakRef(array));
    forgotten.register(array, key);
    return array;
  } finally {
    loading.delete(key);
  }
}

const sizeOf = ({ shape }: Pick<NpyHeader, "shape">): number => shape.reduce((n, d) => n * d, 1);

function checkLength(header: NpyHeader, length: number, name: string): void {
  const expected = header.dataStart + sizeOf(header) * ELEMENT_BYTES[header.dtype];
  if (length > expected) {
    failing(name)(`has ${length - expected} bytes behind its array; keep one array in a file (numpy.save once)`);
  }
  if (length < expected) {
    failing(name)(
      `has ${length} bytes, its shape (${header.shape}) of ${header.dtype} needs ${expected}; the file is damaged`,
    );
  }
}

/** The array that lies `length` bytes long at `start` of a file. */
async function arrayAt(
  path: string,
  header: NpyHeader,
  start: number,
  length: number,
  name: string,
): Promise<NpyArray> {
  checkLength(header, length, name);
  const first = start + header.dataStart;
  const width = ELEMENT_BYTES[header.dtype];
  const size = sizeOf(header);
  if (header.fortran && header.shape.length > 1) {
    if (size * width > MAX_IN_MEMORY) failing(name)(tooLarge(size * width, "store it in C order"));
    return inMemory(header, rowMajor(await withFile(path, (file) => file.read(first, size * width)), header));
  }
  return lazy(header, (begin, bytes) => withFile(path, (file) => file.read(first + begin, bytes)));
}

const inMemory = (header: NpyHeader, data: Uint8Array): NpyArray =>
  lazy(header, async (begin, bytes) => new Uint8Array(data.subarray(begin, begin + bytes)));

function lazy(header: NpyHeader, readBytes: (begin: number, length: number) => Promise<Uint8Array>): NpyArray {
  const { dtype, shape, bigEndian } = header;
  const width = ELEMENT_BYTES[dtype];
  const size = sizeOf(header);
  return {
    dtype,
    shape,
    size,
    async read(begin, count) {
      check(begin >= 0 && count >= 0 && begin + count <= size, "invalid_argument", () => {
        return `[npy] elements ${begin} to ${begin + count} were asked for, the array has ${size}`;
      });
      const bytes = await readBytes(begin * width, count * width);
      return decode(bytes, dtype, bigEndian);
    },
  };
}

function decode(bytes: Uint8Array, dtype: NpyDtype, bigEndian: boolean): NpyValues {
  const width = ELEMENT_BYTES[dtype];
  if (bigEndian && width > 1) {
    const buffer = Buffer.from(bytes.buffer);
    if (width === 2) buffer.swap16();
    else if (width === 4) buffer.swap32();
    else buffer.swap64();
  }
  const { buffer } = bytes;
  switch (dtype) {
    case "u1":
      return bytes;
    case "i1":
      return new Int8Array(buffer);
    case "u2":
      return new Uint16Array(buffer);
    case "i2":
      return new Int16Array(buffer);
    case "u4":
      return new Uint32Array(buffer);
    case "i4":
      return new Int32Array(buffer);
    case "f4":
      return new Float32Array(buffer);
    case "f8":
      return new Float64Array(buffer);
    case "u8":
      return asDoubles(new BigUint64Array(buffer));
    case "i8":
      return asDoubles(new BigInt64Array(buffer));
  }
}

function asDoubles(values: BigUint64Array | BigInt64Array): Float64Array {
  const result = new Float64Array(values.length);
  for (let i = 0; i < values.length; i++) result[i] = Number(values[i]);
  return result;
}

/** Column-major elements in row-major order. */
function rowMajor(bytes: Uint8Array, { dtype, shape }: NpyHeader): Uint8Array {
  const width = ELEMENT_BYTES[dtype];
  const out = new Uint8Array(bytes.length);
  const index = shape.map(() => 0);
  const strides = shape.map((_, i) => shape.slice(0, i).reduce((n, d) => n * d, width));
  let from = 0;
  for (let to = 0; to < out.length; to += width) {
    for (let k = 0; k < width; k++) out[to + k] = bytes[from + k];
    for (let d = shape.length - 1; d >= 0; d--) {
      from += strides[d];
      if (++index[d] < shape[d]) break;
      from -= shape[d] * strides[d];
      index[d] = 0;
    }
  }
  return out;
}
