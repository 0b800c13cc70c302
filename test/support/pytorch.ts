/** Writes `.pt` files for the tests, in both formats, as `torch.save` lays them out (pickle protocol 2). */
import { createWriteStream } from "node:fs";
import { finished } from "node:stream/promises";
import * as yazl from "yazl";

/** A tensor to be saved; contiguous from the storage's start unless told otherwise. */
export class PtTensor {
  constructor(
    readonly storageClass: string,
    readonly data: Uint8Array,
    readonly elements: number,
    readonly shape: readonly number[],
    readonly strides: readonly number[] = rowMajor(shape),
    readonly offset = 0,
    readonly parameter = false,
  ) {}

  static f32(values: readonly number[], shape: readonly number[] = [values.length]): PtTensor {
    return new PtTensor("torch FloatStorage", bytesOf(Float32Array.from(values)), values.length, shape);
  }

  /** Another tensor on the same storage. */
  view(shape: readonly number[], strides: readonly number[], offset = 0): PtTensor {
    return new PtTensor(this.storageClass, this.data, this.elements, shape, strides, offset);
  }
}

export class Tuple {
  readonly items: readonly unknown[];
  constructor(...items: readonly unknown[]) {
    this.items = items;
  }
}

/** A global of Python, by "module name". */
export class Global {
  constructor(readonly name: string) {}
}

const rowMajor = (shape: readonly number[]): number[] =>
  shape.map((_, i) => shape.slice(i + 1).reduce((n, d) => n * d, 1));

export const bytesOf = (array: ArrayBufferView): Uint8Array =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

/** The pickle of `value` and the storages of its tensors, in the order of their keys "0", "1", ... */
export function pickle(value: unknown, legacy = false): { bytes: Buffer; storages: PtTensor[] } {
  const parts: (number[] | Buffer)[] = [[0x80, 2]];
  const storages: PtTensor[] = [];
  const emit = (...bytes: number[]) => parts.push(bytes);
  const global = (name: string) => parts.push(Buffer.from(`c${name.replace(" ", "\n")}\n`));
  const write = (v: unknown): void => {
    if (v === null) emit(0x4e);
    else if (typeof v === "boolean") emit(v ? 0x88 : 0x89);
    else if (typeof v === "number" && Number.isInteger(v) && Math.abs(v) < 2 ** 31) {
      const int = Buffer.alloc(4);
      int.writeInt32LE(v);
      parts.push(Buffer.concat([Buffer.from("J"), int]));
    } else if (typeof v === "number") {
      const double = Buffer.alloc(8);
      double.writeDoubleBE(v);
      parts.push(Buffer.concat([Buffer.from("G"), double]));
    } else if (typeof v === "bigint") {
      const long = Buffer.from(v.toString(16).padStart(32, "0"), "hex").reverse();
      parts.push(Buffer.concat([Buffer.from([0x8a, long.length]), long]));
    } else if (typeof v === "string") {
      const text = Buffer.from(v);
      const length = Buffer.alloc(4);
      length.writeUInt32LE(text.length);
      parts.push(Buffer.concat([Buffer.from("X"), length, text]));
    } else if (v instanceof Global) global(v.name);
    else if (v instanceof Tuple) {
      emit(0x28);
      v.items.forEach(write);
      emit(0x74);
    } else if (Array.isArray(v)) {
      emit(0x5d, 0x28);
      v.forEach(write);
      emit(0x65);
    } else if (v instanceof Map) {
      emit(0x7d, 0x28);
      for (const [key, item] of v) {
        write(key);
        write(item);
      }
      emit(0x75);
    } else if (v instanceof PtTensor) tensor(v);
    else throw new TypeError(`cannot pickle ${v}`);
  };
  const tensor = (t: PtTensor): void => {
    let key = storages.findIndex((s) => s.data === t.data);
    if (key < 0) key = storages.push(t) - 1;
    if (t.parameter) {
      global("torch._utils _rebuild_parameter");
      emit(0x28);
    }
    global("torch._utils _rebuild_tensor_v2");
    emit(0x28);
    const id = ["storage", new Global(t.storageClass), String(key), "cpu", t.elements, ...(legacy ? [null] : [])];
    write(new Tuple(...id));
    emit(0x51);
    for (const item of [t.offset, new Tuple(...t.shape), new Tuple(...t.strides), false]) write(item);
    global("collections OrderedDict");
    emit(0x29, 0x52, 0x74, 0x52);
    if (t.parameter) {
      emit(0x88);
      global("collections OrderedDict");
      emit(0x29, 0x52, 0x74, 0x52);
    }
  };
  write(value);
  emit(0x2e);
  return { bytes: Buffer.concat(parts.map((part) => Buffer.from(part))), storages };
}

/** The older format: pickles in a row, then the storages. */
export function legacyBytes(value: unknown): Buffer {
  const { bytes, storages } = pickle(value, true);
  const machine = new Map<unknown, unknown>([["little_endian", true]]);
  const head = [0x1950a86a20f9469cfc6cn, 1001, machine].map((v) => pickle(v).bytes);
  const keys = pickle(storages.map((_, i) => String(i))).bytes;
  const data = storages.flatMap(({ elements, data }) => {
    const count = Buffer.alloc(8);
    count.writeBigInt64LE(BigInt(elements));
    return [count, Buffer.from(data)];
  });
  return Buffer.concat([...head, bytes, keys, ...data]);
}

export interface ZipOptions {
  compress?: boolean;
  zip64?: boolean;
}

/** Writes entries as a zip archive. */
export async function writeZip(
  path: string,
  entries: ReadonlyMap<string, Uint8Array>,
  { compress = false, zip64 = false }: ZipOptions = {},
): Promise<void> {
  const zip = new yazl.ZipFile();
  for (const [name, bytes] of entries) {
    zip.addBuffer(Buffer.from(bytes), name, { compress, forceZip64Format: zip64 });
  }
  zip.end({ forceZip64Format: zip64, comment: "" });
  await finished(zip.outputStream.pipe(createWriteStream(path)));
}

/** The present format: a zip archive. */
export async function writePt(path: string, value: unknown, options: ZipOptions = {}): Promise<void> {
  const { bytes, storages } = pickle(value);
  const entries = new Map<string, Uint8Array>([
    ["archive/data.pkl", bytes],
    ["archive/byteorder", Buffer.from("little")],
  ]);
  for (const [i, { data }] of storages.entries()) entries.set(`archive/data/${i}`, data);
  entries.set("archive/version", Buffer.from("3\n"));
  await writeZip(path, entries, options);
}
