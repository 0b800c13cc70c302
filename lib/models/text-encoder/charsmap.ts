import { check } from "../../errors.js";

/** A unit of the double-array trie (darts-clone): what its bits mean. */
const hasLeaf = (unit: number): boolean => ((unit >>> 8) & 1) === 1;
const payloadOf = (unit: number): number => unit & 0x7fffffff;
const labelOf = (unit: number): number => (unit & 0x800000ff) >>> 0;
const offsetOf = (unit: number): number => (unit >>> 10) << ((unit & 0x200) >>> 6);

/**
 * SentencePiece's precompiled normalization: at each place the longest byte sequence that a trie knows is replaced by a
 * text of its own, every other character stays. For T5 this is NFKC with some characters added and others removed.
 *
 * Layout of `charsmap`: the trie's size in bytes (u32), its units (u32 each), then the replacements, each ended by a 0;
 * all little-endian.
 */
export class Charsmap {
  private readonly units: Uint32Array;
  private readonly texts: Buffer;

  /** @throws {LtxError} `file_format` when the sizes in it don't fit. */
  constructor(charsmap: Uint8Array, name = "tokenizer") {
    const view = new DataView(charsmap.buffer, charsmap.byteOffset, charsmap.byteLength);
    const trieBytes = charsmap.length >= 4 ? view.getUint32(0, true) : 0;
    check(trieBytes > 0 && trieBytes % 4 === 0 && 4 + trieBytes <= charsmap.length, "file_format", () => {
      return `[tokenizer] ${name}: the normalization table of ${charsmap.length} bytes names a trie of ${trieBytes}: damaged`;
    });
    this.units = Uint32Array.from({ length: trieBytes / 4 }, (_, i) => view.getUint32(4 + 4 * i, true));
    this.texts = Buffer.from(charsmap.subarray(4 + trieBytes));
  }

  normalize(text: string): string {
    const bytes = Buffer.from(text, "utf8");
    const parts: Buffer[] = [];
    for (let at = 0; at < bytes.length; ) {
      const match = this.longestMatch(bytes, at);
      const end = match ? match.end : at + characterBytes(bytes[at]);
      parts.push(match ? this.replacement(match.value) : bytes.subarray(at, end));
      at = end;
    }
    return Buffer.concat(parts).toString("utf8");
  }

  private longestMatch(bytes: Uint8Array, start: number): { value: number; end: number } | null {
    const { units } = this;
    let best: { value: number; end: number } | null = null;
    let node = offsetOf(units[0]);
    for (let i = start; i < bytes.length; i++) {
      node ^= bytes[i];
      const unit = units[node];
      if (unit === undefined || labelOf(unit) !== bytes[i]) break;
      node ^= offsetOf(unit);
      if (hasLeaf(unit)) best = { value: payloadOf(units[node] ?? 0), end: i + 1 };
    }
    return best;
  }

  private replacement(start: number): Buffer {
    const end = this.texts.indexOf(0, start);
    return this.texts.subarray(start, end < 0 ? this.texts.length : end);
  }
}

/** How many bytes the UTF-8 character that starts with `first` has. */
const characterBytes = (first: number): number => (first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4);
