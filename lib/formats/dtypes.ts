/** The element types of safetensors files, with their sizes, and conversion to float32. */

/** Bits of one element, by the names of the safetensors format. */
export const DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
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
} as const;

export type SafetensorsDtype = keyof typeof DTYPE_BITS;

export function isDtype(name: unknown): name is SafetensorsDtype {
  return typeof name === "string" && Object.hasOwn(DTYPE_BITS, name);
}

/**
 * The value of a small binary float: sign, `exponentBits` with the given bias, `mantissaBits`, and IEEE infinities and
 * NaNs in the top exponent unless `finite`, where only the all-ones pattern is NaN (the OCP "FN" convention).
 */
function decodeFloat(bits: number, exponentBits: number, mantissaBits: number, bias: number, finite = false): number {
  const exponentMask = 2 ** exponentBits - 1;
  const mantissaMask = 2 ** mantissaBits - 1;
  const sign = (bits >>> (exponentBits + mantissaBits)) & 1 ? -1 : 1;
  const exponent = (bits >>> mantissaBits) & exponentMask;
  const mantissa = bits & mantissaMask;
  if (exponent === exponentMask && (!finite || mantissa === mantissaMask)) {
    return mantissa === 0 ? sign * Infinity : NaN;
  }
  const scale = 2 ** (Math.max(exponent, 1) - bias - mantissaBits);
  return sign * scale * (exponent === 0 ? mantissa : mantissa + 2 ** mantissaBits);
}

/** All values of an 8- or 16-bit float type, computed at its first use. */
function lazyTable(bits: number, decode: (pattern: number) => number): () => Float32Array {
  let table: Float32Array | undefined;
  return () => {
    table ??= Float32Array.from({ length: 2 ** bits }, (_, pattern) => decode(pattern));
    return table;
  };
}

const f16Table = lazyTable(16, (bits) => decodeFloat(bits, 5, 10, 15));
const e5m2Table = lazyTable(8, (bits) => decodeFloat(bits, 5, 2, 15));
const e4m3Table = lazyTable(8, (bits) => decodeFloat(bits, 4, 3, 7, true));

/**
 * The little-endian elements of `bytes` as float32, rounded to nearest where the type is wider; undefined for types
 * that have no such reading here. `bytes` must start at a multiple of 8 in its buffer. F32 is a view, not a copy.
 */
export function toFloat32(bytes: Uint8Array, dtype: SafetensorsDtype): Float32Array | undefined {
  const { buffer, byteOffset } = bytes;
  const count = (bytes.byteLength * 8) / DTYPE_BITS[dtype];
  switch (dtype) {
    case "F32":
      return new Float32Array(buffer, byteOffset, count);
    case "BF16": {
      // bfloat16 is the upper half of float32.
      const words = new Uint32Array(count);
      const halves = new Uint16Array(buffer, byteOffset, count);
      for (let i = 0; i < count; i++) words[i] = halves[i] << 16;
      return new Float32Array(words.buffer);
    }
    case "F16":
      return lookUp(new Uint16Array(buffer, byteOffset, count), f16Table());
    case "F8_E4M3":
      return lookUp(bytes, e4m3Table());
    case "F8_E5M2":
      return lookUp(bytes, e5m2Table());
    case "F64":
      return new Float32Array(new Float64Array(buffer, byteOffset, count));
    case "I64":
      return numbers(new BigInt64Array(buffer, byteOffset, count));
    case "U64":
      return numbers(new BigUint64Array(buffer, byteOffset, count));
    case "I32":
      return new Float32Array(new Int32Array(buffer, byteOffset, count));
    case "U32":
      return new Float32Array(new Uint32Array(buffer, byteOffset, count));
    case "I16":
      return new Float32Array(new Int16Array(buffer, byteOffset, count));
    case "U16":
      return new Float32Array(new Uint16Array(buffer, byteOffset, count));
    case "I8":
      return new Float32Array(new Int8Array(buffer, byteOffset, count));
    case "U8":
      return new Float32Array(bytes);
    case "BOOL":
      return new Float32Array(bytes.map((byte) => (byte === 0 ? 0 : 1)));
    default:
      return undefined;
  }
}

