import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { parseOfficialTransformer } from "../../lib/config/official/transformer.js";
import { loadWeights } from "../../lib/formats/load-weights.js";
import { type Lora, openLora } from "../../lib/formats/official/lora.js";
import { applyLoras, withLoras } from "../../lib/formats/official/lora-merge.js";
import { type OfficialModels, openOfficial } from "../../lib/formats/official/open.js";
import { readSafetensors, writeSafetensors } from "../../lib/formats/safetensors.js";
import { LtxVideoTransformer } from "../../lib/models/transformer/index.js";
import { Initializer } from "../../lib/nn/index.js";
import { device } from "../../lib/tensor/index.js";
import { failure } from "../support/failure.js";
import { testFolder } from "../support/folder.js";
import { tensorsOf, transformerShapes, vaeConfig, vaeShapes, writeLora, writeOfficial } from "../support/official.js";

const folder = testFolder();
const at = (...names: string[]) => join(folder, ...names);

const opened: { close(): Promise<void> }[] = [];
afterEach(async () => {
  for (const file of opened.splice(0)) await file.close();
});
async function open(path: string): Promise<OfficialModels> {
  const models = await openOfficial(path);
  opened.push(models);
  return models;
}
async function lora(...args: Parameters<typeof writeLora>): Promise<Lora> {
  const file = await openLora(await writeLora(...args));
  opened.push(file);
  return file;
}

