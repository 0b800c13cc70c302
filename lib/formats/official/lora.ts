/** LoRA files: small matrices whose products are added to a transformer's weights. */
import { check, LtxError } from "../../errors.js";
import { type Module, Parameter } from "../../nn/index.js";
import { axpby, linear, reshape, transpose } from "../../ops/index.js";
import { device, noGrad, scope, Tensor } from "../../tensor/index.js";
import { fromFloat32, type SafetensorsDtype } from "../dtypes.js";
import { openTensorFile, type TensorEntry, type TensorFile } from "../tensor-file.js";
import { LORA_PREFIX, renameTransformerKey } from "./keys.js";

/** W + scale · up · down: down (rank, inputs), up (outputs, rank). */
interface Factors {
  down: string;
  up: string;
  rank: number;
  scale: number;
  /** Of the weight that is changed: (outputs, inputs). */
  shape: readonly [number, number];
}

/** An open LoRA file; its matrices are read when they are merged. */
export interface Lora {
  readonly path: string;
  /** By the official names of the weights that it changes. */
  readonly factors: ReadonlyMap<string, Factors>;
  readonly file: TensorFile;
  close(): Promise<void>;
}

/** A LoRA and how much of it is added. */
export interface WeightedLora {
  lora: Lora;
  weight: number;
}

/** A LoRA's file, and how much of it is added: 1 unless given. */
export type LoraChoice = string | { path: string; weight?: number };

const NAME =
  /^(?:diffusion_model\.|transformer\.|base_model\.model\.)?(.+)\.lora(?:_([AB])|[_.](down|up))(?:\.default)?\.weight$/;
const ALPHA = /^(?:diffusion_model\.|transformer\.)?(.+)\.alpha$/;

/**
 * Opens a LoRA for an official transformer, in the spelling of ComfyUI and the official trainer or in that of diffusers.
 * @throws LtxError `checkpoint` when it is no LoRA or not a whole one; `file_format`, `io`
 */
