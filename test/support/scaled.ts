/** Files of 8-bit weights with scales, and the numbers that they stand for by the definition of the type. */
import type { SafetensorsDtype, SafetensorsTensor } from "../../lib/formats/safetensors.js";

/** The number of a float8_e4m3fn code. */
export function e4m3(code: number): number {
  const [sign, exponent, mantissa] = [code & 0x80 ? -1 : 1, (code >> 3) & 15, code & 7];
  return sign * (exponent === 0 ? mantissa * 2 ** -9 : (1 + mantissa / 8) * 2 ** (exponent - 7));
}

/** Codes without the two NaNs, others for every seed. */
export const codes = (count: number, seed: number): Uint8Array =>
  Uint8Array.from({ length: count }, (_, i) => {
    const code = (i * 31 + seed * 17 + 5) % 256;
    return (code & 0x7f) === 0x7f ? 0x3c : code;
  });

export const floats = (values: readonly number[]): Uint8Array => new Uint8Array(Float32Array.from(values).buffer);

export const json = (name: string, value: unknown): SafetensorsTensor => {
  const data = new Uint8Array(Buffer.from(JSON.stringify(value)));
  return { name, dtype: "U8", shape: [data.length], data };
};

export const float = (name: string, values: readonly number[], shape: readonly number[] = []): SafetensorsTensor => ({
  name,
  dtype: "F32",
  shape,
  data: floats(values),
});

export const bare = (name: string, dtype: SafetensorsDtype, shape: readonly number[]): SafetensorsTensor => {
  const width = { F32: 4, I32: 4, BF16: 2, F16: 2 } as Record<string, number>;
  return { name, dtype, shape, data: new Uint8Array(shape.reduce((n, d) => n * d, 1) * (width[dtype] ?? 1)) };
};

/**
 * A tensor's codes and its scale, and the float32 numbers that they come to.
 * @param rows whether each row has a scale of its own
 */
export function scaledWeight(name: string, shape: readonly number[], seed: number, rows = false) {
  const data = codes(
    shape.reduce((n, d) => n * d, 1),
    seed,
  );
  const scales = Array.from({ length: rows ? shape[0] : 1 }, (_, i) => Math.fround((seed + 1 + i) / 777));
  const row = data.length / scales.length;
  const values = Float32Array.from(data, (code, i) => e4m3(code) * scales[Math.floor(i / row)]);
  return { weight: { name, dtype: "F8_E4M3", shape, data } as SafetensorsTensor, scales, values };
}