describe("openOfficial", () => {
  it.each(["0.9.0", "0.9.1", "0.9.5"] as const)("reads a single file of %s by its metadata", async (generation) => {
    const models = await open(await writeOfficial(folder, generation));
    expect(models).toMatchObject({ layout: "official", kinds: ["transformer", "vae"] });
    expect([...models.module("transformer").tensors.keys()].sort()).toEqual([...transformerShapes().keys()].sort());
    expect([...models.module("vae").tensors.keys()].sort()).toEqual([...vaeShapes(generation).keys()].sort());
    expect(models.configs.vae).toEqual(vaeConfig(generation));
    expect(models.configs.scheduler).toMatchObject({ shifting: "SD3" });
    expect(models.configs.allowed_inference_steps).toEqual([1, 0.725, 0]);
    const { causalTemporalPositioning } = parseOfficialTransformer(models.configs.transformer, "x");
    expect(causalTemporalPositioning).toBe(generation === "0.9.5");
    const name = "encoder.conv_in.conv.bias";
    const [own, whole] = [models.module("vae"), await readSafetensors(models.path)];
    opened.push(whole);
    expect(await own.read(name)).toEqual(await whole.read(`vae.${name}`));
    // Each has opened the file itself.
    const descriptor = expect.any(Number);
    expect(own.locate?.(name)).toEqual({ ...whole.locate(`vae.${name}`), descriptor });
    expect((await failure(() => models.module("upsampler"))).message).toMatch(
      /holds no latent upsampler, only a transformer and VAE: take a file that has both, or bring both into one folder/,
    );
  });

  it.each([
    ["0.9.0", 32, false],
    ["0.9.5", 32, true],
    [undefined, 29, true],
    [undefined, 28, false],
  ] as const)("tells what a transformer is by its tensors: VAE %s, %i layers", async (generation, layers, causal) => {
    const path = at("nameless.safetensors");
    const transformer = tensorsOf(transformerShapes(64, layers), () => "BF16", "model.diffusion_model.");
    const vae = generation ? tensorsOf(vaeShapes(generation), () => "BF16", "vae.") : [];
    await writeSafetensors(path, [...transformer, ...vae]);
    const { configs } = await open(path);
    expect(configs.vae).toBeUndefined();
    expect(parseOfficialTransformer(configs.transformer, path)).toMatchObject({
      options: {
        num_layers: layers,
        num_attention_heads: 32,
        attention_head_dim: 2,
        caption_channels: 24,
        qk_norm: "rms_norm",
      },
      causalTemporalPositioning: causal,
    });
  });

  it("reads single models, with their configuration beside them or in the file", async () => {
    const config = JSON.stringify({ _class_name: "LatentUpsampler", in_channels: 8, mid_channels: 32 });
    const shapes = new Map([
      ["initial_conv.weight", [32, 8, 3, 3, 3]],
      ["final_conv.weight", [8, 32, 3, 3, 3]],
    ]);
    await writeSafetensors(
      at("upscaler.safetensors"),
      tensorsOf(shapes, () => "BF16"),
      { config },
    );
    const upsampler = await open(at("upscaler.safetensors"));
    expect(upsampler).toMatchObject({ kinds: ["upsampler"], configs: { upsampler: { mid_channels: 32 } } });
    expect([...upsampler.module("upsampler").tensors.keys()].sort()).toEqual([...shapes.keys()].sort());
    mkdirSync(at("vae-alone"));
    const weights = at("vae-alone", "diffusion_pytorch_model.safetensors");
    await writeSafetensors(
      weights,
      tensorsOf(vaeShapes("0.9.1"), () => "F32"),
    );
    writeFileSync(at("vae-alone", "config.json"), JSON.stringify(vaeConfig("0.9.1")));
    const vae = await open(at("vae-alone"));
    expect(vae).toMatchObject({ kinds: ["vae"], layout: "official", configs: { vae: vaeConfig("0.9.1") } });
  });

  it("explains what it cannot open", async () => {
    const whole = await writeOfficial(folder, "0.9.0", "f32");
    const bytes = readFileSync(whole);
    writeFileSync(at("cut.safetensors"), bytes.subarray(0, bytes.length - 1000));
    writeFileSync(at("cut-early.safetensors"), bytes.subarray(0, 3000));
    await writeSafetensors(
      at("other.safetensors"),
      tensorsOf(new Map([["a.weight", [2]]]), () => "F32"),
    );
    await writeSafetensors(
      at("config.safetensors"),
      tensorsOf(transformerShapes(), () => "F32"),
      { config: "{" },
    );
    await writeSafetensors(
      at("section.safetensors"),
      tensorsOf(transformerShapes(), () => "F32"),
      {
        config: '{"transformer":7}',
      },
    );
    writeFileSync(at("pointer.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n");
    mkdirSync(at("empty"));
    mkdirSync(at("no-config"));
    mkdirSync(at("no-config", "vae"));
    const cases: [string, string, RegExp][] = [
      ["nothing.safetensors", "checkpoint", /nothing\.safetensors does not exist$/],
      ["cut.safetensors", "file_format", /the tensors cover \d+ bytes of data, the file has \d+; the file is damaged/],
      ["cut-early.safetensors", "file_format", /header length \d+ reaches past the 3000 bytes there are/],
      ["pointer.safetensors", "file_format", /is a pointer of Git LFS, not the file itself/],
      ["other.safetensors", "checkpoint", /holds none of the official models: expected names .* found "a\.weight"/],
      ["config.safetensors", "file_format", /its config is no JSON object/],
      ["section.safetensors", "file_format", /transformer of its configuration is 7/],
      ["empty", "checkpoint", /holds no weights: expected one safetensors file, shards .* or a diffusers folder/],
      ["no-config", "checkpoint", /vae holds no weights: expected diffusion_pytorch_model\.safetensors/],
      [await writeLora(at("a-lora.safetensors")), "checkpoint", /is a LoRA, not a model/],
    ];
    for (const [name, code, message] of cases) {
      const error = await failure(() => openOfficial(name.startsWith("/") ? name : at(name)));
      expect([name, error.code, error.message]).toEqual([name, code, expect.stringMatching(message)]);
    }
  });

  it("reads shards by their index, and names the one that is missing", async () => {
    mkdirSync(at("shards"));
    const tensors = [
      ...tensorsOf(transformerShapes(), () => "BF16", "model.diffusion_model."),
      ...tensorsOf(vaeShapes("0.9.5"), () => "BF16", "vae."),
    ];
    const config = JSON.stringify({ transformer: { num_layers: 2 }, vae: vaeConfig("0.9.5") });
    const weight_map: Record<string, string> = {};
    for (const [i, part] of [tensors.slice(0, 50), tensors.slice(50)].entries()) {
      const name = `ltxv-0000${i + 1}-of-00002.safetensors`;
      await writeSafetensors(at("shards", name), part, { config });
      for (const tensor of part) weight_map[tensor.name] = name;
    }
    writeFileSync(at("shards", "ltxv.safetensors.index.json"), JSON.stringify({ weight_map }));
    for (const path of [at("shards"), at("shards", "ltxv.safetensors.index.json")]) {
      const models = await open(path);
      expect(models).toMatchObject({ kinds: ["transformer", "vae"], configs: { vae: vaeConfig("0.9.5") } });
      expect(models.module("transformer").tensors.size + models.module("vae").tensors.size).toBe(tensors.length);
    }
    renameSync(at("shards", "ltxv-00002-of-00002.safetensors"), at("shards", "gone"));
    const error = await failure(() => openOfficial(at("shards")));
    expect(error.code).toBe("checkpoint");
    expect(error.message).toMatch(/ltxv-00002-of-00002\.safetensors is missing, .*index\.json names it$/);
  });
});

describe("openLora", () => {
  it("reads both spellings alike, and a scale where the file has one", async () => {
    const metadata = { lora_adapter_metadata: JSON.stringify({ "transformer.r": 4, "transformer.lora_alpha": 2 }) };
    const [comfy, diffusers] = [
      await lora(at("comfy.safetensors")),
      await lora(at("diffusers.safetensors"), { prefix: "transformer.", metadata }),
    ];
    expect([...diffusers.factors.keys()]).toEqual([...comfy.factors.keys()]);
    expect([...comfy.factors.keys()].sort()[0]).toBe("transformer_blocks.0.attn1.to_q.weight");
    expect([...comfy.factors.values()].every(({ scale, rank }) => scale === 1 && rank === 4)).toBe(true);
    expect([...diffusers.factors.values()].every(({ scale }) => scale === 0.5)).toBe(true);
  });

  it("adds several, each with its weight, to what they change alone", async () => {
    const models = await open(await writeOfficial(folder, "0.9.0", "f32"));
    const base = models.module("transformer");
    const key = "transformer_blocks.1.attn2.to_v.weight";
    const [a, b] = [await lora(at("a.safetensors")), await lora(at("b.safetensors"), { rank: 2 })];
    const merged = withLoras(base, [
      { lora: a, weight: 0.5 },
      { lora: b, weight: -2 },
    ]);
    const expected = Float64Array.from(await base.readF32(key));
    for (const {
      lora: { file, factors },
      weight,
    } of [
      { lora: a, weight: 0.5 },
      { lora: b, weight: -2 },
    ]) {
      const { up, down, rank } = factors.get(key) as { up: string; down: string; rank: number };
      const [left, right] = [await file.readF32(up), await file.readF32(down)];
      for (let i = 0; i < 32; i++) {
        for (let j = 0; j < 32; j++) {
          for (let r = 0; r < rank; r++) expected[i * 32 + j] += weight * left[i * rank + r] * right[r * 32 + j];
        }
      }
    }
    const values = await merged.readF32(key);
    for (const [i, value] of expected.entries()) expect(values[i]).toBeCloseTo(value, 5);
    expect(merged.locate?.(key)).toBeUndefined();
    const other = "transformer_blocks.1.attn2.to_k.weight";
    expect(await merged.read(other)).toEqual(await base.read(other));
    expect(merged.locate?.(other)).toEqual(base.locate?.(other));
  });

  it.each(["f32", "bf16"] as const)(
    "is put into a loaded model of %s weights and taken out, to the bit",
    async (weights) => {
      const models = await open(await writeOfficial(folder, "0.9.0", "f32"));
      const base = models.module("transformer");
      const { options } = parseOfficialTransformer(models.configs.transformer, models.path);
      const transformer = new LtxVideoTransformer(
        options,
        new Initializer(device("cpu"), 0, { weights, values: false }),
      );
      const state = async () => {
        const entries = [...transformer.namedParameters()];
        const bytes = await Promise.all(entries.map(([, parameter]) => parameter.readBytes()));
        return new Map(entries.map(([key], i) => [key, Buffer.from(bytes[i]).toString("base64")]));
      };
      await loadWeights(transformer, base);
      const own = await state();
      const [a, b] = [await lora(at("in-a.safetensors")), await lora(at("in-b.safetensors"), { layers: 1 })];
      await applyLoras(transformer, base, [{ lora: a, weight: 1 }]);
      const withA = await state();
      const changed = [...own].filter(([key, values]) => withA.get(key) !== values).map(([key]) => key);
      expect(changed.sort()).toEqual([...a.factors.keys()].sort());
      await applyLoras(transformer, base, [{ lora: b, weight: 2 }], [{ lora: a, weight: 1 }]);
      expect(own.get("transformer_blocks.1.attn1.to_q.weight")).toBe(
        (await state()).get("transformer_blocks.1.attn1.to_q.weight"),
      );
      await applyLoras(transformer, base, [], [{ lora: b, weight: 2 }]);
      expect(await state()).toEqual(own);
      transformer.dispose();
    },
  );

  it("gives 8-bit weights that it changes 16 bits", async () => {
    const models = await open(await writeOfficial(folder, "0.9.5", "fp8"));
    const base = models.module("transformer");
    const merged = withLoras(base, [{ lora: await lora(at("on-fp8.safetensors")), weight: 1 }]);
    const key = "transformer_blocks.0.attn1.to_q.weight";
    expect(base.tensors.get(key)).toMatchObject({ dtype: "F8_E4M3", byteLength: 1024 });
    expect(merged.tensors.get(key)).toMatchObject({ dtype: "BF16", byteLength: 2048 });
    expect((await merged.read(key)).byteLength).toBe(2048);
  });

  it("refuses a LoRA of another model, and what is none", async () => {
    const models = await open(await writeOfficial(folder, "0.9.0", "f32"));
    const base = models.module("transformer");
    const merge = async (name: string, options: Parameters<typeof writeLora>[1], weight = 1) => {
      const other = await lora(at(name), options);
      return failure(() => withLoras(base, [{ lora: other, weight }]));
    };
    const larger = await merge("larger.safetensors", { dim: 64 });
    expect(larger.code).toBe("checkpoint");
    expect(larger.message).toMatch(
      /larger\.safetensors is for another model: transformer_blocks\.0\.attn1\.to_q\.weight is \[32,32\] in the model, \[64,64\] in the LoRA; .* and 1 more$/,
    );
    const deeper = await merge("deeper.safetensors", { layers: 3 });
    expect(deeper.message).toMatch(/the model has no transformer_blocks\.2\.attn1\.to_q\.weight; the model has no /);
    expect((await merge("nan.safetensors", {}, Number.NaN)).code).toBe("invalid_argument");
    const halves = await readSafetensors(await writeLora(at("half.safetensors")));
    opened.push(halves);
    const [name] = [...halves.tensors.keys()].sort();
    const shape = [4, 32];
    await writeSafetensors(at("one.safetensors"), [{ name, dtype: "F32", shape, data: await halves.read(name) }]);
    expect((await failure(() => openLora(at("one.safetensors")))).message).toMatch(
      /only diffusion_model\..* is there$/,
    );
    expect((await failure(() => openLora(models.path))).message).toMatch(
      /is not part of a LoRA: expected names such as diffusion_model\./,
    );
  });
});