export async function openLora(path: string): Promise<Lora> {
  const file = await openTensorFile(path);
  try {
    const halves = new Map<string, { down?: string; up?: string; alpha?: string }>();
    for (const name of file.tensors.keys()) {
      const [, module, letter, word] = NAME.exec(name) ?? [];
      const alpha = ALPHA.exec(name)?.[1];
      check(module ?? alpha, "checkpoint", () => {
        return `[lora] ${path}: tensor "${name}" is none of a LoRA: expected ${LORA_PREFIX.official} or ${LORA_PREFIX.diffusers} before the module's name, .lora_A.weight or .lora_B.weight behind it`;
      });
      const key = renameTransformerKey(`${module ?? alpha}.weight`, "official");
      const half = alpha ? "alpha" : letter === "A" || word === "down" ? "down" : "up";
      halves.set(key, { ...halves.get(key), [half]: name });
    }
    check(halves.size > 0, "checkpoint", () => `[lora] ${path} holds no tensors`);
    const alphaOf = await alphas(path, file);
    const factors = new Map<string, Factors>();
    for (const [key, { down, up, alpha }] of halves) {
      const a = file.tensors.get(down ?? "")?.shape;
      const b = file.tensors.get(up ?? "")?.shape;
      check(down && up && a && b, "checkpoint", () => {
        return `[lora] ${path}: of the two matrices for "${key}" only ${down ?? up ?? "a scale"} is there`;
      });
      check(a.length === 2 && b.length === 2 && a[0] === b[1], "checkpoint", () => {
        return `[lora] ${path}: the matrices for "${key}" are [${a}] and [${b}]: expected [rank, inputs] and [outputs, rank]`;
      });
      const rank = a[0];
      const scale = alpha ? (await file.readF32(alpha))[0] / rank : alphaOf(key, rank);
      factors.set(key, { down, up, rank, scale, shape: [b[0], a[1]] });
    }
    return { path, file, factors, close: () => file.close() };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * Opens LoRAs with their weights: all or none.
 * @throws LtxError as {@link openLora}
 */
export async function openLoras(wanted: readonly LoraChoice[]): Promise<WeightedLora[]> {
  const opened: WeightedLora[] = [];
  try {
    for (const choice of wanted) {
      const { path, weight = 1 } = typeof choice === "string" ? { path: choice } : choice;
      opened.push({ lora: await openLora(path), weight });
    }
    return opened;
  } catch (error) {
    await closeLoras(opened);
    throw error;
  }
}

export async function closeLoras(loras: readonly WeightedLora[]): Promise<void> {
  for (const { lora } of loras) await lora.close();
}

/** The scale that the file's metadata gives a weight: alpha / rank, 1 where it says nothing. */
async function alphas(path: string, { metadata }: TensorFile): Promise<(key: string, rank: number) => number> {
  const text = metadata.lora_adapter_metadata;
  if (text === undefined) return () => 1;
  let config: Record<string, unknown>;
  try {
    config = JSON.parse(text);
  } catch (cause) {
    throw new LtxError("file_format", `[lora] ${path}: its lora_adapter_metadata is no JSON: it is damaged`, { cause });
  }
  const alpha = config["transformer.lora_alpha"];
  const patterns = Object.entries((config["transformer.alpha_pattern"] ?? {}) as Record<string, number>);
  return (key, rank) => {
    const module = renameTransformerKey(key, "diffusers").replace(/\.weight$/, "");
    const own = patterns.find(([name]) => module === name || module.endsWith(`.${name}`))?.[1] ?? alpha;
    if (own === undefined || own === null) return 1;
    check(typeof own === "number" && Number.isFinite(own), "file_format", () => {
      return `[lora] ${path}: its lora_adapter_metadata has the alpha ${JSON.stringify(own)}, expected a number`;
    });
    return own / (config["transformer.use_rslora"] === true ? Math.sqrt(rank) : rank);
  };
}

/**
 * The tensors of `file` with LoRAs added to those that they change: in float32, rounded once to the tensor's own type
 * (those of 8 bits to bf16).
 * @param file an official transformer under the official names
 * @throws LtxError `checkpoint` when a LoRA is for another model, `invalid_argument` for a weight that is no number
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

async function merge(file: TensorFile, key: string, loras: readonly WeightedLora[]): Promise<Float32Array> {
  const base = await file.readF32(key);
  const cpu = device("cpu");
  const terms: { up: Float32Array; down: Float32Array; rank: number; scale: number; shape: readonly number[] }[] = [];
  for (const { lora, weight } of loras) {
    const own = lora.factors.get(key);
    if (!own) continue;
    const [up, down] = [await lora.file.readF32(own.up), await lora.file.readF32(own.down)];
    terms.push({ up, down, rank: own.rank, scale: own.scale * weight, shape: own.shape });
  }
  const sum = noGrad(() =>
    scope(() =>
      terms.reduce(
        (sum, { up, down, rank, scale, shape: [outputs, inputs] }) => {
          const right = transpose(Tensor.from(down, [1, rank, inputs], { device: cpu }));
          const left = Tensor.from(up, [outputs, rank], { device: cpu });
          return axpby(1, sum, scale, linear(left, reshape(right, [inputs, rank])));
        },
        Tensor.from(base, file.tensors.get(key)?.shape as number[], { device: cpu }),
      ),
    ),
  );
  try {
    return (await sum.read()) as Float32Array;
  } finally {
    sum.dispose();
  }
}

/**
 * Gives a loaded transformer the weights of `base` with `loras` merged, instead of those with `before` merged. With no
 * LoRAs it has its own weights again, to the bit.
 * @param base the file that the transformer was loaded from, under the official names
 * @throws LtxError as {@link withLoras}, before anything is written
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
    await item.device.synchronize();
  }
}
