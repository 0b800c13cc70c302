import { mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { newerModel, otherModel } from "../../lib/formats/known-models.js";
import { openOfficial } from "../../lib/formats/official/open.js";
import { type SafetensorsTensor, writeSafetensors } from "../../lib/formats/safetensors.js";
import { isIndexName, openShards } from "../../lib/formats/sharded.js";
import { failure } from "../support/failure.js";
import { tensorsOf, transformerConfig, transformerShapes } from "../support/official.js";
import { testFolder } from "../support/tiny.js";

const folder = testFolder();
let count = 0;
const newFolder = () => {
  const path = join(folder, `model-${++count}`);
  mkdirSync(path);
  return path;
};
const tensor = (name: string, value: number): SafetensorsTensor => ({
  name,
  dtype: "F32",
  shape: [1],
  data: new Uint8Array(Float32Array.of(value).buffer),
});

/** What `a` and `b` hold in the weights of a folder. */
async function valuesIn(path: string, names?: string[]): Promise<number[]> {
  const file = await openShards(path, undefined, names);
  try {
    return [(await file.readF32("a"))[0], (await file.readF32("b"))[0]];
  } finally {
    await file.close();
  }
}

async function writeShards(path: string, stem: string, index: string): Promise<void> {
  const names = [1, 2].map((i) => `${stem}-0000${i}-of-00002.safetensors`);
  await writeSafetensors(join(path, names[0]), [tensor("a", 3)]);
  await writeSafetensors(join(path, names[1]), [tensor("b", 4)]);
  writeFileSync(join(path, index), JSON.stringify({ weight_map: { a: names[0], b: names[1] } }));
}

const DIFFUSERS = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"];

describe("variants of a model's weights", () => {
  it.each([
    ["model.fp16.safetensors", undefined],
    ["model.bf16.safetensors", undefined],
    ["diffusion_pytorch_model.fp8_e4m3fn.safetensors", DIFFUSERS],
    ["diffusion_pytorch_model.non_ema.safetensors", DIFFUSERS],
  ])("%s is taken when it is the only one", async (name, names) => {
    const path = newFolder();
    await writeSafetensors(join(path, name), [tensor("a", 1), tensor("b", 2)]);
    expect(await valuesIn(path, names)).toEqual([1, 2]);
  });

  it.each([
    ["model.fp16", "model.safetensors.index.fp16.json", undefined],
    ["model.bf16", "model.bf16.safetensors.index.json", undefined],
    ["diffusion_pytorch_model.bf16", "diffusion_pytorch_model.safetensors.index.bf16.json", DIFFUSERS],
  ])("shards %s-00001-of-00002 with %s", async (stem, index, names) => {
    const path = newFolder();
    await writeShards(path, stem, index);
    expect(await valuesIn(path, names)).toEqual([3, 4]);
    expect(isIndexName(index)).toBe(true);
  });

  it("stand behind the one without a name, in a file or in shards", async () => {
    const path = newFolder();
    await writeSafetensors(join(path, "model.fp16.safetensors"), [tensor("a", 9), tensor("b", 9)]);
    await writeShards(path, "model", "model.safetensors.index.json");
    expect(await valuesIn(path)).toEqual([3, 4]);
    await writeSafetensors(join(path, "model.safetensors"), [tensor("a", 5), tensor("b", 6)]);
    expect(await valuesIn(path)).toEqual([5, 6]);
  });

  it("are asked for when there are several", async () => {
    const path = newFolder();
    await writeSafetensors(join(path, "model.fp16.safetensors"), [tensor("a", 1)]);
    await writeShards(path, "model.bf16", "model.safetensors.index.bf16.json");
    const error = await failure(() => openShards(path));
    expect(error.code).toBe("checkpoint");
    expect(error.message).toMatch(
      /several variants of model\.safetensors: .*fp16.*; leave the one that is meant there/,
    );
    expect(error.message).toContain("model.safetensors.index.bf16.json");
  });

  it("of a transformer's folder and of a folder of shards alone", async () => {
    const whole = newFolder();
    mkdirSync(join(whole, "transformer"));
    const tensors = tensorsOf(transformerShapes(), () => "F32");
    await writeSafetensors(join(whole, "transformer", "diffusion_pytorch_model.bf16.safetensors"), tensors);
    writeFileSync(join(whole, "transformer", "config.json"), JSON.stringify(transformerConfig));
    const models = await openOfficial(whole);
    await models.close();
    expect(models.kinds).toEqual(["transformer"]);
    const shards = newFolder();
    const names = ["x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors"];
    const parts = [tensors.slice(0, 5), tensors.slice(5)];
    for (const [i, part] of parts.entries()) await writeSafetensors(join(shards, names[i]), part);
    const map = parts.flatMap((part, i) => part.map(({ name }) => [name, names[i]]));
    const index = join(shards, "x.safetensors.index.fp16.json");
    writeFileSync(index, JSON.stringify({ weight_map: Object.fromEntries(map) }));
    for (const path of [shards, index]) {
      const opened = await openOfficial(path);
      await opened.close();
      expect(opened.kinds).toEqual(["transformer"]);
    }
  });
});

describe("a folder without weights", () => {
  it.each<[string, (path: string) => void, string]>([
    ["says that it is empty", () => {}, "the folder is empty"],
    ["names what it holds", (p) => writeFileSync(join(p, "model.gguf"), "GGUF"), "found model.gguf"],
    [
      "misses the shards' index",
      (p) => writeFileSync(join(p, "model-00001-of-00003.safetensors"), ""),
      "the index of its shards (such as model-00001-of-00003.safetensors) is missing",
    ],
    [
      "names a link that leads nowhere",
      (p) => symlinkSync("../blobs/00ff", join(p, "model.safetensors")),
      "model.safetensors is a link to a file that is not there",
    ],
  ])("%s", async (_, prepare, reason) => {
    const path = newFolder();
    prepare(path);
    const error = await failure(() => openShards(path));
    expect(error.code).toBe("checkpoint");
    expect(error.message).toContain(`${path} holds no weights: expected model.safetensors`);
    expect(error.message).toContain(reason);
  });

  it("that is a file, or is not there", async () => {
    const path = newFolder();
    rmSync(path, { recursive: true });
    expect((await failure(() => openShards(path))).message).toContain("cannot be read (ENOENT)");
    writeFileSync(path, "");
    expect((await failure(() => openShards(path))).message).toContain("is a file, expected the folder of a model");
    renameSync(path, `${path}-file`);
  });
});

describe("models of other families", () => {
  const ask = (names: string[], metadata = {}) => {
    const tensors = new Map(names.map((name) => [name, { dtype: "F32" as const, shape: [1], byteLength: 4 }]));
    return newerModel({ metadata, tensors }) ?? otherModel({ tensors });
  };

  it.each<[string, string, Record<string, string>?]>([
    ["model.diffusion_model.audio_adaln_single.linear.weight", "LTX-2, which makes video with sound"],
    ["transformer_blocks.0.audio_attn1.to_q.weight", "LTX-2, which makes video with sound"],
    ["av_ca_a2v_gate_adaln_single.linear.weight", "LTX-2, which makes video with sound"],
    ["transformer_blocks.7.scale_shift_table_to_audio.weight", "LTX-2, which makes video with sound"],
    ["patchify_proj.weight", "LTX-2 (version 2.3.0)", { model_version: "2.3.0" }],
    ["encoder.block.3.layer.0.SelfAttention.q.weight", "a T5 text encoder"],
    ["text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight", "a T5 text encoder"],
    ["text_model.encoder.layers.0.mlp.fc1.weight", "a CLIP text encoder"],
    ["model.language_model.layers.0.self_attn.q_proj.weight", "a language model"],
    ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "a FLUX or HunyuanVideo model"],
    ["blocks.0.self_attn.norm_k.weight", "a Wan model"],
    ["model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion model"],
  ])("%s", (name, what, metadata) => {
    expect(ask([name], metadata)).toContain(what);
  });

  it("are not LTX-Video's own, nor files that nobody knows", () => {
    const own = [...transformerShapes().keys()];
    expect(ask(own)).toBeUndefined();
    expect(
      ask(
        own.map((name) => `model.diffusion_model.${name}`),
        { model_version: "0.9.5" },
      ),
    ).toBeUndefined();
    expect(ask(["vae.decoder.conv_in.conv.weight", "audio_vae.a.weight", "a.weight"])).toBeUndefined();
  });

  it("are named by those who open a model", async () => {
    const path = newFolder();
    for (const [name, what] of [
      [
        "model.diffusion_model.transformer_blocks.0.audio_attn1.to_q.weight",
        "is LTX-2, which makes video with sound: this package runs LTX-Video 0.9.0 to 0.9.8",
      ],
      [
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "is a T5 text encoder, not a video model: give it as the text encoder",
      ],
    ]) {
      await writeSafetensors(join(path, "x.safetensors"), [tensor(name, 1)]);
      const error = await failure(() => openOfficial(join(path, "x.safetensors")));
      expect([error.code, error.message]).toEqual(["checkpoint", expect.stringContaining(what)]);
    }
  });
});
