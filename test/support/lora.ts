/** LoRA files with values that a test chooses, and what they come to by plain loops. */
import { type SafetensorsDtype, type SafetensorsTensor, writeSafetensors } from "../../lib/formats/safetensors.js";

export interface Matrix {
  rows: number;
  columns: number;
  values: Float32Array;
}

/** Values between -1 and 1 with few digits, so that bf16 and f16 hold them as they are; others for every seed. */
export function matrix(rows: number, columns: number, seed: number): Matrix {
  const values = Float32Array.from(
    { length: rows * columns },
    (_, i) => (((i + 1) * (2 * seed + 7) * 37) % 127) / 64 - 1,
  );
  return { rows, columns, values };
}

/** a · b, in doubles. */
export function product(a: Matrix, b: Matrix): Float64Array {
  const out = new Float64Array(a.rows * b.columns);
  for (let i = 0; i < a.rows; i++) {
    for (let k = 0; k < a.columns; k++) {
      for (let j = 0; j < b.columns; j++) {
        out[i * b.columns + j] += a.values[i * a.columns + k] * b.values[k * b.columns + j];
      }
    }
  }
  return out;
}

export const tensor = (
  name: string,
  { rows, columns, values }: Matrix,
  shape = [rows, columns],
): SafetensorsTensor => ({
  name,
  dtype: "F32",
  shape,
  data: bytes(values),
});

const bytes = (values: Float32Array | Float64Array): Uint8Array =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

export const scalarTensor = (name: string, value: number, shape: readonly number[] = []): SafetensorsTensor => ({
  name,
  dtype: "F32",
  shape,
  data: bytes(Float32Array.of(value)),
});

export const anyTensor = (
  name: string,
  values: readonly number[],
  dtype: SafetensorsDtype = "F32",
): SafetensorsTensor => {
  const kinds: Partial<Record<SafetensorsDtype, (values: readonly number[]) => Uint8Array>> = {
    F32: (values) => bytes(Float32Array.from(values)),
    F64: (values) => bytes(Float64Array.from(values)),
    U8: (values) => Uint8Array.from(values),
    I8: (values) => new Uint8Array(Int8Array.from(values).buffer),
    F8_E4M3: (values) => Uint8Array.from(values),
  };
  const make = kinds[dtype];
  if (!make) throw new Error(`no ${dtype}`);
  return { name, dtype, shape: [values.length], data: make(values) };
};

/** A module that LoRAs change: its official name, that of diffusers, and its size. */
export interface Module {
  official: string;
  diffusers: string;
  outputs: number;
  inputs: number;
}

const same = (name: string, outputs: number, inputs: number): Module => ({
  official: name,
  diffusers: name,
  outputs,
  inputs,
});

/** One module of each kind that the tiny transformer of test/support/official has, outside the blocks too. */
export const MODULES: readonly Module[] = [
  same("transformer_blocks.0.attn1.to_q", 32, 32),
  same("transformer_blocks.1.attn2.to_out.0", 32, 32),
  same("transformer_blocks.1.ff.net.0.proj", 128, 32),
  same("transformer_blocks.0.ff.net.2", 32, 128),
  { ...same("patchify_proj", 32, 8), diffusers: "proj_in" },
  same("proj_out", 8, 32),
  { ...same("adaln_single.linear", 192, 32), diffusers: "time_embed.linear" },
  {
    ...same("adaln_single.emb.timestep_embedder.linear_1", 32, 256),
    diffusers: "time_embed.emb.timestep_embedder.linear_1",
  },
  same("caption_projection.linear_2", 32, 32),
];

export interface Pair {
  module: Module;
  down: Matrix;
  up: Matrix;
}

/** Matrices for each module, of ranks that differ where `ranks` has several. */
export const pairs = (ranks: readonly number[] = [4], modules: readonly Module[] = MODULES): Pair[] =>
  modules.map((module, i) => {
    const rank = ranks[i % ranks.length];
    return { module, down: matrix(rank, module.inputs, i), up: matrix(module.outputs, rank, i + 50) };
  });

/** `base` with `scale` · up · down added, in doubles. */
export function added(base: Float32Array, { up, down }: Pick<Pair, "up" | "down">, scale: number): Float64Array {
  const change = product(up, down);
  return Float64Array.from(base, (value, i) => value + scale * change[i]);
}

export async function writeTensors(
  path: string,
  tensors: readonly SafetensorsTensor[],
  metadata: Record<string, string> = {},
): Promise<string> {
  await writeSafetensors(path, tensors, metadata);
  return path;
}
