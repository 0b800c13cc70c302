/** A LoRA in the spelling of another program, as strong as it was. */
import type { SafetensorsDtype } from "../formats/dtypes.js";
import { LORA_PREFIX, renameTransformerKey, type Spelling } from "../formats/official/keys.js";
import type { Lora, LoraFactors } from "../formats/official/lora.js";
import { readMatrices, readMatrix } from "../formats/official/lora-merge.js";
import { ADAPTER_METADATA } from "../formats/official/lora-scale.js";
import type { SafetensorsTensor } from "../formats/safetensors.js";
import { type FloatDtype, rounded } from "./convert-tensors.js";
import type { Part } from "./write-model.js";

const DTYPES = { f32: "F32", bf16: "BF16", f16: "F16" } as const;

/**
 * A LoRA's file. Its scale, where it isn't 1, goes where the program looks that reads the spelling: diffusers into the
 * metadata, ComfyUI to a number beside the matrices.
 */
export function loraPart(
  lora: Lora,
  spelling: Spelling,
  dtype: Exclude<FloatDtype, "fp8"> | undefined,
): Omit<Part, "name"> {
  const modules = [...lora.factors].map(([key, factors]) => ({
    name: renameTransformerKey(key, spelling).slice(0, -".weight".length),
    factors,
    alpha: factors.scale * ranksOf(lora, factors).rank,
  }));
  const tensors = modules.flatMap(({ name, factors, alpha }): SafetensorsTensor[] => {
    const before = LORA_PREFIX[spelling] + name;
    const scaled = spelling === "official" && factors.scale !== 1;
    return [
      ...matrices(lora, factors, before, dtype && DTYPES[dtype]),
      ...(scaled ? [number(`${before}.alpha`, alpha)] : []),
    ];
  });
  const { [ADAPTER_METADATA]: _, ...metadata } = lora.file.metadata;
  if (
    spelling === "official" ||
    modules.every(({ factors }) => factors.scale === 1 && factors.rank === modules[0].factors.rank)
  )
    return { tensors, metadata };
  return { tensors, metadata: { ...metadata, [ADAPTER_METADATA]: adapterMetadata(lora, modules) } };
}

/** The rank with a middle matrix multiplied into the one below, and what becomes of that. */
function ranksOf(lora: Lora, { mid, rank }: LoraFactors): { rank: number } {
  return { rank: mid === undefined ? rank : (lora.file.tensors.get(mid)?.shape[0] as number) };
}

function matrices(
  lora: Lora,
  factors: LoraFactors,
  before: string,
  dtype: "F32" | "BF16" | "F16" | undefined,
): SafetensorsTensor[] {
  const { rank } = ranksOf(lora, factors);
  const [outputs, inputs] = factors.shape;
  const one = (half: "down" | "up", letter: "A" | "B", shape: readonly number[]): SafetensorsTensor => {
    const own = lora.file.tensors.get(factors[half])?.dtype as SafetensorsDtype;
    // A product has more digits than its factors.
    const type = dtype ?? (factors.mid !== undefined && half === "down" ? "F32" : own);
    const data = async () => {
      const folded = half === "down" && factors.mid !== undefined;
      const values = folded ? (await readMatrices(lora, factors)).down : await readMatrix(lora, factors[half]);
      return type === own && !folded ? lora.file.read(factors[half]) : rounded(values, factors[half], type as "F32");
    };
    return { name: `${before}.lora_${letter}.weight`, dtype: type, shape, data };
  };
  return [one("down", "A", [rank, inputs]), one("up", "B", [outputs, rank])];
}

/** A scalar: in float32, or as a double where that would change it. */
function number(name: string, value: number): SafetensorsTensor {
  const exact = Math.fround(value) === value;
  const data = Buffer.alloc(exact ? 4 : 8);
  if (exact) data.writeFloatLE(value);
  else data.writeDoubleLE(value);
  return { name, dtype: exact ? "F32" : "F64", shape: [], data };
}

interface Module {
  name: string;
  factors: LoraFactors;
  alpha: number;
}

/** What diffusers hands to PEFT: the rank and alpha that most modules have, and by name those of the others. */
function adapterMetadata(lora: Lora, modules: readonly Module[]): string {
  const own = modules.map(({ name, factors, alpha }) => ({ name, alpha, rank: ranksOf(lora, factors).rank }));
  const r = commonest(own.map(({ rank }) => rank));
  const alpha = commonest(own.map((module) => module.alpha));
  const others = (of: (module: (typeof own)[number]) => number, usual: number) =>
    Object.fromEntries(own.filter((module) => of(module) !== usual).map((module) => [module.name, of(module)]));
  const config = {
    alpha_pattern: others((module) => module.alpha, alpha),
    bias: "none",
    lora_alpha: alpha,
    peft_type: "LORA",
    r,
    rank_pattern: others((module) => module.rank, r),
    target_modules: own.map(({ name }) => name).sort(),
    use_dora: false,
    use_rslora: false,
  };
  return JSON.stringify(
    Object.fromEntries(Object.entries(config).map(([key, value]) => [`transformer.${key}`, value])),
  );
}

function commonest(values: readonly number[]): number {
  const counts = new Map<number, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].reduce((best, next) => (next[1] > best[1] ? next : best))[0];
}
