/** Safetensors files against a reader written from the format's description alone. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readSafetensors, type SafetensorsFile, writeSafetensors } from "../../../lib/formats/safetensors.js";
import { openTensorFile, type TensorFile } from "../../../lib/formats/tensor-file.js";
import { anyJson, changeText, mutateBytes, mutateJson } from "../mutate.js";
import type { Random } from "../random.js";
import { must, type Target } from "../target.js";

/** Bits of an element. */
const BITS: Record<string, number> = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
};
const MAX_HEADER = 100_000_000;

interface Placed {
  dtype: string;
  shape: number[];
  begin: number;
  end: number;
}

/** A JSON reader that knows duplicate keys: objects become lists of pairs. Throws at anything that is not JSON. */
class Json {
  private at = 0;
  constructor(private readonly text: string) {}

  static parse(text: string): unknown {
    // The language's own parser says whether it is JSON; the pairs are then read from a text that is.
    JSON.parse(text);
    return new Json(text).value();
  }

  private value(): unknown {
    this.space();
    const char = this.text[this.at];
    if (char === "{")
      return this.list(
        "}",
        () => [this.string(), this.colon()] as const,
        (pairs) => new Pairs(pairs),
      );
    if (char === "[")
      return this.list(
        "]",
        () => this.value(),
        (items) => items,
      );
    if (char === '"') return this.string();
    const word = /[^\s,\]}]+/y;
    word.lastIndex = this.at;
    const found = (word.exec(this.text) as RegExpExecArray)[0];
    this.at += found.length;
    if (/^-?\d+$/.test(found)) return BigInt(found);
    return JSON.parse(found);
  }

  private space(): void {
    while (/\s/.test(this.text[this.at] ?? "")) this.at++;
  }

  private colon(): unknown {
    this.space();
    this.at++;
    return this.value();
  }

  private string(): string {
    this.space();
    const from = this.at++;
    for (; this.text[this.at] !== '"'; this.at++) if (this.text[this.at] === "\\") this.at++;
    const text: string = JSON.parse(this.text.slice(from, ++this.at));
    if (/\p{Surrogate}/u.test(text)) throw new SyntaxError("half a surrogate pair, which is no Unicode");
    return text;
  }

  private list<T, R>(end: string, item: () => T, finish: (items: T[]) => R): R {
    const items: T[] = [];
    this.at++;
    for (this.space(); this.text[this.at] !== end; this.space()) {
      if (this.text[this.at] === ",") this.at++;
      else items.push(item());
    }
    this.at++;
    return finish(items);
  }
}

class Pairs {
  constructor(readonly pairs: (readonly [string, unknown])[]) {}
  get(key: string): unknown {
    return this.pairs.find(([name]) => name === key)?.[1];
  }
  get keys(): string[] {
    return this.pairs.map(([name]) => name);
  }
  get unique(): boolean {
    return new Set(this.keys).size === this.keys.length;
  }
}

/** What the format says of these bytes: the tensors, or a text that says what it forbids. */
function judge(bytes: Buffer): Map<string, Placed> | string {
  if (bytes.length < 8) return "no header length";
  const length = bytes.readBigUInt64LE(0);
  if (length > BigInt(MAX_HEADER) || length > BigInt(bytes.length - 8)) return "header length";
  const start = 8 + Number(length);
  let text: string;
  let header: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes.subarray(8, start));
    if (text[0] !== "{") return "does not begin with {";
    header = Json.parse(text);
  } catch (error) {
    return `no JSON: ${error}`;
  }
  if (!(header instanceof Pairs)) return "no object";
  if (!header.unique) return "a key twice";
  const tensors = new Map<string, Placed>();
  for (const [name, entry] of header.pairs) {
    if (!(entry instanceof Pairs) || !entry.unique) return `${name} is no object`;
    if (name === "__metadata__") {
      if (entry.pairs.some(([, value]) => typeof value !== "string")) return "metadata that is no text";
      continue;
    }
    if (["dtype", "shape", "data_offsets"].some((key) => !entry.keys.includes(key))) return `a key is missing: ${name}`;
    const [dtype, shape, offsets] = ["dtype", "shape", "data_offsets"].map((key) => entry.get(key));
    if (typeof dtype !== "string" || !Object.hasOwn(BITS, dtype)) return `dtype of ${name}`;
    const whole = (list: unknown): list is bigint[] =>
      Array.isArray(list) && list.every((n) => typeof n === "bigint" && n >= 0n && n < 2n ** 64n);
    if (!whole(shape) || !whole(offsets) || offsets.length !== 2) return `numbers of ${name}`;
    const [begin, end] = offsets;
    const bits = shape.reduce((n, size) => n * size, BigInt(BITS[dtype]));
    if (bits % 8n !== 0n || end - begin !== bits / 8n) return `size of ${name}`;
    tensors.set(name, { dtype, shape: shape.map(Number), begin: Number(begin), end: Number(end) });
  }
  let position = 0;
  for (const [name, { begin, end }] of [...tensors].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end)) {
    if (begin !== position) return `place of ${name}`;
    position = end;
  }
  return position === bytes.length - start ? tensors : "bytes that belong to no tensor";
}

/** One element as a number, for the types whose reading needs no table. */
function element(view: DataView, dtype: string, i: number): number | undefined {
  switch (dtype) {
    case "F32":
      return view.getFloat32(4 * i, true);
    case "F64":
      return Math.fround(view.getFloat64(8 * i, true));
    case "BF16": {
      const out = new DataView(new ArrayBuffer(4));
      out.setUint32(0, view.getUint16(2 * i, true) << 16);
      return out.getFloat32(0);
    }
    case "U8":
      return view.getUint8(i);
    case "I8":
      return view.getInt8(i);
    case "I32":
      return Math.fround(view.getInt32(4 * i, true));
    case "I64":
      return Math.fround(Number(view.getBigInt64(8 * i, true)));
    case "BOOL":
      return view.getUint8(i) ? 1 : 0;
    default:
      return undefined;
  }
}

