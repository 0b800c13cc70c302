import { LtxError } from "../errors.js";

/** How a model's weights are stored (for the Initializer), and what it computes in. */
export interface PrecisionDtypes {
  weights: "f32" | "bf16";
  computeDtype: "f32" | "bf16";
}

/** By the values of `precision` in the official configurations, and plain f32. */
const known: Record<string, PrecisionDtypes> = {
  float32: { weights: "f32", computeDtype: "f32" },
  mixed_precision: { weights: "f32", computeDtype: "bf16" },
  bfloat16: { weights: "bf16", computeDtype: "bf16" },
};

/**
 * What a `precision` of the official configurations means here.
 * @throws {LtxError} `unavailable` for float8_e4m3fn, which would multiply in fp8; `config` for any other name.
 */
export function precisionDtypes(precision: string): PrecisionDtypes {
  if (precision === "float8_e4m3fn") {
    throw new LtxError(
      "unavailable",
      "[precision] float8_e4m3fn keeps weights in fp8, and no device has kernels for that yet: use precision: bfloat16, " +
        "for which the weights of an fp8 checkpoint are widened as they are loaded",
    );
  }
  if (Object.hasOwn(known, precision)) return known[precision];
  const names = [...Object.keys(known), "float8_e4m3fn"].join(", ");
  throw new LtxError("config", `[precision] unknown precision ${JSON.stringify(precision)}: expected one of ${names}`);
}
