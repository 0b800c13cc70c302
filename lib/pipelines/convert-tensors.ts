/** Tensors of one file as another is to hold them: renamed, and their floats of another type. */
import { check } from "../errors.js";
import { fromFloat32, isFloat, type RoundedDtype, type SafetensorsDtype, toFloat32 } from "../formats/dtypes.js";
import { isFp8Weight } from "../formats/official/keys.js";
import type { SafetensorsTensor } from "../formats/safetensors.js";
import type { TensorFile } from "../formats/tensor-file.js";

const DTYPES = { f32: "F32", bf16: "BF16", f16: "F16" } as const;
/**
 * What floats may be converted to. `fp8` is that of the official files of the name: float8_e4m3fn for the weights of a
 * transformer's blocks, bf16 for all else.
 */
export type FloatDtype = keyof typeof DTYPES | "fp8";

/** The largest number of each type, and its name in messages. */
const RANGES: Record<RoundedDtype, readonly [name: string, largest: number]> = {
  F32: ["f32", 3.4028234663852886e38],
  BF16: ["bf16", 3.3895313892515355e38],
  F16: ["f16", 65504],
  F8_E4M3: ["float8_e4m3fn", 448],
};

/** What is noticed about values while they are written. */
export class Findings {
  private readonly broken: string[] = [];

  /** Notes values that are not numbers. */
  look(name: string, values: Float32Array): void {
    let [nan, infinite] = [0, 0];
    for (let i = 0; i < values.length; i++) {
      if (values[i] - values[i] === 0) continue;
      if (Number.isNaN(values[i])) nan++;
      else infinite++;
    }
    const found = [nan > 0 ? `${nan} NaN` : "", infinite > 0 ? `${infinite} infinite` : ""].filter(Boolean);
    if (found.length > 0) this.broken.push(`"${name}" (${found.join(" and ")} of ${values.length})`);
  }

  notices(): string[] {
    if (this.broken.length === 0) return [];
    const more = this.broken.length > 3 ? ` and ${this.broken.length - 3} more tensors` : "";
    return [
      `values that are not finite were kept: ${this.broken.slice(0, 3).join(", ")}${more}. A model can't work with them`,
    ];
  }
}

interface Options {
  dtype?: FloatDtype;
  rename?: (name: string) => string;
  findings?: Findings;
}

/** A file's tensors as they are to be written: under other names, its floats of another type if one is given. */
export function tensorsFrom(file: TensorFile, options: Options = {}): SafetensorsTensor[] {
  const { dtype, rename = (name: string) => name, findings } = options;
  return [...file.tensors].map(([name, { dtype: own, shape }]) => {
    const type = dtype && isFloat(own) ? typeOf(name, shape, dtype) : own;
    return { name: rename(name), dtype: type, shape, data: () => read(file, name, type, findings) };
  });
}

function typeOf(name: string, shape: readonly number[], dtype: FloatDtype): RoundedDtype {
  if (dtype !== "fp8") return DTYPES[dtype];
  return isFp8Weight(name, shape) ? "F8_E4M3" : "BF16";
}

async function read(
  file: TensorFile,
  name: string,
  dtype: SafetensorsDtype,
  findings: Findings | undefined,
): Promise<Uint8Array> {
  if (file.tensors.get(name)?.dtype === dtype) {
    const bytes = await file.read(name);
    const values = findings && isFloat(dtype) ? toFloat32(bytes, dtype) : undefined;
    if (values) findings?.look(name, values);
    return bytes;
  }
  const values = await file.readF32(name);
  findings?.look(name, values);
  return rounded(values, name, dtype as RoundedDtype);
}

/** Values as bytes of a type. @throws LtxError `dtype_mismatch`, counting the values that are beyond its range */
export function rounded(values: Float32Array, name: string, dtype: RoundedDtype): Uint8Array {
  const bytes = fromFloat32(values, dtype);
  check(bytes !== undefined, "dtype_mismatch", () => {
    const [type, end] = RANGES[dtype];
    let [count, largest] = [0, 0];
    for (const value of values) {
      const beyond = Math.abs(value) > end && fromFloat32(Float32Array.of(value), dtype) === undefined;
      if (!beyond) continue;
      count++;
      largest = Math.max(largest, Math.abs(value));
    }
    return `[convert] tensor "${name}" has ${count} of ${values.length} values beyond the range of ${type}, which ends at ${end} (the largest is ${largest.toPrecision(4)}): use ${dtype === "BF16" ? "f32" : "bf16 or f32"}`;
  });
  return bytes;
}
