/** Zip archives made with any fault, and read by the book: apart from what the readers under test use. */
import { deflateRawSync, inflateRawSync } from "node:zlib";
import { changeText, mutateBytes } from "./mutate.js";
import type { Random } from "./random.js";

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

export function crc32(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** An entry as it is to be written: what is left out is right. */
export interface Part {
  name: string;
  data: Uint8Array;
  deflate?: boolean;
  method?: number;
  flags?: number;
  crc?: number;
  size?: number;
  packed?: number;
  /** Of the local header. */
  offset?: number;
  extra?: Buffer;
  /** Sizes as zip64 has them. */
  wide?: boolean;
}

interface End {
  entries?: number;
  start?: number;
  length?: number;
  comment?: Buffer;
  zip64?: { offset?: bigint; start?: bigint; entries?: bigint } | true;
}

const u16 = (n: number) => Buffer.from([n & 255, (n >>> 8) & 255]);
const u32 = (n: number) => Buffer.concat([u16(n), u16(n >>> 16)]);
const u64 = (n: number | bigint) => {
  const out = Buffer.alloc(8);
  out.writeBigUInt64LE(BigInt.asUintN(64, BigInt(n)));
  return out;
};

/** Offsets of the entries' contents are multiples of 64 in PyTorch's archives; that takes an extra field of zeros. */
export function zipBytes(parts: readonly Part[], end: End = {}): Buffer {
  const files: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  for (const part of parts) {
    const name = Buffer.from(part.name);
    const packed = part.deflate ? deflateRawSync(part.data) : Buffer.from(part.data);
    const method = part.method ?? (part.deflate ? 8 : 0);
    const [size, stored] = [part.size ?? part.data.length, part.packed ?? packed.length];
    const wide = part.wide ? Buffer.concat([u16(1), u16(16), u64(size), u64(stored)]) : Buffer.alloc(0);
    const extra = Buffer.concat([wide, part.extra ?? Buffer.alloc(0)]);
    const sizes = part.wide ? [u32(0xffffffff), u32(0xffffffff)] : [u32(stored), u32(size)];
    const common = [
      u16(part.flags ?? 0),
      u16(method),
      u32(0),
      u32(part.crc ?? crc32(part.data)),
      ...sizes,
      u16(name.length),
    ];
    const local = [Buffer.from("PK\x03\x04"), u16(20), ...common, u16(extra.length), name, extra, packed];
    const header = [
      u16(20),
      u16(20),
      ...common,
      u16(extra.length),
      u16(0),
      u16(0),
      u16(0),
      u32(0),
      u32(part.offset ?? at),
    ];
    directory.push(Buffer.from("PK\x01\x02"), ...header, name, extra);
    files.push(...local);
    at += Buffer.concat(local).length;
  }
  const list = Buffer.concat(directory);
  const [start, length] = [end.start ?? at, end.length ?? list.length];
  const tail: Buffer[] = [];
  if (end.zip64) {
    const {
      offset = BigInt(at + list.length),
      start: own = BigInt(start),
      entries = BigInt(parts.length),
    } = end.zip64 === true ? {} : end.zip64;
    const record = [u16(45), u16(45), u32(0), u32(0), u64(entries), u64(entries), u64(length), u64(own)];
    tail.push(Buffer.from("PK\x06\x06"), u64(44), ...record, Buffer.from("PK\x06\x07"), u32(0), u64(offset), u32(1));
  }
  const short = (n: number, none: number) => (end.zip64 ? none : n);
  const count = u16(short(end.entries ?? parts.length, 0xffff));
  const comment = end.comment ?? Buffer.alloc(0);
  tail.push(Buffer.from("PK\x05\x06"), u16(0), u16(0), count, count, u32(short(length, 0xffffffff)));
  tail.push(u32(short(start, 0xffffffff)), u16(comment.length), comment);
  return Buffer.concat([...files, list, ...tail]);
}

/** The archive of these parts with one or two faults of structure, or with none. */
export function mutateZip(random: Random, parts: readonly Part[]): Buffer {
  const out = parts.map((part) => ({ ...part, deflate: random.chance(0.2) ? !part.deflate : part.deflate }));
  const end: End = random.chance(0.2) ? { zip64: true } : {};
  for (let faults = random.below(3); faults > 0 && out.length > 0; faults--) {
    const i = random.below(out.length);
    const part = out[i];
    const acts: (() => unknown)[] = [
      () => out.splice(i, 1),
      () => out.splice(i, 0, { ...part }),
      () => out.splice(0, out.length, ...random.shuffle(out)),
      () => Object.assign(part, { name: random.chance(0.5) ? random.pick(out).name : changeText(random, part.name) }),
      () => Object.assign(part, { name: random.pick(["/abs", "../up", "a\\b", "", "x/", "\0", `${part.name}/`, "é"]) }),
      () => Object.assign(part, { method: random.pick([1, 8, 9, 12, 14, 93, 99, 65535]) }),
      () => Object.assign(part, { flags: random.pick([1, 8, 9, 0x800, 0x2000, 0xffff]) }),
      () => Object.assign(part, { crc: random.chance(0.5) ? 0 : random.bits() }),
      () => Object.assign(part, { size: Math.abs(random.edge()) }),
      () => Object.assign(part, { packed: Math.abs(random.edge()) }),
      () => Object.assign(part, { offset: random.chance(0.5) ? 0 : Math.abs(random.edge()) }),
      () => Object.assign(part, { extra: random.bytes(random.below(40)) }),
      () => Object.assign(part, { wide: true }),
      () => Object.assign(part, { data: mutateBytes(random, part.data) }),
      () => Object.assign(part, { data: mutateBytes(random, part.data), crc: crc32(part.data) }),
      () => Object.assign(end, { entries: random.edge() }),
      () => Object.assign(end, { start: random.edge() }),
      () => Object.assign(end, { length: random.edge() }),
      () => Object.assign(end, { comment: random.chance(0.5) ? Buffer.from("PK\x05\x06") : random.bytes(30) }),
      () =>
        Object.assign(end, {
          zip64: { [random.pick(["offset", "start", "entries"])]: BigInt(Math.trunc(random.edge())) },
        }),
    ];
    random.pick(acts)();
  }
  return zipBytes(out, end);
}

/**
 * Entries whose contents are not what their checksum says, by name; null where the archive is built in another way than
 * this reader knows, about which it says nothing.
 */
export function wrongChecksums(bytes: Buffer, { zeroIsUnchecked = false } = {}): string[] | null {
  try {
    const end = bytes.lastIndexOf("PK\x05\x06");
    if (end < 0) return null;
    let [count, at] = [bytes.readUInt16LE(end + 10), bytes.readUInt32LE(end + 16)];
    if (count === 0xffff || at === 0xffffffff) {
      const record = Number(bytes.readBigUInt64LE(end - 20 + 8));
      [count, at] = [Number(bytes.readBigUInt64LE(record + 32)), Number(bytes.readBigUInt64LE(record + 48))];
    }
    const wrong: string[] = [];
    for (let i = 0; i < count; i++) {
      if (bytes.readUInt32LE(at) !== 0x02014b50) return null;
      const [method, crc] = [bytes.readUInt16LE(at + 10), bytes.readUInt32LE(at + 16)];
      let [packed, size] = [bytes.readUInt32LE(at + 20), bytes.readUInt32LE(at + 24)];
      const [nameLength, extraLength, commentLength] = [28, 30, 32].map((k) => bytes.readUInt16LE(at + k));
      const name = bytes.toString("utf8", at + 46, at + 46 + nameLength);
      if (packed === 0xffffffff || size === 0xffffffff) {
        const extra = at + 46 + nameLength;
        if (bytes.readUInt16LE(extra) !== 1 || bytes.readUInt16LE(extra + 2) !== 16) return null;
        [size, packed] = [Number(bytes.readBigUInt64LE(extra + 4)), Number(bytes.readBigUInt64LE(extra + 12))];
      }
      const local = bytes.readUInt32LE(at + 42);
      const start = local + 30 + bytes.readUInt16LE(local + 26) + bytes.readUInt16LE(local + 28);
      const stored = bytes.subarray(start, start + packed);
      const contents = method === 8 ? inflateRawSync(stored, { maxOutputLength: 1 << 26 }) : stored;
      if (contents.length !== size || (crc32(contents) !== crc && !(zeroIsUnchecked && crc === 0))) wrong.push(name);
      at += 46 + nameLength + extraLength + commentLength;
    }
    return wrong;
  } catch {
    return null;
  }
}
