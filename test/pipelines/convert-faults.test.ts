import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openOfficial } from "../../lib/formats/official/open.js";
import { readSafetensors, type SafetensorsTensor, writeSafetensors } from "../../lib/formats/safetensors.js";
import { convert } from "../../lib/pipelines/index.js";
import { failure } from "../support/failure.js";
import {
  tensorsOf,
  transformerConfig,
  transformerShapes,
  vaeConfig,
  vaeShapes,
  writeLora,
  writeOfficial,
} from "../support/official.js";
import { bare, float, json, scaledWeight } from "../support/scaled.js";
import { call, testFolder } from "../support/tiny.js";

const folder = testFolder();
const at = (...names: string[]) => join(folder, ...names);
let count = 0;
const fresh = () => at(`out-${count++}.safetensors`);

const bf16 = (shapes: ReturnType<typeof transformerShapes>, prefix = "") => tensorsOf(shapes, () => "BF16", prefix);
async function write(tensors: readonly SafetensorsTensor[], metadata: Record<string, string> = {}): Promise<string> {
  const path = fresh();
  await writeSafetensors(path, tensors, metadata);
  return path;
}
const config = JSON.stringify({ transformer: transformerConfig, vae: vaeConfig("0.9.5") });

async function values(path: string, name: string): Promise<Float32Array> {
  const file = await readSafetensors(path);
  const found = await file.readF32(name);
  await file.close();
  return found;
}
async function names(path: string): Promise<string[]> {
  const file = await readSafetensors(path);
  await file.close();
  return [...file.tensors.keys()];
}

/** float32 numbers rounded to bf16. */
const halved = (numbers: Float32Array): Float32Array => {
  const words = new Uint32Array(Float32Array.from(numbers).buffer);
  return new Float32Array(words.map((word) => ((word + 0x7fff + ((word >>> 16) & 1)) >>> 16) << 16).buffer);
};

