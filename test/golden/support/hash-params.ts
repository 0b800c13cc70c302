/** Parameters made from their names, for fixtures with `params: hash`: FNV-1a seeds a splitmix64 stream per key. */

interface Word64 {
  hi: number;
  lo: number;
}

const GAMMA: Word64 = { hi: 0x9e3779b9, lo: 0x7f4a7c15 };

/** FNV-1a, 64 bit, of the UTF-8 bytes of `text`. */
function fnv1a(text: string): Word64 {
  let hash = 0xcbf29ce484222325n;
  for (const byte of new TextEncoder().encode(text)) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
  return { hi: Number(hash >> 32n), lo: Number(hash & 0xffffffffn) };
}

/** The high word of the 64-bit product of two unsigned 32-bit words. */
function mulHigh(a: number, b: number): number {
  const al = a & 0xffff;
  const ah = a >>> 16;
  const bl = b & 0xffff;
  const bh = b >>> 16;
  const middle = ah * bl + ((al * bl) >>> 16);
  const carry = al * bh + (middle & 0xffff);
  return (ah * bh + Math.floor(middle / 65536) + Math.floor(carry / 65536)) >>> 0;
}

/**
 * The first `count` draws of the stream of `key`, uniform in [-1, 1). A hundred million of them are needed at times, so
 * the 64-bit arithmetic is done in two words rather than in BigInt.
 */
export function hashUniform(key: string, count: number): Float64Array {
  const result = new Float64Array(count);
  let { hi, lo } = fnv1a(key);
  for (let i = 0; i < count; i++) {
    const sum = lo + GAMMA.lo;
    hi = (hi + GAMMA.hi + (sum > 0xffffffff ? 1 : 0)) >>> 0;
    lo = sum >>> 0;
    // z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9
    let zl = (lo ^ ((lo >>> 30) | (hi << 2))) >>> 0;
    let zh = (hi ^ (hi >>> 30)) >>> 0;
    zh = (mulHigh(zl, 0x1ce4e5b9) + Math.imul(zl, 0xbf58476d) + Math.imul(zh, 0x1ce4e5b9)) >>> 0;
    zl = Math.imul(zl, 0x1ce4e5b9) >>> 0;
    // z = (z ^ z >> 27) * 0x94d049bb133111eb
    zl = (zl ^ ((zl >>> 27) | (zh << 5))) >>> 0;
    zh = (zh ^ (zh >>> 27)) >>> 0;
    zh = (mulHigh(zl, 0x133111eb) + Math.imul(zl, 0x94d049bb) + Math.imul(zh, 0x133111eb)) >>> 0;
    // The top 24 bits of z ^ z >> 31; the shifted word does not reach the low one's part of them.
    result[i] = (2 * ((zh ^ (zh >>> 31)) >>> 8)) / 2 ** 24 - 1;
  }
  return result;
}

/** The values of parameter `key`, scaled by its name and shape. */
export function hashParameter(key: string, shape: readonly number[]): Float32Array {
  const size = shape.reduce((n, d) => n * d, 1);
  if (key.endsWith("timestep_scale_multiplier")) return new Float32Array(size).fill(1000);
  const [scale, offset] = affineOf(key, shape);
  const absolute = key.endsWith("running_var");
  const draws = hashUniform(key, size);
  const values = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const value = offset + scale * draws[i];
    values[i] = absolute ? Math.abs(value) + 0.5 : value;
  }
  return values;
}

function affineOf(key: string, shape: readonly number[]): [scale: number, offset: number] {
  if (key.endsWith("scale_shift_table")) return [0.3, 0];
  if (shape.length >= 2) return [Math.sqrt(3 / shape.slice(1).reduce((n, d) => n * d, 1)), 0];
  return [0.1, key.endsWith("weight") ? 1 : 0];
}