function numbers(values: BigInt64Array | BigUint64Array): Float32Array {
  const result = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) result[i] = Number(values[i]);
  return result;
}

function lookUp(patterns: Uint16Array | Uint8Array, table: Float32Array): Float32Array {
  const out = new Float32Array(patterns.length);
  for (let i = 0; i < patterns.length; i++) out[i] = table[patterns[i]];
  return out;
}

/** Whether a type holds floats of at least 8 bits, which float32 can stand for. */
export function isFloat(dtype: SafetensorsDtype): boolean {
  return ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"].includes(dtype);
}

/** The place of the first NaN or infinity, or -1. */
export function firstNonFinite(values: Float32Array): number {
  // A loop, since weights have hundreds of millions of elements.
  for (let i = 0; i < values.length; i++) if (values[i] - values[i] !== 0) return i;
  return -1;
}

/** What floats can be rounded to. */
export type RoundedDtype = "F32" | "BF16" | "F16" | "F8_E4M3";

/**
 * Values as little-endian bytes of another float type, rounded to nearest, ties to even; NaN stays NaN. Undefined where
 * a finite value is beyond the range of the type, or an infinite one for F8_E4M3, which has none. F32 is a view, not a
 * copy.
 */
export function fromFloat32(values: Float32Array, dtype: RoundedDtype): Uint8Array | undefined {
  if (dtype === "F32") return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  if (dtype === "BF16") return bf16Bytes(words);
  const out = dtype === "F8_E4M3" ? new Uint8Array(values.length) : new Uint16Array(values.length);
  for (let i = 0; i < out.length; i++) {
    const pattern = smallBits(values[i], words[i], SMALL_FLOATS[dtype]);
    if (pattern === undefined) return undefined;
    out[i] = pattern;
  }
  return new Uint8Array(out.buffer);
}

/** The upper half of the bits of float32, rounded. */
function bf16Bytes(words: Uint32Array): Uint8Array | undefined {
  const out = new Uint16Array(words.length);
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    const size = word & 0x7fffffff;
    // From here on a finite number would round to infinity.
    if (size >= 0x7f7f8000 && size < 0x7f800000) return undefined;
    out[i] = size > 0x7f800000 ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return new Uint8Array(out.buffer);
}

interface SmallFloat {
  sign: number;
  mantissaBits: number;
  /** Of the smallest normal number, and of the largest. */
  exponents: readonly [least: number, most: number];
  /** The pattern of the largest finite number; those of infinity, where there is one, and of NaN. */
  finite: number;
  infinity?: number;
  nan: number;
}

const SMALL_FLOATS: Record<"F16" | "F8_E4M3", SmallFloat> = {
  F16: { sign: 0x8000, mantissaBits: 10, exponents: [-14, 15], finite: 0x7bff, infinity: 0x7c00, nan: 0x7e00 },
  F8_E4M3: { sign: 0x80, mantissaBits: 3, exponents: [-6, 8], finite: 0x7e, nan: 0x7f },
};

function smallBits(value: number, word: number, kind: SmallFloat): number | undefined {
  const { mantissaBits, finite, infinity, nan } = kind;
  const [least, most] = kind.exponents;
  const sign = word >>> 31 ? kind.sign : 0;
  if (Number.isNaN(value)) return sign | nan;
  if (!Number.isFinite(value)) return infinity === undefined ? undefined : sign | infinity;
  // Below the normal numbers the steps stay as they are, above they grow with the exponent; the bits of larger numbers
  // follow on smaller ones'.
  const exponent = Math.max(((word >>> 23) & 0xff) - 127, least);
  if (exponent > most) return undefined;
  const pattern = ((exponent - least) << mantissaBits) + roundToEven(Math.abs(value) / 2 ** (exponent - mantissaBits));
  return pattern > finite ? undefined : sign | pattern;
}

function roundToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}
