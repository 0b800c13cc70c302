/** Changes to bytes, texts and JSON values. */
import type { Random } from "./random.js";

const MAX_BYTES = 1 << 20;

/** `bytes` after one to four changes; `others` are files of the same kind to take parts from. */
export function mutateBytes(random: Random, bytes: Uint8Array, others: readonly Uint8Array[] = []): Buffer {
  let out: Buffer = Buffer.from(bytes);
  for (let changes = random.chance(0.6) ? 1 : random.within(2, 4); changes > 0; changes--) {
    out = changeBytes(random, out, others);
  }
  return out.subarray(0, MAX_BYTES);
}

function changeBytes(random: Random, bytes: Buffer, others: readonly Uint8Array[]): Buffer {
  const at = random.below(bytes.length + 1);
  const length = Math.min(bytes.length - at, random.chance(0.7) ? random.within(1, 8) : random.below(bytes.length + 1));
  const [before, behind] = [bytes.subarray(0, at), bytes.subarray(at + length)];
  switch (random.below(11)) {
    case 0:
      if (at < bytes.length) bytes[at] ^= 1 << random.below(8);
      return bytes;
    case 1:
      if (at < bytes.length) bytes[at] = random.pick([0, 1, 2, 0x7f, 0x80, 0xff, random.below(256)]);
      return bytes;
    case 2:
    case 3:
      return writeInteger(random, bytes, at);
    case 4:
      return Buffer.concat([before, behind]);
    case 5:
      return Buffer.concat([bytes.subarray(0, at + length), bytes.subarray(at)]);
    case 6:
      return Buffer.concat([before, random.bytes(random.within(1, 16)), bytes.subarray(at)]);
    case 7:
      return Buffer.from(before);
    case 8: {
      const other = others.length > 0 ? random.pick(others) : bytes;
      const from = random.below(other.length + 1);
      const part = other.subarray(from, from + (random.chance(0.5) ? other.length : random.within(1, 64)));
      return Buffer.concat([before, part, behind]);
    }
    case 9:
      return changeDigits(random, bytes);
    default:
      return Buffer.concat([before, Buffer.alloc(random.within(1, 64), random.pick([0, 0x20, 0xff])), behind]);
  }
}

/** A whole number of 1, 2, 4 or 8 bytes over those at a place. */
function writeInteger(random: Random, bytes: Buffer, at: number): Buffer {
  const width = random.pick([1, 2, 4, 8]);
  if (at + width > bytes.length) return bytes;
  const value = BigInt.asUintN(64, BigInt(Math.trunc(random.edge())));
  for (let i = 0; i < width; i++) {
    bytes[at + i] = Number((value >> BigInt(8 * i)) & 255n);
  }
  if (random.chance(0.3)) bytes.subarray(at, at + width).reverse();
  return bytes;
}

/** Another number in place of one that stands in the bytes as text. */
function changeDigits(random: Random, bytes: Buffer): Buffer {
  const text = bytes.toString("latin1");
  const found = [...text.matchAll(/\d+/g)];
  if (found.length === 0) return bytes;
  const match = random.pick(found);
  const number = random.pick([
    String(random.edge()),
    "-1",
    "1e9",
    "00",
    "0x1",
    "1.5",
    "NaN",
    String(Number(match[0]) + 1),
  ]);
  const end = match.index + match[0].length;
  return Buffer.from(text.slice(0, match.index) + number + text.slice(end), "latin1");
}

const TEXTS = [
  "",
  " ",
  "0",
  "a",
  "null",
  "constructor",
  "__proto__",
  "toString",
  "../x",
  "/etc/passwd",
  "a/b",
  "\0",
  "é",
  "\ud800",
];

/** Any JSON value, small. */
export function anyJson(random: Random, depth = 2): unknown {
  switch (random.below(depth > 0 ? 12 : 10)) {
    case 0:
      return null;
    case 1:
      return random.chance(0.5);
    case 2:
    case 3:
      return random.edge();
    case 4:
      return random.edge() / random.pick([2, 3, 1000]);
    case 5:
    case 6:
      return random.pick(TEXTS);
    case 7:
      return random.pick([1e308, -1e308, 1e-320, -0, 0.1]);
    case 8:
      return "x".repeat(random.pick([1, 300, 5000]));
    case 9:
      return random.pick([[], {}]);
    case 10:
      return Array.from({ length: random.below(4) }, () => anyJson(random, depth - 1));
    default:
      return Object.fromEntries(
        Array.from({ length: random.below(4) }, () => [random.pick(TEXTS), anyJson(random, depth - 1)]),
      );
  }
}

