import { dirname, join } from "node:path";
import { check } from "../../../lib/errors.js";
import { openLora, type WeightedLora } from "../../../lib/formats/official/lora.js";
import { applyLoras, withLoras } from "../../../lib/formats/official/lora-merge.js";
import type { TensorFile } from "../../../lib/formats/tensor-file.js";
import { noGrad } from "../../../lib/tensor/index.js";
import { evaluate } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";
import { buildOfficialTransformer, sampleTokens } from "./official-transformer.js";

/** What the transformer computes with each LoRA merged, one after another, and without them again. */
export const lora: GoldenCase = async (fixture) => {
  const { lora_files: files, transformer: config } = fixture.config;
  const base = parameterFile(fixture);
  const model = buildOfficialTransformer(config, fixture.path);
  model.loadStateDict(fixture.state(fixture.config.param_prefix));
  const result = new Map<string, Float32Array>();
  const sample = async () => {
    const values = await evaluate(null, () => ({ output: { sample: noGrad(() => sampleTokens(fixture, model)) } }));
    return values.get("output/sample") as Float32Array;
  };
  result.set("output/sample_base", await sample());
  for (const name of fixture.names("output/sample_lora_")) {
    const variant = name.slice("output/sample_lora_".length);
    const weight = Number(variant);
    const spellings = Number.isNaN(weight) ? [variant] : ["comfy", "diffusers"].filter((spelling) => files[spelling]);
    for (const spelling of spellings) {
      const opened = await openLora(join(dirname(fixture.path), files[spelling]));
      const loras: WeightedLora[] = [{ lora: opened, weight: Number.isNaN(weight) ? 1 : weight }];
      await applyLoras(model, base, loras);
      const merged = await sample();
      if (result.has(name)) expectSame(result.get(name), merged, `${name} of ${spelling}`);
      result.set(name, merged);
      if (weight === 1) await mergedWeights(fixture, withLoras(base, loras), result);
      await applyLoras(model, base, [], loras);
      await opened.close();
    }
  }
  expectSame(result.get("output/sample_base"), await sample(), "sample_base after all LoRAs were taken off");
  model.dispose();
  return result;
};

async function mergedWeights(fixture: Fixture, merged: TensorFile, result: Map<string, Float32Array>): Promise<void> {
  for (const name of fixture.names("output/merged/")) {
    result.set(name, await merged.readF32(name.slice("output/merged/".length)));
  }
}

function expectSame(a: Float32Array | undefined, b: Float32Array, what: string): void {
  check(a && Buffer.from(a.buffer).equals(Buffer.from(b.buffer)), "checkpoint", () => `[golden] ${what} differs`);
}

/** The fixture's parameters as a file holds them. */
function parameterFile(fixture: Fixture): TensorFile {
  const state = fixture.state(fixture.config.param_prefix);
  const valuesOf = (name: string) => state.get(name)?.data as Float32Array;
  return {
    metadata: {},
    tensors: new Map(
      [...state].map(([name, { shape }]) => {
        return [name, { dtype: "F32", shape, byteLength: 4 * shape.reduce((n, d) => n * d, 1) }];
      }),
    ),
    readF32: async (name) => valuesOf(name),
    read: async (name) => new Uint8Array(valuesOf(name).buffer),
    close: async () => {},
  };
}
