/** LoRA files: small matrices whose products are added to a transformer's weights. */

import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { path as checkPath } from "../../arguments.js";
import { check, LtxError } from "../../errors.js";
import { isFloat } from "../dtypes.js";
import { isFile } from "../paths.js";
import { openTensorFile, type TensorFile } from "../tensor-file.js";
import { LORA_PREFIX } from "./keys.js";
import { isLtx2Name, type LoraPart, parseLoraName } from "./lora-names.js";
import { isPeftFile, metadataConfig, neighbourConfig, peftStrengths, type StrengthOf } from "./lora-scale.js";

/** W + scale · up · down, or W + scale · up · mid · down. */
export interface LoraFactors {
  /** The names of the tensors: down (rank, inputs), up (outputs, rank), mid (rank, rank). */
  down: string;
  up: string;
  mid?: string;
  rank: number;
  scale: number;
  /** Of the weight that is changed: (outputs, inputs). */
  shape: readonly [number, number];
}

/** An open LoRA file; its matrices are read when they are merged. */
export interface Lora {
  readonly path: string;
  /** By the official names of the weights that it changes. */
  readonly factors: ReadonlyMap<string, LoraFactors>;
  readonly file: TensorFile;
  /** Tensors of text encoders, which nothing here takes. */
  readonly leftOut: readonly string[];
  /** What its user should know: what was left out, what was taken for granted. */
  readonly notices: readonly string[];
  close(): Promise<void>;
}

/** A LoRA and how much of it is added. */
export interface WeightedLora {
  lora: Lora;
  weight: number;
}

/** A LoRA's file or folder, and how much of it is added: 1 unless given. */
export type LoraChoice = string | { path: string; weight?: number };

/** The files of a folder that is a LoRA, in the order of preference. */
const FOLDER_FILES = ["adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors"];

/** The file of a LoRA that is named by its folder; other paths as they are. @throws LtxError `checkpoint` */
export async function loraFile(path: string): Promise<string> {
  checkPath("lora", "the file", path);
  const info = await stat(path).catch(() => null);
  if (!info?.isDirectory()) return path;
  for (const name of FOLDER_FILES) if (await isFile(join(path, name))) return join(path, name);
  const files = (await readdir(path)).filter((name) => name.endsWith(".safetensors") && !name.startsWith("."));
  check(files.length === 1, "checkpoint", () => {
    const found = files.length === 0 ? "no safetensors file" : files.join(", ");
    return `[lora] ${path} is a folder with ${found}: expected ${FOLDER_FILES[0]} or ${FOLDER_FILES[2]}; name the file that is meant`;
  });
  return join(path, files[0]);
}

/**
 * Opens a LoRA for an official transformer: a file in any of the spellings of ComfyUI, diffusers, PEFT, kohya and LyCORIS,
 * or a folder that PEFT or diffusers saved. Its scale is that of the file's alphas, else of its metadata, else, of PEFT's
 * files, of the `adapter_config.json` beside it.
 * @throws LtxError `checkpoint` when it is not a LoRA, not a whole one, one of a kind that is not supported, or for another
 *   kind of model; `file_format`, `io`
 */
export async function openLora(path: string): Promise<Lora> {
  const place = await loraFile(path);
  const file = await openTensorFile(place);
  try {
    const { halves, leftOut, peft } = sortTensors(place, file);
    const modules = [...halves.keys()];
    const { of: strengthOf, notice } = await strengths(place, file, modules, peft);
    const factors = new Map<string, LoraFactors>();
    for (const [module, parts] of halves) {
      const shapes = matricesOf(place, file, module, parts);
      const alpha = parts.alpha === undefined ? undefined : await scalar(place, file, parts.alpha);
      const { rank } = shapes;
      const { alpha: own, rankStabilised } = alpha === undefined ? strengthOf(module, rank) : plain(alpha);
      factors.set(`${module}.weight`, { ...shapes, scale: own / (rankStabilised ? Math.sqrt(rank) : rank) });
    }
    const silent = notice !== undefined && [...halves.values()].some(({ alpha }) => alpha === undefined);
    const texts = `${path}: tensors for a text encoder are left out (${leftOut.length}, the first is "${leftOut[0]}")`;
    const notices = [...(leftOut.length > 0 ? [texts] : []), ...(silent ? [notice] : [])];
    return { path, file, factors, leftOut, notices, close: () => file.close() };
  } catch (error) {
    await file.close();
    throw error;
  }
}

const plain = (alpha: number) => ({ alpha, rankStabilised: false });

type Parts = Partial<Record<LoraPart, string>>;