describe("fp8 weights with scales", () => {
  const key = "transformer_blocks.1.ff.net.0.proj";
  const rows = "transformer_blocks.0.attn1.to_k";
  const conv = "encoder.conv_in.conv";

  /** A whole model with three scaled weights, one of them the VAE's. */
  async function scaledModel(form: "old" | "new", prefix = "model.diffusion_model.") {
    const [scale, input] = form === "old" ? ["scale_weight", "scale_input"] : ["weight_scale", "input_scale"];
    const scaled = {
      [prefix + key]: scaledWeight(`${prefix + key}.weight`, [128, 32], 3),
      [prefix + rows]: scaledWeight(`${prefix + rows}.weight`, [32, 32], 4, true),
      [`vae.${conv}`]: scaledWeight(`vae.${conv}.weight`, vaeShapes("0.9.5").get(`${conv}.weight`) ?? [], 5),
    };
    const tensors = [...bf16(transformerShapes(), prefix), ...bf16(vaeShapes("0.9.5"), "vae.")].map(
      (tensor) => scaled[tensor.name.replace(/\.weight$/, "")]?.weight ?? tensor,
    );
    const companions = Object.entries(scaled).flatMap(([name, { scales }]) => [
      float(`${name}.${scale}`, scales, scales.length > 1 ? [scales.length, 1] : []),
      float(`${name}.${input}`, [1], [1]),
      ...(form === "new" ? [json(`${name}.comfy_quant`, { format: "float8_e4m3fn" })] : []),
    ]);
    const marker = form === "old" ? [bare(`${prefix}scaled_fp8`, "F8_E4M3", [2])] : [];
    return { scaled, path: await write([...tensors, ...companions, ...marker], { config }) };
  }

  it.each(["old", "new"] as const)(
    "become the weights that they stand for, in every form: the %s names",
    async (form) => {
      const { path, scaled } = await scaledModel(form);
      const [ff, to_k, conv_in] = Object.values(scaled).map((weight) => weight.values);
      const plain = await names(await writeOfficial(folder, "0.9.5", "bf16"));
      for (const [dtype, round] of [
        ["f32", (numbers: Float32Array) => numbers],
        ["bf16", halved],
        [undefined, halved],
      ] as const) {
        for (const to of ["official", "ltx-native", undefined] as const) {
          const result = await convert(path, fresh(), { to, dtype });
          const [before, vae] = to === "ltx-native" ? ["transformer.", "vae."] : ["model.diffusion_model.", "vae."];
          expect(await values(result.path, `${before}${key}.weight`)).toEqual(round(ff));
          expect(await values(result.path, `${before}${rows}.weight`)).toEqual(round(to_k));
          expect(await values(result.path, `${vae}${conv}.weight`)).toEqual(round(conv_in));
          if (to !== "ltx-native") expect((await names(result.path)).sort()).toEqual([...plain].sort());
          expect(result.leftOut).toEqual([]);
        }
      }
      const diffusers = await convert(path, at(`diffusers-${form}`), { to: "diffusers", dtype: "f32" });
      const weights = join(diffusers.path, "transformer", "diffusion_pytorch_model.safetensors");
      expect(await values(weights, `${key}.weight`)).toEqual(ff);
      expect((await names(weights)).filter((name) => /scale(?!_shift)|quant/.test(name))).toEqual([]);
      const models = await openOfficial(path);
      expect(await models.module("transformer").readF32(`${rows}.weight`)).toEqual(to_k);
      await models.close();
    },
  );

  it("are read from shards whose scales lie elsewhere than their weights", async () => {
    const { path, scaled } = await scaledModel("old");
    const file = await readSafetensors(path);
    const place = at("scaled-shards");
    mkdirSync(place);
    const weight_map: Record<string, string> = {};
    for (const [i, part] of [/scale_|scaled_/, /^/].entries()) {
      const own = [...file.tensors].filter(
        ([name]) => !(name in weight_map) && part.test(name) && (i > 0 || !/table/.test(name)),
      );
      const name = `m-0000${i + 1}-of-00002.safetensors`;
      for (const [tensor] of own) weight_map[tensor] = name;
      const tensors = own.map(([name, { dtype, shape }]) => ({ name, dtype, shape, data: () => file.read(name) }));
      await writeSafetensors(join(place, name), tensors, { config });
    }
    await file.close();
    writeFileSync(join(place, "m.safetensors.index.json"), JSON.stringify({ weight_map }));
    const result = await convert(place, fresh(), { to: "official", dtype: "f32" });
    expect(await values(result.path, `model.diffusion_model.${key}.weight`)).toEqual(Object.values(scaled)[0].values);
  });

  it("of a form that is not known stop the conversion", async () => {
    const tensors = [...bf16(transformerShapes(), "model.diffusion_model."), ...bf16(vaeShapes("0.9.5"), "vae.")];
    const name = `model.diffusion_model.${key}`;
    const stray = tensors.map((tensor) =>
      tensor.name === `${name}.weight` ? scaledWeight(tensor.name, tensor.shape, 1).weight : tensor,
    );
    const path = await write([...stray, float(`${name}.offset`, [1])], { config });
    for (const options of [{ to: "official", dtype: "bf16" }, { to: "diffusers" }, { dtype: "f32" }] as const) {
      const error = await failure(() => convert(path, options.to === "diffusers" ? at("no") : fresh(), options));
      expect(error).toMatchObject({
        code: "checkpoint",
        message: expect.stringMatching(/proj\.offset" stands beside the 8-bit/),
      });
    }
  });

  const shared = join(__dirname, "..", "..", "..", "shared", "cases", "field", "fp8_scaled_comfy.safetensors");
  it.skipIf(!existsSync(shared))(
    "of ComfyUI's own kind: the size of weights, not of codes (../shared/cases)",
    async () => {
      const result = await convert(shared, fresh(), { to: "official", dtype: "bf16" });
      const name = "model.diffusion_model.transformer_blocks.0.attn1.to_k.weight";
      const [found, codes] = [await values(result.path, name), await values(shared, name)];
      const scale = (await values(shared, name.replace(/weight$/, "scale_weight")))[0];
      expect(found).toEqual(halved(codes.map((code) => code * scale)));
      expect((await names(result.path)).filter((name) => /scale_weight|scaled_fp8/.test(name))).toEqual([]);
    },
  );
});

describe("what a conversion leaves out", () => {
  const extra = (names: readonly string[]) => names.map((name) => float(name, [1], [1]));
  const others = [
    "text_encoders.t5xxl.transformer.shared.weight",
    "model_ema.decay",
    "model_ema.diffusion_modelproj_outweight",
    "audio_vae.encoder.conv_in.conv.weight",
    "cond_stage_model.x",
    "betas",
    "vae.unknown_table",
  ];

  it.each([
    ["model.diffusion_model.", "first_stage_model."],
    ["diffusion_model.", "vae."],
    ["model.diffusion_model.", "vae."],
  ])("is named, whatever the models' prefixes: %s and %s", async (transformer, vae) => {
    const left = others.map((name) => (name.startsWith("vae.") ? vae + name.slice(4) : name));
    const whole = [...bf16(transformerShapes(), transformer), ...bf16(vaeShapes("0.9.5"), vae)];
    const path = await write([...whole, ...extra(left)], { config });
    const result = await convert(path, fresh(), { to: "official" });
    expect(result.tensors).toBe(whole.length);
    expect([...result.leftOut].sort()).toEqual([...left].sort());
    expect(result.notices).toEqual([
      expect.stringMatching(/^7 tensors are left out, .*2 of model_ema, 1 of text_encoders.*\(the first is "/),
    ]);
    const expected = await names(await writeOfficial(folder, "0.9.5", "bf16"));
    expect((await names(result.path)).sort()).toEqual([...expected].sort());
    const key = "encoder.conv_in.conv.bias";
    expect(await values(result.path, `vae.${key}`)).toEqual(await values(path, vae + key));
    const out = fresh();
    const { stdout, stderr } = await call("convert", "--checkpoint", path, "--to", "official", "--out", out);
    expect(stderr).toMatch(/^7 tensors are left out/);
    expect(stdout).toMatch(new RegExp(`^${out}: ${whole.length} tensors, .* read back\\n$`));
    const events = await call("convert", "--checkpoint", path, "--to", "official", "--out", fresh(), "--json");
    const lines = events.stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines.map(({ type }) => type)).toEqual(["notice", "converted"]);
    expect([...lines[1].leftOut].sort()).toEqual([...left].sort());
  });

  it("is the second of two VAEs, and nothing of a model alone", async () => {
    const both = [...bf16(vaeShapes("0.9.5"), "vae."), ...bf16(vaeShapes("0.9.5"), "first_stage_model.")];
    const result = await convert(await write(both, { config }), fresh(), { to: "official" });
    expect(result.leftOut).toHaveLength(both.length / 2);
    expect(result.leftOut.every((name) => name.startsWith("first_stage_model."))).toBe(true);
    const alone = await write([...bf16(vaeShapes("0.9.5")), float("text_encoders.x", [1])], {
      config: JSON.stringify(vaeConfig("0.9.5")),
    });
    expect((await convert(alone, fresh(), { to: "official" })).leftOut).toEqual(["text_encoders.x"]);
    const whole = await convert(await writeOfficial(folder, "0.9.1", "bf16"), fresh(), { to: "official" });
    expect(whole).toMatchObject({ leftOut: [], notices: [] });
  });

  it.each(["0.9.0", "0.9.1", "0.9.5"] as const)("is no tensor of a release: %s", async (generation) => {
    const result = await convert(await writeOfficial(folder, generation, "bf16"), fresh(), { to: "official" });
    expect(result.leftOut).toEqual([]);
  });

  it("tells values that are no numbers, which it keeps", async () => {
    const broken = bf16(vaeShapes("0.9.5")).map((tensor, i) => {
      const data = Uint8Array.from(tensor.data as Uint8Array);
      if (i === 2) new Uint16Array(data.buffer).set([0x7fc0, 0x7f80, 0xff80, 0xffff], 1);
      return { ...tensor, data };
    });
    const path = await write(broken, { config: JSON.stringify(vaeConfig("0.9.5")) });
    for (const options of [{ to: "official" }, { to: "official", dtype: "f32" }, { dtype: "f16" }, {}] as const) {
      const { notices } = await convert(path, fresh(), options);
      expect(notices).toEqual([
        expect.stringMatching(/^values that are not finite were kept: ".*" \(2 NaN and 2 infinite of \d+\)/),
      ]);
    }
  });
});

describe("LTX-2", () => {
  it.each<[string, SafetensorsTensor[], Record<string, string>]>([
    ["its sound", [float("model.diffusion_model.audio_adaln_single.linear.weight", [1], [1])], {}],
    [
      "its sound in the blocks",
      [float("model.diffusion_model.transformer_blocks.0.audio_attn1.to_q.weight", [1], [1])],
      {},
    ],
    ["its gates", [float("model.diffusion_model.transformer_blocks.0.attn1.to_gate_logits.weight", [1], [1])], {}],
    ["its version", [], { model_version: "2.3.1" }],
  ])("is named, by %s, to everyone who opens it", async (_, tensors, metadata) => {
    const path = await write(
      [...bf16(transformerShapes(), "model.diffusion_model."), ...bf16(vaeShapes("0.9.5"), "vae."), ...tensors],
      {
        config,
        ...metadata,
      },
    );
    for (const run of [() => openOfficial(path), () => convert(path, fresh(), { to: "official" })]) {
      expect(await failure(run)).toMatchObject({
        code: "checkpoint",
        message: expect.stringMatching(
          /is LTX-2( \(version 2\.3\.1\))?, which makes video with sound: this package runs LTX-Video 0\.9\.0 to 0\.9\.8$/,
        ),
      });
    }
  });
});

it("brings a transformer and a VAE that lie in two files into one folder, as the message about one alone says", async () => {
  const parts = {
    transformer: await write(bf16(transformerShapes()), { config: JSON.stringify(transformerConfig) }),
    vae: await write(bf16(vaeShapes("0.9.5")), { config: JSON.stringify(vaeConfig("0.9.5")) }),
  };
  const alone = await openOfficial(parts.transformer);
  expect(await failure(async () => alone.module("vae"))).toMatchObject({
    code: "checkpoint",
    message: expect.stringMatching(
      /holds no VAE, only a transformer: .* --to diffusers --out FOLDER" for each, the second with --force/,
    ),
  });
  await alone.close();
  const out = at("joined");
  await convert(parts.transformer, out, { to: "diffusers" });
  await convert(parts.vae, out, { to: "diffusers", force: true });
  const models = await openOfficial(out);
  expect(models.kinds).toEqual(["transformer", "vae"]);
  const key = "encoder.conv_in.conv.weight";
  expect(await models.module("vae").readF32(key)).toEqual(await values(parts.vae, key));
  await models.close();
});

describe("diffusers' model_index.json", () => {
  it("names the pipeline that has the model's positions", async () => {
    for (const [generation, name] of [
      ["0.9.1", "LTXPipeline"],
      ["0.9.5", "LTXConditionPipeline"],
    ] as const) {
      const { path } = await convert(await writeOfficial(folder, generation), at(`index-${generation}`), {
        to: "diffusers",
      });
      expect(JSON.parse(readFileSync(join(path, "model_index.json"), "utf8"))).toMatchObject({
        _class_name: name,
        transformer: ["diffusers", "LTXVideoTransformer3DModel"],
        text_encoder: ["transformers", "T5EncoderModel"],
      });
    }
  });

  it("of an upscaler alone is that of its pipeline; of a VAE alone there is none", async () => {
    const norm = (name: string) => [`${name}.weight`, `${name}.bias`].map((key) => bare(key, "BF16", [32]));
    const layer = (name: string, shape: number[]) => [
      bare(`${name}.weight`, "BF16", shape),
      bare(`${name}.bias`, "BF16", [shape[0]]),
    ];
    const upsampler = [
      ...layer("initial_conv", [32, 8, 3, 3, 3]),
      ...norm("initial_norm"),
      ...layer("upsampler.0", [128, 32, 3, 3]),
      ...layer("final_conv", [8, 32, 3, 3, 3]),
    ];
    const own = JSON.stringify({
      _class_name: "LatentUpsampler",
      in_channels: 8,
      mid_channels: 32,
      num_blocks_per_stage: 0,
      dims: 3,
    });
    const { path } = await convert(await write(upsampler, { config: own }), at("index-upsampler"), { to: "diffusers" });
    expect(JSON.parse(readFileSync(join(path, "model_index.json"), "utf8"))).toEqual({
      _class_name: "LTXLatentUpsamplePipeline",
      _diffusers_version: "0.32.0",
      latent_upsampler: ["diffusers", "LTXLatentUpsamplerModel"],
      vae: [null, null],
    });
    const vae = await convert(
      await write(bf16(vaeShapes("0.9.5")), { config: JSON.stringify(vaeConfig("0.9.5")) }),
      at("index-vae"),
      { to: "diffusers" },
    );
    expect(readdirSync(vae.path)).toEqual(["vae"]);
  });
});

describe("the way out of a conversion", () => {
  it("is looked at before the work", async () => {
    const source = await writeOfficial(folder, "0.9.5");
    const place = at("way out");
    mkdirSync(place);
    writeFileSync(join(place, "file"), "");
    const long = "x".repeat(250);
    for (const [out, code, message] of [
      [
        join(place, "no", "x.safetensors"),
        "io",
        /cannot write .*x\.safetensors: .*way out\/no does not exist; make that folder first/,
      ],
      [join(place, "file", "x.safetensors"), "io", /way out\/file is not a folder/],
      [join(place, `${long}.safetensors`), "invalid_argument", /is longer than 255 bytes: choose a shorter one/],
      ["", "invalid_argument", /name the result \*\.safetensors/],
    ] as const) {
      expect(await failure(() => convert(source, out, { to: "official" }))).toMatchObject({
        code,
        message: expect.stringMatching(message),
      });
      const result = await call("convert", "--checkpoint", source, "--out", out);
      expect([out, result.code]).toEqual([out, code === "io" ? 1 : 2]);
      expect(result.stderr).not.toMatch(/\.tmp|\.partial/);
    }
    const stem = "y".repeat(240);
    expect(
      await failure(() => convert(source, join(place, stem), { to: "official", maxShardSize: 1e5 })),
    ).toMatchObject({
      message: expect.stringMatching(/-00001-of-\d+\.safetensors is longer than 255 bytes/),
    });
    expect(readdirSync(place)).toEqual(["file"]);
    const name = `${"z".repeat(243)}.safetensors`;
    expect((await convert(source, join(place, name), { to: "official" })).tensors).toBeGreaterThan(100);
    expect(readdirSync(place).sort()).toEqual(["file", name]);
  });

  it("never takes the place of what is converted, by whatever name", async () => {
    const source = at("own.safetensors");
    renameSync(await writeOfficial(folder, "0.9.5"), source);
    const before = readFileSync(source);
    const lora = await writeLora(at("own-lora.safetensors"));
    symlinkSync(source, at("link.safetensors"));
    const diffusers = (await convert(source, at("own-diffusers"), { to: "diffusers" })).path;
    const inside = join(diffusers, "vae", "diffusion_pytorch_model.safetensors");
    for (const [from, to, options] of [
      [source, source, { to: "official" }],
      [source, at("link.safetensors"), { to: "official" }],
      [at("link.safetensors"), source, { dtype: "f32" }],
      [source, join(folder, ".", "own.safetensors"), {}],
      [source, lora, { to: "official", loras: [{ path: lora }] }],
      [lora, lora, { to: "diffusers" }],
      [diffusers, diffusers, { to: "diffusers" }],
      [diffusers, inside, { to: "official" }],
      [join(diffusers, "vae"), diffusers, { to: "diffusers" }],
    ] as const) {
      const error = await failure(() => convert(from, to, { ...options, force: true }));
      expect([from, to, error.code]).toEqual([from, to, "invalid_argument"]);
      expect(error.message).toMatch(/choose another place for the result$/);
    }
    expect(readFileSync(source).equals(before)).toBe(true);
  });

  it("says that the disk is too full before it writes", async () => {
    const huge = { name: "a", dtype: "F32", shape: [2 ** 46], data: async () => new Uint8Array(0) } as const;
    const { writeModelFile } = await import("../../lib/pipelines/write-model.js");
    const error = await failure(() => writeModelFile(at("huge.safetensors"), { tensors: [huge], metadata: {} }));
    expect(error).toMatchObject({
      code: "io",
      message: expect.stringMatching(/it takes 281475\.0 GB, the disk has [\d.]+ [MG]B free$/),
    });
    expect(existsSync(at(".huge.safetensors.partial"))).toBe(false);
  });

  it("is one conversion's at a time; what a dead one left is taken over", async () => {
    const source = await writeOfficial(folder, "0.9.1");
    const out = at("reserved.safetensors");
    const work = at(".reserved.safetensors.partial");
    const owner = (pid: number, began: string, host = hostname()) => {
      mkdirSync(work, { recursive: true });
      writeFileSync(join(work, "owner.json"), JSON.stringify({ pid, began, host }));
      writeFileSync(join(work, "result"), "half");
    };
    const began = readFileSync(`/proc/${process.pid}/stat`, "utf8").split(") ")[1].split(" ")[19];
    owner(process.pid, began);
    expect(await failure(() => convert(source, out, { to: "official" }))).toMatchObject({
      code: "file_exists",
      message: expect.stringMatching(`is being written by process ${process.pid}: wait for it`),
    });
    owner(1, "0", "another-machine");
    expect((await failure(() => convert(source, out, { to: "official" }))).message).toMatch(
      /by process 1 on another-machine/,
    );
    expect(readdirSync(work).sort()).toEqual(["owner.json", "result"]);
    const { pid } = spawnSync("true");
    for (const [id, start] of [
      [pid, "1"],
      [process.pid, "1"],
    ] as const) {
      owner(id, start);
      await convert(source, out, { to: "official", force: true });
      expect(existsSync(work)).toBe(false);
    }
    const size = statSync(out).size;
    const results = await Promise.allSettled(
      [1, 2, 3].map(() => convert(source, at("race.safetensors"), { to: "official" })),
    );
    expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    for (const result of results) if (result.status === "rejected") expect(result.reason.code).toBe("file_exists");
    expect(statSync(at("race.safetensors")).size).toBe(size);
  });

  it("by force leaves no weights of before that would be read in place of the new ones", async () => {
    const [small, other] = [await writeOfficial(folder, "0.9.5"), await writeOfficial(folder, "0.9.5", "f32")];
    const out = at("again");
    await convert(small, out, { to: "diffusers" });
    writeFileSync(join(out, "transformer", "notes.txt"), "mine");
    await convert(other, out, { to: "diffusers", maxShardSize: 50_000, force: true });
    const inside = readdirSync(join(out, "transformer"));
    expect(inside).not.toContain("diffusion_pytorch_model.safetensors");
    expect(inside).toContain("notes.txt");
    const models = await openOfficial(out);
    expect(models.module("transformer").tensors.get("proj_out.weight")?.dtype).toBe("F32");
    await models.close();
    await convert(small, out, { to: "diffusers", force: true });
    expect(readdirSync(join(out, "transformer")).sort()).toEqual([
      "config.json",
      "diffusion_pytorch_model.safetensors",
      "notes.txt",
    ]);
  });
});
