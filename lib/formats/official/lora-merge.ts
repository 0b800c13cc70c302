/** Adding LoRAs to the weights of a transformer: as its file is read, or once it is loaded. */
import { check } from "../../errors.js";
import { type Module, Parameter } from "../../nn/index.js";
import { axpby, linear, reshape, transpose } from "../../ops/index.js";
import { device, noGrad, scope, Tensor } from "../../tensor/index.js";
import { firstNonFinite, fromFloat32, type SafetensorsDtype } from "../dtypes.js";
import type { TensorEntry, TensorFile } from "../tensor-file.js";
import type { Lora, LoraFactors, WeightedLora } from "./lora.js";

/**
 * The tensors of `file` with LoRAs added to those that they change: in float32, rounded once to the tensor's own type
 * (those of 8 bits to bf16).
 * @param file an official transformer under the official names
 * @throws LtxError `checkpoint` when a LoRA is for another model, `invalid_argument` for a weight that is no number; from
 *   reading, `non_finite` for matrices or sums with NaN or infinity in them
 */
export function withLoras(file: TensorFile, loras: readonly WeightedLora[]): TensorFile {
  for (const { lora, weight } of loras) {
    check(Number.isFinite(weight), "invalid_argument", () => `[lora] the weight of ${lora.path} is ${weight}`);
    checkFits(lora, file);
  }
  const changed = new Map<string, TensorEntry>();
  for (const { lora } of loras) {
    for (const key of lora.factors.keys()) changed.set(key, widened(file.tensors.get(key) as TensorEntry));
  }
  const readF32 = (name: string) => (changed.has(name) ? merge(file, name, loras) : file.readF32(name));
  return {
    metadata: file.metadata,
    tensors: new Map([...file.tensors].map(([name, entry]) => [name, changed.get(name) ?? entry])),
    readF32,
    async read(name) {
      const entry = changed.get(name);
      if (!entry) return file.read(name);
      const bytes = fromFloat32(await readF32(name), entry.dtype as "F32" | "BF16" | "F16");
      check(bytes, "dtype_mismatch", () => `[lora] "${name}" has values beyond the range of f16 once it is merged`);
      return bytes;
    },
    locate: (name) => (changed.has(name) ? undefined : file.locate?.(name)),
    close: () => file.close(),
  };
}

/** As an entry of 16 or 32 bits. */
function widened(entry: TensorEntry): TensorEntry {
  const plain: SafetensorsDtype[] = ["F32", "F16", "BF16"];
  if (plain.includes(entry.dtype)) return entry;
  return { dtype: "BF16", shape: entry.shape, byteLength: 2 * entry.shape.reduce((n, d) => n * d, 1) };
}

function checkFits({ path, factors }: Lora, file: TensorFile): void {
  const problems: string[] = [];
  for (const [key, { shape }] of factors) {
    const found = file.tensors.get(key)?.shape;
    if (!found) problems.push(`the model has no ${key}`);
    else if (found.join() !== shape.join()) problems.push(`${key} is [${found}] in the model, [${shape}] in the LoRA`);
  }
  check(problems.length === 0, "checkpoint", () => {
    const more = problems.length > 3 ? ` and ${problems.length - 3} more` : "";
    return `[lora] ${path} is for another model: ${problems.slice(0, 3).join("; ")}${more}`;
  });
}

/** A LoRA's two matrices for a weight, the one between them multiplied into the first. */
export interface LoraMatrices {
  /** (rank, inputs) */
  down: Float32Array;
  /** (outputs, rank of the middle's outputs) */
  up: Float32Array;
  /** Columns of `up` and rows of `down`. */
  rank: number;
}

/** Reads one matrix as float32. @throws LtxError `non_finite`, naming the tensor; `io` */
export async function readMatrix({ path, file }: Lora, name: string): Promise<Float32Array> {
  const values = await file.readF32(name);
  const bad = firstNonFinite(values);
  check(bad < 0, "non_finite", () => {
    return `[lora] ${path}: tensor "${name}" holds ${values[bad]}, at element ${bad}: the LoRA is broken, take an earlier one of its training`;
  });
  return values;
}

/** Reads the matrices for a weight. @throws LtxError as {@link readMatrix} */
export async function readMatrices(lora: Lora, factors: LoraFactors): Promise<LoraMatrices> {
  const read = (name: string) => readMatrix(lora, name);
  const [up, down] = [await read(factors.up), await read(factors.down)];
  const { rank, shape } = factors;
  if (factors.mid === undefined) return { up, down, rank };
  const mid = await read(factors.mid);
  const columns = up.length / shape[0];
  return { up, down: await product(mid, down, [columns, rank, shape[1]]), rank: columns };
}

/** (n,k) times (k,m). */
async function product(a: Float32Array, b: Float32Array, [n, k, m]: readonly [number, number, number]) {
  const result = noGrad(() => scope(() => times(a, b, [n, k, m])));
  try {
    return (await result.read()) as Float32Array;
  } finally {
    result.dispose();
  }
}

function times(a: Float32Array, b: Float32Array, [n, k, m]: readonly [number, number, number]): Tensor {
  const cpu = device("cpu");
  const right = transpose(Tensor.from(b, [1, k, m], { device: cpu }));
  return linear(Tensor.from(a, [n, k], { device: cpu }), reshape(right, [m, k]));
}

async function merge(file: TensorFile, key: string, loras: readonly WeightedLora[]): Promise<Float32Array> {
  const base = await file.readF32(key);
  const terms: (LoraMatrices & { scale: number; shape: readonly [number, number] })[] = [];
  for (const { lora, weight } of loras) {
    const own = lora.factors.get(key);
    if (!own) continue;
    terms.push({ ...(await readMatrices(lora, own)), scale: own.scale * weight, shape: own.shape });
  }
  const sum = noGrad(() =>
    scope(() =>
      terms.reduce(
        (sum, { up, down, rank, scale, shape: [outputs, inputs] }) =>
          axpby(1, sum, scale, times(up, down, [outputs, rank, inputs])),
        Tensor.from(base, file.tensors.get(key)?.shape as number[], { device: device("cpu") }),
      ),
    ),
  );
  try {
    const merged = (await sum.read()) as Float32Array;
    const bad = firstNonFinite(merged);
    check(bad < 0, "non_finite", () => {
      const own = Number.isFinite(base[bad]) ? "once LoRAs are merged: lower their weights" : "in the model itself";
      return `[lora] "${key}" is ${merged[bad]} at element ${bad}, ${own}`;
    });
    return merged;
  } finally {
    sum.dispose();
  }
}

/**
 * Gives a loaded transformer the weights of `base` with `loras` merged, instead of those with `before` merged. With no
 * LoRAs it has its own weights again, to the bit.
 * @param base the file that the transformer was loaded from, under the official names
 * @throws LtxError as {@link withLoras} before anything is written, and from reading, after which some weights may have
 *   changed: load them anew
 */
export async function applyLoras(
  transformer: Module,
  base: TensorFile,
  loras: readonly WeightedLora[],
  before: readonly WeightedLora[] = [],
): Promise<void> {
  const merged = withLoras(base, loras);
  const changed = new Set([...loras, ...before].flatMap(({ lora }) => [...lora.factors.keys()]));
  for (const [key, item] of transformer.namedState()) {
    if (!changed.has(key) || !(item instanceof Parameter)) continue;
    item.write(await merged.readF32(key));
    // The copy is queued with the values that it is made from: they go before the next ones come.
    await item.ready();
  }
}
