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
      return Float32Array.from(new Float64Array(buffer, byteOffset, count));
    case "I64":
      return Float32Array.from(new BigInt64Array(buffer, byteOffset, count), Number);
    case "U64":
      return Float32Array.from(new BigUint64Array(buffer, byteOffset, count), Number);
    case "I32":
      return Float32Array.from(new Int32Array(buffer, byteOffset, count));
    case "U32":
      return Float32Array.from(new Uint32Array(buffer, byteOffset, count));
    case "I16":
      return Float32Array.from(new Int16Array(buffer, byteOffset, count));
    case "U16":
      return Float32Array.from(new Uint16Array(buffer, byteOffset, count));
    case "I8":
      return Float32Array.from(new Int8Array(buffer, byteOffset, count));
    case "U8":
    case "BOOL":
      return Float32Array.from(bytes);
    default:
      return undefined;
  }
}

function lookUp(patterns: Uint16Array | Uint8Array, table: Float32Array): Float32Array {
  const out = new Float32Array(patterns.length);
  for (let i = 0; i < patterns.length; i++) out[i] = table[patterns[i]];
  return out;
}