type Json = unknown[] | Record<string, unknown>;

/** Every place in a value, as its holder and key. */
function places(value: unknown, out: [Json, string | number][] = []): [Json, string | number][] {
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return out;
  const holder = value as Json;
  for (const key of Array.isArray(holder) ? holder.keys() : Object.keys(holder)) {
    out.push([holder, key]);
    places((holder as Record<string, unknown>)[key], out);
  }
  return out;
}

/** A copy of a JSON value with one to three things changed; `words` are texts that its readers know. */
export function mutateJson<T>(random: Random, value: T, words: readonly string[] = []): unknown {
  if (random.chance(0.02)) return anyJson(random);
  const copy: unknown = structuredClone(value);
  for (let changes = random.chance(0.6) ? 1 : random.within(2, 3); changes > 0; changes--)
    changeJson(random, copy, words);
  return copy;
}

function changeJson(random: Random, root: unknown, words: readonly string[]): void {
  const all = places(root);
  if (all.length === 0) return;
  const [holder, key] = random.pick(all);
  const at = holder as Record<string | number, unknown>;
  const word = () => (words.length > 0 && random.chance(0.7) ? random.pick(words) : random.pick(TEXTS));
  switch (random.below(8)) {
    case 0:
      if (Array.isArray(holder)) holder.splice(Number(key), 1);
      else delete at[key];
      return;
    case 1: {
      const [from, other] = random.pick(all);
      at[key] = structuredClone((from as Record<string | number, unknown>)[other]);
      return;
    }
    case 2:
      if (Array.isArray(holder)) holder.splice(Number(key), 0, structuredClone(at[key]));
      else Object.defineProperty(at, word(), { value: at[key], enumerable: true, configurable: true, writable: true });
      return;
    case 3:
      at[key] = word();
      return;
    case 4:
      if (typeof at[key] === "number")
        at[key] = random.pick([-at[key], at[key] + 1, at[key] - 1, at[key] * 2, at[key] / 2, random.edge()]);
      else at[key] = random.edge();
      return;
    case 5:
      if (typeof at[key] === "string") at[key] = changeText(random, at[key], words);
      else if (typeof at[key] === "boolean") at[key] = !at[key];
      else at[key] = [at[key]];
      return;
    default:
      at[key] = anyJson(random);
  }
}

/** One part of a text left out, doubled or exchanged. */
export function changeText(random: Random, text: string, words: readonly string[] = TEXTS): string {
  const [from, length] = [random.below(text.length + 1), random.within(1, 6)];
  switch (random.below(4)) {
    case 0:
      return text.slice(0, from) + text.slice(from + length);
    case 1:
      return text.slice(0, from + length) + text.slice(from);
    case 2:
      return text.slice(0, from);
    default:
      return text.slice(0, from) + random.pick(words.length > 0 ? words : TEXTS) + text.slice(from + length);
  }
}

/** The text of a JSON value, at times with a fault in it that JSON.stringify never makes. */
export function jsonText(random: Random, value: unknown): string {
  const text = JSON.stringify(value, null, random.pick([0, 0, 1])) ?? "";
  if (random.chance(0.85)) return text;
  const faults: (() => string)[] = [
    () => changeText(random, text),
    () => `\ufeff${text}`,
    () => `${text} ${text}`,
    () => text.replace(/"([^"]*)":([^,{}[\]]*)/, (all) => `${all},${all}`),
    () => text.replace(/\d+/, () => random.pick(["01", "1.", "NaN", "Infinity", "-", "1e999", "1E5", "+1"])),
    () => "[".repeat(random.pick([10, 1000, 200_000])),
    () => text.replace(/,/, ",,"),
    () => text.slice(0, -1),
  ];
  return random.pick(faults)();
}