/** The tensors of each module, by the official names. */
function sortTensors(path: string, file: TensorFile) {
  const halves = new Map<string, Parts>();
  const leftOut: string[] = [];
  let peft = isPeftFile(path);
  for (const name of file.tensors.keys()) {
    const found = parseLoraName(name);
    if (found.kind === "text encoder") {
      leftOut.push(name);
      continue;
    }
    if (found.kind !== "part") refuse(path, name, found, [...file.tensors.keys()]);
    peft ||= found.peft;
    const parts = halves.get(found.module) ?? {};
    check(parts[found.part] === undefined, "checkpoint", () => {
      return `[lora] ${path}: "${parts[found.part]}" and "${name}" are the same matrix of the same module: does the file hold two LoRAs? Split it`;
    });
    halves.set(found.module, { ...parts, [found.part]: name });
  }
  const what = leftOut.length === 0 ? "no tensors" : "a LoRA of a text encoder only, which is not supported";
  check(halves.size > 0, "checkpoint", () => `[lora] ${path} holds ${what}`);
  return { halves, leftOut, peft };
}

/** Says what a tensor is that a LoRA for LTX-Video doesn't have. */
function refuse(
  path: string,
  name: string,
  found: Exclude<ReturnType<typeof parseLoraName>, { kind: "part" | "text encoder" }>,
  all: readonly string[],
): never {
  if (found.kind === "unsupported") {
    throw new LtxError(
      "checkpoint",
      `[lora] ${path} is not supported: its tensor "${name}" makes it ${found.what}, and only plain LoRAs are merged. Merge it with the program that made it, or extract a plain LoRA`,
    );
  }
  if (all.some(isLtx2Name)) {
    throw new LtxError(
      "checkpoint",
      `[lora] ${path} is a LoRA for LTX-2, not for LTX-Video: "${all.find(isLtx2Name)}"`,
    );
  }
  if (found.kind === "foreign") {
    throw new LtxError(
      "checkpoint",
      `[lora] ${path} is for another model: LTX-Video's transformer has no module "${found.module}" (of the tensor "${name}")`,
    );
  }
  throw new LtxError(
    "checkpoint",
    `[lora] ${path}: tensor "${name}" is not part of a LoRA: expected names such as ${LORA_PREFIX.official}transformer_blocks.0.attn1.to_q.lora_A.weight`,
  );
}

/** The matrices of a module, whose shapes must fit each other; those of convolutions by one pixel count as matrices. */
function matricesOf(
  path: string,
  file: TensorFile,
  module: string,
  { down, up, mid }: Parts,
): Omit<LoraFactors, "scale"> {
  const shapeOf = (name: string | undefined) => {
    const shape = name === undefined ? undefined : file.tensors.get(name)?.shape;
    return shape && shape.length > 2 && shape.slice(2).every((n) => n === 1) ? shape.slice(0, 2) : shape;
  };
  const [a, b, c] = [shapeOf(down), shapeOf(up), shapeOf(mid)];
  check(down && up && a && b, "checkpoint", () => {
    return `[lora] ${path}: of the two matrices for "${module}" only ${down ?? up ?? mid ?? "a scale"} is there`;
  });
  const fit = a.length === 2 && b.length === 2 && a[0] > 0 && (c ? c.length === 2 : a[0] === b[1]);
  check(fit && (!c || (c[0] === b[1] && c[1] === a[0])), "checkpoint", () => {
    const middle = c ? `, with [${c}] between them` : "";
    return `[lora] ${path}: the matrices for "${module}" are [${a}] and [${b}]${middle}: expected [rank, inputs] and [outputs, rank]`;
  });
  for (const name of [down, up, mid]) {
    const dtype = name === undefined ? undefined : file.tensors.get(name)?.dtype;
    check(!dtype || isFloat(dtype), "checkpoint", () => {
      return `[lora] ${path}: "${name}" is ${dtype}, expected floats: quantised LoRAs are not read`;
    });
  }
  return { down, up, ...(mid === undefined ? {} : { mid }), rank: a[0], shape: [b[0], a[1]] };
}

/** An alpha's value, to the last bit of doubles too. */
async function scalar(path: string, file: TensorFile, name: string): Promise<number> {
  const entry = file.tensors.get(name);
  const count = entry?.shape.reduce((n, d) => n * d, 1);
  check(count === 1, "checkpoint", () => {
    return `[lora] ${path}: the scale "${name}" has the shape [${entry?.shape}], expected a single number`;
  });
  const value =
    entry?.dtype === "F64" ? Buffer.from(await file.read(name)).readDoubleLE() : (await file.readF32(name))[0];
  check(Number.isFinite(value), "non_finite", () => `[lora] ${path}: the scale "${name}" is ${value}`);
  return value;
}

/** What gives the modules without an alpha in the file their scale, and what to say when nothing does. */
async function strengths(
  path: string,
  file: TensorFile,
  modules: readonly string[],
  peft: boolean,
): Promise<{ of: StrengthOf; notice?: string }> {
  const own = metadataConfig(path, file.metadata);
  if (own) return { of: peftStrengths(own, `${path}: its metadata`, modules) };
  const beside = peft ? await neighbourConfig(path) : null;
  if (beside) return { of: peftStrengths(beside.config, beside.where, modules) };
  const notice = peft
    ? `${path}: PEFT's files have an adapter_config.json beside them, which is missing: alpha is taken to be the rank`
    : undefined;
  return { of: (_, rank) => plain(rank), notice };
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
