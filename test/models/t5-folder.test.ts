import { mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readSafetensors } from "../../lib/formats/safetensors.js";
import { findT5Folder, T5Folder } from "../../lib/models/text-encoder/index.js";
import { device } from "../../lib/tensor/index.js";
import { PtTensor, writePt } from "../support/pytorch.js";
import { bare, float, floats, scaledWeight } from "../support/scaled.js";
import { testFolder } from "../support/tiny.js";
import { type TinyT5Options, tinyT5Config, writeTinyT5 } from "../support/tiny-t5.js";

const folder = testFolder();
let count = 0;
const write = (options?: TinyT5Options) => writeTinyT5(join(folder, `t5-${++count}`), options);

async function features(path: string, weights?: "bf16"): Promise<Float32Array> {
  const opened = await T5Folder.open(path);
  const encoder = await opened.load(device(), { weights });
  const hidden = encoder.forward([opened.tokenizer.encode("three and 7")]);
  const values = (await hidden.read()) as Float32Array;
  hidden.dispose();
  encoder.dispose();
  return values;
}

describe("a T5's folder", () => {
  it("gives the same features and the same hash from one file, from shards, and from diffusers' folders", async () => {
    const whole = await write();
    const inner = join(folder, "pipeline");
    await writeTinyT5(join(inner, "text_encoder"), { shards: 2 });
    await writeTinyT5(join(inner, "tokenizer"), { tokenizer: "spiece.model" });
    rmSync(join(inner, "text_encoder", "tokenizer.json"));
    const expected = await features(whole);
    expect(expected.some((v) => v !== 0)).toBe(true);
    expect(await features(await write({ shards: 3 }))).toEqual(expected);
    expect(await features(inner)).toEqual(expected);
    const { modelHash } = await T5Folder.open(whole);
    expect((await T5Folder.open(inner)).modelHash).toBe(modelHash);
    expect((await T5Folder.open(await write({ seed: 2 }))).modelHash).not.toBe(modelHash);
  });

  it("reads bf16, the embedding's other name, and passes over the decoder", async () => {
    const rename = await write({
      change: (tensors) => [
        ...tensors.map((t) => (t.name === "shared.weight" ? { ...t, name: "encoder.embed_tokens.weight" } : t)),
        { ...tensors[0], name: "decoder.embed_tokens.weight" },
        { ...tensors[0], name: "lm_head.weight" },
      ],
    });
    const expected = await features(await write());
    expect(await features(rename)).toEqual(expected);
    const folder = await write({ dtype: "BF16" });
    const half = await features(folder);
    expect(await features(folder, "bf16")).toEqual(half);
    const error = Math.hypot(...half.map((v, i) => v - expected[i])) / Math.hypot(...expected);
    expect(error).toBeGreaterThan(0);
    expect(error).toBeLessThan(0.05);
  });

  it.each([
    ["scale_weight", 1],
    ["weight_scale", 3],
  ] as const)("multiplies the scales of fp8 weights in: %s, %d files", async (kind, shards) => {
    const scaled = new Map<string, ReturnType<typeof scaledWeight>>();
    const values = await write({
      change: (tensors) =>
        tensors.map((tensor, i) => {
          if (!/(SelfAttention|DenseReluDense)\.\w+\.weight$/.test(tensor.name)) return tensor;
          const weight = scaledWeight(tensor.name, tensor.shape, i, i % 2 === 0);
          scaled.set(tensor.name, weight);
          return { ...tensor, data: floats([...weight.values]) };
        }),
    });
    const codes = await write({
      shards,
      change: (tensors) => [
        ...tensors.flatMap((tensor) => {
          const own = scaled.get(tensor.name);
          if (!own) return [tensor];
          const name = tensor.name.replace(/weight$/, kind);
          return [own.weight, float(name, own.scales, own.scales.length > 1 ? [own.scales.length] : [])];
        }),
        bare("scaled_fp8", "F8_E4M3", [0]),
        bare("spiece_model", "U8", [7]),
      ],
    });
    expect(scaled.size).toBeGreaterThan(10);
    expect(await features(codes)).toEqual(await features(values));
  });

  it("reads PyTorch's files, sharded too", async () => {
    const whole = await write();
    const expected = await features(whole);
    const file = await readSafetensors(join(whole, "model.safetensors"));
    const state = new Map<string, PtTensor>();
    for (const [name, { shape }] of file.tensors) {
      state.set(name, PtTensor.f32(Array.from(await file.readF32(name)), shape));
    }
    await file.close();
    const [one, two] = [await write(), await write()];
    for (const path of [one, two]) rmSync(join(path, "model.safetensors"));
    await writePt(join(one, "pytorch_model.bin"), state);
    expect(await features(one)).toEqual(expected);
    const parts = [new Map([...state].slice(0, 7)), new Map([...state].slice(7))];
    const map: Record<string, string> = {};
    for (const [i, part] of parts.entries()) {
      await writePt(join(two, `part-${i}.bin`), part);
      for (const name of part.keys()) map[name] = `part-${i}.bin`;
    }
    writeFileSync(join(two, "pytorch_model.bin.index.json"), JSON.stringify({ weight_map: map }));
    expect(await features(two)).toEqual(expected);
    expect((await T5Folder.open(two)).modelHash).toBe((await T5Folder.open(whole)).modelHash);
  });

  const config = (changes: object) => JSON.stringify({ ...tinyT5Config, ...changes });
  it.each<[string, string, string, (path: string) => void, TinyT5Options?]>([
    ["has no config.json", "checkpoint", "config.json is missing", (p) => rmSync(join(p, "config.json"))],
    ["has a damaged config.json", "file_format", "cannot be read", (p) => writeFileSync(join(p, "config.json"), "{")],
    [
      "has a million layers",
      "file_format",
      "num_layers is no T5's",
      (p) => writeFileSync(join(p, "config.json"), config({ num_layers: 1e6 })),
    ],
    ["is no T5", "file_format", "d_kv", (p) => writeFileSync(join(p, "config.json"), config({ d_kv: "x" }))],
    [
      "has another T5's tokenizer",
      "checkpoint",
      "has 28 tokens, the model only 20",
      (p) => writeFileSync(join(p, "config.json"), config({ vocab_size: 20 })),
    ],
    [
      "is a T5 of version 1.0",
      "unavailable",
      "gated-gelu",
      (p) => writeFileSync(join(p, "config.json"), config({ feed_forward_proj: "relu" })),
    ],
    [
      "has weights of another width",
      "checkpoint",
      "shared.weight has shape [40,16], expected [40,24]",
      (p) => writeFileSync(join(p, "config.json"), config({ d_model: 24 })),
    ],
    [
      "has more layers than its config.json says",
      "checkpoint",
      "is not part of such an encoder",
      (p) => writeFileSync(join(p, "config.json"), config({ num_layers: 1 })),
    ],
    ["has no weights", "checkpoint", "holds no weights", (p) => rmSync(join(p, "model.safetensors"))],
    ["has no tokenizer", "checkpoint", "tokenizer.json or spiece.model", (p) => rmSync(join(p, "tokenizer.json"))],
    ["has a damaged tokenizer", "file_format", "tokenizer.json", (p) => writeFileSync(join(p, "tokenizer.json"), "[")],
    ["has damaged weights", "file_format", "safetensors", (p) => writeFileSync(join(p, "model.safetensors"), "x")],
    [
      "lacks a shard",
      "checkpoint",
      "model-00002-of-00002.safetensors is missing",
      (p) => rmSync(join(p, "model-00002-of-00002.safetensors")),
      { shards: 2 },
    ],
    [
      "lacks a tensor",
      "checkpoint",
      "encoder.final_layer_norm.weight is missing",
      () => {},
      { change: (tensors) => tensors.slice(0, -1) },
    ],
    [
      "has an index that leads out of it",
      "file_format",
      "weight_map",
      (p) => {
        const map = { "shared.weight": "../t5-1/model.safetensors" };
        writeFileSync(join(p, "model.safetensors.index.json"), JSON.stringify({ weight_map: map }));
      },
      { shards: 2 },
    ],
    [
      "has an index that promises too much",
      "checkpoint",
      "lacks",
      (p) => {
        const map = {
          "shared.weight": "model-00001-of-00002.safetensors",
          "encoder.x": "model-00001-of-00002.safetensors",
        };
        writeFileSync(join(p, "model.safetensors.index.json"), JSON.stringify({ weight_map: map }));
      },
      { shards: 2 },
    ],
  ])("is refused when it %s", async (_, code, message, damage, options) => {
    const path = await write(options);
    damage(path);
    await expect(T5Folder.open(path)).rejects.toMatchObject({ code, message: expect.stringContaining(message) });
  });
});