/** Reads all of an open file and compares it with what the bytes say. */
export async function compare(file: SafetensorsFile | TensorFile, bytes: Buffer): Promise<void> {
  const expected = judge(bytes);
  must(typeof expected !== "string", () => `read a file that the format forbids: ${expected}`);
  must([...file.tensors.keys()].sort().join("\n") === [...expected.keys()].sort().join("\n"), () => "other tensors");
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  for (const [name, { dtype, shape, begin, end }] of expected) {
    const entry = file.tensors.get(name);
    must(entry?.dtype === dtype && entry.shape.join() === shape.join(), () => `another dtype or shape of ${name}`);
    if (end - begin > 1 << 16) continue;
    const raw = bytes.subarray(start + begin, start + end);
    must(Buffer.compare(await file.read(name), raw) === 0, () => `other bytes of ${name}`);
    const view = new DataView(raw.buffer, raw.byteOffset, raw.length);
    if (raw.length === 0 || element(view, dtype, 0) === undefined) continue;
    const values = await file.readF32(name);
    for (const [i, value] of values.entries()) {
      must(Object.is(value, element(view, dtype, i)), () => `${name}[${i}] is read as ${value}`);
    }
  }
}

type Header = Record<string, unknown>;

/** A file of the given header, and data behind it. */
export function fileOf(header: string, data: Uint8Array, length = Buffer.byteLength(header)): Buffer {
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt.asUintN(64, BigInt(length)));
  return Buffer.concat([prefix, Buffer.from(header), data]);
}

export function splitFile(bytes: Buffer): { header: Header; data: Buffer } {
  const end = 8 + Number(bytes.readBigUInt64LE(0));
  return { header: JSON.parse(bytes.toString("utf8", 8, end)), data: bytes.subarray(end) };
}

const WORDS = [...Object.keys(BITS), "F128", "f32", "__metadata__", "dtype", "shape", "data_offsets", "format", "pt"];

/** A file with a header changed in its sense: still JSON, most often. */
export function mutateHeader(random: Random, bytes: Buffer): Buffer {
  const { header, data } = splitFile(bytes);
  const changed = mutateJson(random, header, WORDS);
  let text = JSON.stringify(changed);
  if (random.chance(0.3))
    text = text.replace(/^\{/, random.pick(["{ ", "{\n", " {", '{"__metadata__":{},', '{"a":1,']));
  if (random.chance(0.1))
    text = text.replace(/\d+/, (n) => random.pick([`${n}.0`, `${n}e0`, `0${n}`, `-${n}`, `${n}${n}`]));
  if (random.chance(0.1)) text = changeText(random, text);
  if (random.chance(0.3)) text += " ".repeat(random.below(9));
  const length = random.chance(0.95) ? undefined : random.edge();
  const rest = random.chance(0.9) ? data : mutateBytes(random, data);
  return fileOf(text, rest, length === undefined || !Number.isFinite(length) ? undefined : length);
}

export async function seedFiles(folder: string): Promise<Buffer[]> {
  const tensor = (name: string, dtype: string, shape: number[]) => {
    const size = (shape.reduce((n, d) => n * d, 1) * BITS[dtype]) / 8;
    const data = Uint8Array.from({ length: size }, (_, i) => (i * 37 + name.length) & 255);
    return { name, dtype, shape, data } as Parameters<typeof writeSafetensors>[1] extends Iterable<infer T> ? T : never;
  };
  const sets = [
    [],
    [tensor("a", "F32", [2, 3])],
    [tensor("scalar", "F64", []), tensor("none", "F32", [0, 4]), tensor("x.weight", "BF16", [3, 2, 1])],
    ["U8", "I8", "BOOL", "I32", "I64", "F16", "F8_E4M3", "F8_E5M2", "U16"].map((dtype) =>
      tensor(`t.${dtype}`, dtype, [4]),
    ),
  ];
  const files: Buffer[] = [];
  for (const [i, set] of sets.entries()) {
    const path = join(folder, `seed-${i}.safetensors`);
    await writeSafetensors(path, set, i % 2 ? { format: "pt", text: "é" } : {});
    files.push(readFileSync(path));
  }
  return files;
}

export const safetensors: Target = {
  name: "safetensors",
  about: "single safetensors files, against an oracle written from the format's description",
  weight: 20,
  async setup(folder) {
    const seeds = await seedFiles(folder);
    const path = join(folder, "case.safetensors");
    return async (random) => {
      const seed = random.pick(seeds);
      const kind = random.below(20);
      const bytes =
        kind < 11
          ? mutateHeader(random, seed)
          : kind < 19
            ? mutateBytes(random, seed, seeds)
            : fileOf(JSON.stringify(anyJson(random, 4)), random.bytes(random.below(32)));
      writeFileSync(path, bytes);
      const open = random.chance(0.7) ? readSafetensors : openTensorFile;
      let file: TensorFile;
      try {
        file = await open(path);
      } catch (error) {
        const verdict = judge(bytes);
        must(typeof verdict === "string" || open === openTensorFile, () => `a good file was refused: ${error}`);
        throw error;
      }
      try {
        await compare(file, bytes);
      } finally {
        await file.close();
      }
    };
  },
};
