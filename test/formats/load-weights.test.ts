import { renameSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { PhiloxRandom } from "../../lib/data/philox.js";
import { DTYPE_BITS, fromFloat32, toFloat32 } from "../../lib/formats/dtypes.js";
import { loadWeights } from "../../lib/formats/load-weights.js";
import {
  openSafetensorsBuffer,
  readSafetensors,
  type SafetensorsDtype,
  type SafetensorsTensor,
  writeSafetensors,
} from "../../lib/formats/safetensors.js";
import { openShards } from "../../lib/formats/sharded.js";
import type { TensorFile } from "../../lib/formats/tensor-file.js";
import { BatchNorm, Conv2d, Conv3d, Initializer, Linear, Module, precisionDtypes } from "../../lib/nn/index.js";
import { device, narrow, sizeOf, widen } from "../../lib/tensor/index.js";
import { liveBytes } from "../support/gradcheck.js";
import { testFolder } from "../support/tiny.js";

const folder = testFolder();
let count = 0;
const newPath = () => join(folder, `${++count}.safetensors`);

class Model extends Module {
  conv: Conv3d;
  flat: Conv2d;
  layers: Linear[];
  norm: BatchNorm;

  constructor(init: Initializer) {
    super();
    this.conv = new Conv3d(5, 7, [3, 2, 3], init);
    this.flat = new Conv2d(3, 2, 3, init);
    this.layers = [new Linear(16, 16, init), new Linear(3, 3, init, { bias: false })];
    this.norm = new BatchNorm(2, init);
  }
}
const create = (weights: "f32" | "bf16" = "f32", values = false) =>
  new Model(new Initializer(device(), 1, { weights, values }));

type State = Map<string, { shape: readonly number[]; data: Float32Array }>;

async function state(): Promise<State> {
  const model = create("f32", true);
  const values = await model.stateDict();
  model.dispose();
  return values;
}

/** Any bits of a type: zeros, infinities, NaN and the smallest numbers are among them. */
function anyBits(dtype: SafetensorsDtype, length: number, seed: number): Uint8Array {
  const random = new PhiloxRandom(seed);
  const bytes = Uint8Array.from({ length: (length * DTYPE_BITS[dtype]) / 8 }, () => random.uniform(0, 256));
  if (DTYPE_BITS[dtype] === 8 && length === 256) for (let i = 0; i < 256; i++) bytes[i] = i;
  return bytes;
}

async function written(
  values: State,
  bytes: (name: string, data: Float32Array) => Uint8Array,
  dtype: SafetensorsDtype,
): Promise<string> {
  const path = newPath();
  const tensors = [...values].map(([name, { shape, data }]): SafetensorsTensor => {
    if (name.endsWith("tracked")) return { name, dtype: "I64", shape, data: new Uint8Array(8).fill(3, 0, 1) };
    return { name, dtype, shape, data: bytes(name, data) };
  });
  await writeSafetensors(path, tensors);
  return path;
}

const f32 = (_: string, data: Float32Array) => fromFloat32(data, "F32") as Uint8Array;

/** The file, but its tensors can't be read: only what is mapped arrives. */
const unreadable = (file: TensorFile): TensorFile => ({
  ...file,
  read: () => Promise.reject(new Error("read")),
  readF32: (name) => (name.endsWith("tracked") ? file.readF32(name) : Promise.reject(new Error(`read ${name}`))),
});

describe("loadWeights", () => {
  it("converts every float of 8, 16 and 32 bits where it lies, as reading the tensors does", async () => {
    const before = await liveBytes();
    const values = await state();
    for (const dtype of ["F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"] as const) {
      const path = await written(values, (name, data) => anyBits(dtype, data.length, name.length), dtype);
      const file = await readSafetensors(path);
      for (const weights of ["f32", "bf16"] as const) {
        const model = create(weights);
        await loadWeights(model, unreadable(file));
        for (const [key, { shape, data }] of await model.stateDict()) {
          expect(shape).toEqual(values.get(key)?.shape);
          const expected = toFloat32(await file.read(key), file.tensors.get(key)?.dtype ?? "F32") as Float32Array;
          const rounds = weights === "bf16" && /(conv|flat|layers.\d).weight/.test(key);
          expect(data, `${dtype} ${weights} ${key}`).toEqual(rounds ? widen(narrow(expected)) : expected);
        }
        model.dispose();
      }
      await file.close();
    }
    expect(await liveBytes()).toBe(before);
  });

  it("reads tensors from files in memory, and from any byte of a file on disk", async () => {
    const values = await state();
    values.delete("norm.num_batches_tracked"); // its eight bytes would come first
    const header: Record<string, object> = {};
    const parts: Uint8Array[] = [];
    let end = 0;
    for (const [name, { shape, data }] of values) {
      const bytes = fromFloat32(data, "BF16") as Uint8Array;
      header[name] = { dtype: "BF16", shape, data_offsets: [end, end + bytes.length] };
      end += bytes.length;
      parts.push(bytes);
    }
    const text = JSON.stringify(header);
    const json = Buffer.from(text.length % 2 ? text : `${text} `);
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(json.length));
    const bytes = Buffer.concat([length, json, ...parts]);
    const path = newPath();
    writeFileSync(path, bytes);
    const onDisk = await readSafetensors(path);
    expect((onDisk.locate("layers.1.weight")?.offset ?? 0) % 2).toBe(1);
    const [mapped, read] = [create(), create()];
    await loadWeights(mapped, unreadable(onDisk));
    await loadWeights(read, openSafetensorsBuffer(bytes));
    expect(await mapped.stateDict()).toEqual(await read.stateDict());
    for (const [key, { data }] of await read.stateDict()) {
      const expected = values.get(key)?.data;
      if (expected) expect(data).toEqual(widen(narrow(expected)));
    }
    await onDisk.close();
    for (const model of [mapped, read]) model.dispose();
  });

  it("loads tensors of many pieces, whatever has to be turned", async () => {
    class Wide extends Module {
      constructor(
        public conv: Conv3d,
        public linear: Linear,
      ) {
        super();
      }
    }
    const init = new Initializer(device(), 1, { values: false });
    const model = new Wide(new Conv3d(40, 1100, [3, 3, 3], init), new Linear(1030, 1025, init));
    const tensors = [...model.namedParameters()].map(([name, { checkpointShape: shape }]): SafetensorsTensor => {
      const values = Float32Array.from({ length: sizeOf(shape) }, (_, i) => i);
      return { name, dtype: "F32", shape, data: fromFloat32(values, "F32") as Uint8Array };
    });
    const path = newPath();
    await writeSafetensors(path, tensors);
    const file = await readSafetensors(path);
    await loadWeights(model, unreadable(file));
    for (const [, { data }] of await model.stateDict()) expect(data.every((value, i) => value === i)).toBe(true);
    await file.close();
    model.dispose();
  });

  it("takes other names, leaves what is optional, and passes over what is to be ignored", async () => {
    const values = await state();
    const renamed: State = new Map([...values].map(([key, value]) => [`model.${key}`, value]));
    renamed.delete("model.conv.bias");
    renamed.set("other", { shape: [1], data: Float32Array.of(1) });
    const file = await readSafetensors(await written(renamed, f32, "F32"));
    const model = create("f32", true);
    model.conv.bias?.write(new Float32Array(7).fill(5));
    await loadWeights(model, file, {
      rename: (key) => `model.${key}`,
      optional: (key) => key === "conv.bias",
      ignore: (name) => name === "other",
    });
    const loaded = await model.stateDict();
    expect(loaded.get("conv.bias")?.data).toEqual(new Float32Array(7).fill(5));
    expect(loaded.get("conv.weight")).toEqual(values.get("conv.weight"));
    expect(loaded.get("norm.num_batches_tracked")?.data[0]).toBe(3);
    await file.close();
    model.dispose();
  });

  it("writes nothing unless all keys and shapes fit, and names those that don't", async () => {
    const values = await state();
    values.delete("conv.bias");
    values.set("flat.weight", { shape: [2, 3, 9], data: new Float32Array(54) });
    values.set("other", { shape: [1], data: Float32Array.of(1) });
    const file = await readSafetensors(await written(values, f32, "F32"));
    const model = create("f32", true);
    const before = await model.stateDict();
    await expect(loadWeights(model, file, { source: "a.safetensors" })).rejects.toMatchObject({
      code: "checkpoint",
      message:
        "[state dict] a.safetensors does not fit the model: conv.bias is missing (expected [7]); " +
        "flat.weight has shape [2,3,9], expected [2,3,3,3]; other is not part of this model",
    });
    expect(await model.stateDict()).toEqual(before);
    await file.close();
    model.dispose();
  });

  it("says so when the file is cut while it is open", async () => {
    const path = await written(await state(), f32, "F32");
    const file = await readSafetensors(path);
    truncateSync(path, 1000);
    const model = create();
    await expect(loadWeights(model, file)).rejects.toMatchObject({ code: "io", message: /became shorter/ });
    await file.close();
    model.dispose();
  });

  it("loads the file whose header was read, though another has its path by then", async () => {
    const values = await state();
    const path = await written(values, f32, "F32");
    const file = await readSafetensors(path);
    // Other values, and longer, so that every tensor lies elsewhere.
    const other = await written(new Map([["a", { shape: [999], data: new Float32Array(999).fill(7) }]]), f32, "F32");
    renameSync(other, path);
    const model = create();
    await loadWeights(model, unreadable(file));
    const loaded = await model.stateDict();
    for (const [name, { data }] of values) {
      if (!name.endsWith("tracked")) expect([name, loaded.get(name)?.data]).toEqual([name, data]);
    }
    await file.close();
    model.dispose();
  });

  it("finds each tensor in its shard", async () => {
    const values = [...(await state())];
    const shards = [new Map(values.slice(0, 4)), new Map(values.slice(4))];
    const weightMap: Record<string, string> = {};
    for (const shard of shards) {
      const path = await written(shard, f32, "F32");
      for (const key of shard.keys()) weightMap[key] = path.slice(folder.length + 1);
    }
    writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify({ weight_map: weightMap }));
    const file = await openShards(folder);
    const model = create();
    await loadWeights(model, unreadable(file));
    const loaded = await model.stateDict();
    for (const [key, { data }] of values) if (!key.endsWith("tracked")) expect(loaded.get(key)?.data).toEqual(data);
    await file.close();
    model.dispose();
  });
});

describe("precisions of the official configurations", () => {
  it("say how weights are stored and what is computed in", () => {
    expect(precisionDtypes("float32")).toEqual({ weights: "f32", computeDtype: "f32" });
    expect(precisionDtypes("mixed_precision")).toEqual({ weights: "f32", computeDtype: "bf16" });
    expect(precisionDtypes("bfloat16")).toEqual({ weights: "bf16", computeDtype: "bf16" });
  });

  it("are refused where there are no kernels for them, or no such precision", () => {
    const thrown = (precision: string) => {
      try {
        precisionDtypes(precision);
      } catch (error) {
        return error;
      }
    };
    expect(thrown("float8_e4m3fn")).toMatchObject({ code: "unavailable", message: /precision: bfloat16/ });
    expect(thrown("bf16")).toMatchObject({
      code: "config",
      message: /"bf16".*float32, mixed_precision, bfloat16/,
    });
  });
});