describe("findT5Folder", () => {
  const version = "google/t5-v1_1-base";
  const home = join(folder, "hub-home");
  const none = { HF_HOME: join(folder, "nowhere") };

  it("takes the path, then LTX_TEXT_ENCODERS, then the main revision in the Hugging Face cache", async () => {
    const own = join(folder, "own");
    for (const path of [join(own, version), join(own, "flat", "t5-v1_1-base")]) mkdirSync(path, { recursive: true });
    const model = join(home, "hub", "models--google--t5-v1_1-base");
    for (const path of ["refs", "snapshots/aaa", "snapshots/bbb"]) mkdirSync(join(model, path), { recursive: true });
    const env = { HF_HOME: home };
    expect(await findT5Folder({ version }, { env })).toBe(join(model, "snapshots", "aaa"));
    writeFileSync(join(model, "refs", "main"), "bbb\n");
    expect(await findT5Folder({ version }, { env })).toBe(join(model, "snapshots", "bbb"));
    expect(await findT5Folder({ version }, { env: { ...env, LTX_TEXT_ENCODERS: own } })).toBe(join(own, version));
    const flat = join(own, "flat");
    expect(await findT5Folder({ version }, { env: { LTX_TEXT_ENCODERS: flat } })).toBe(join(flat, "t5-v1_1-base"));
    expect(await findT5Folder({ version, path: own }, { env })).toBe(own);
    symlinkSync(own, join(folder, "link"));
    expect(await findT5Folder({ version, path: join(folder, "link") }, { env })).toBe(join(folder, "link"));
  });

  it("says what is needed, and where, when nothing is found", async () => {
    const path = join(folder, "gone");
    await expect(findT5Folder({ version }, { env: none })).rejects.toMatchObject({
      code: "unavailable",
      message: expect.stringMatching(
        /google\/t5-v1_1-base.*config\.json.*tokenizer\.json.*--text-encoder.*LTX_TEXT_ENC/s,
      ),
    });
    // A path that was asked for is not replaced by something else, one that was written down elsewhere may be.
    const env = { HF_HOME: home };
    await expect(findT5Folder({ version, path }, { env })).rejects.toMatchObject({
      code: "unavailable",
      message: expect.stringContaining(path),
    });
    expect(await findT5Folder({ version, path }, { env, fallback: true })).toContain("bbb");
  });

  it("takes a version that is a folder's path, as from_pretrained does", async () => {
    const own = await write();
    expect(await findT5Folder({ version: own }, { env: none })).toBe(own);
    await expect(findT5Folder({ version: "./not-there" }, { env: none })).rejects.toMatchObject({
      code: "unavailable",
      message: expect.stringContaining("(looked for ./not-there)"),
    });
  });

  it("says that a single file is not a text encoder's folder", async () => {
    const whole = join(await write(), "model.safetensors");
    const gguf = join(folder, "t5-Q4_K_M.gguf");
    writeFileSync(gguf, "GGUF\x03\0\0\0");
    const expected: [string, string][] = [
      [whole, "is a safetensors file, expected a folder"],
      [gguf, "is a GGUF file (quantized weights)"],
    ];
    for (const [path, message] of expected) {
      for (const open of [
        () => T5Folder.open(path),
        () => findT5Folder({ version, path }, { env: none }),
        () => findT5Folder({ version: path }, { env: none }),
      ]) {
        await expect(open()).rejects.toMatchObject({ code: "checkpoint", message: expect.stringContaining(message) });
      }
    }
  });
});
