import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import { openLora } from "../../../lib/formats/official/lora.js";
import { withLoras } from "../../../lib/formats/official/lora-merge.js";
import { type OfficialModels, openOfficial } from "../../../lib/formats/official/open.js";
import type { SafetensorsTensor } from "../../../lib/formats/safetensors.js";
import { Fixture } from "../../golden/support/fixture.js";
import { failure } from "../../support/failure.js";
import { testFolder } from "../../support/folder.js";
import {
  added,
  anyTensor,
  MODULES,
  type Module,
  matrix,
  type Pair,
  pairs,
  product,
  scalarTensor,
  tensor,
  writeTensors,
} from "../../support/lora.js";
import { writeOfficial } from "../../support/official.js";

const folder = testFolder();
const at = (...names: string[]) => join(folder, ...names);

let models: OfficialModels;
beforeAll(async () => {
  models = await openOfficial(await writeOfficial(folder, "0.9.5", "f32"));
});

const opened: { close(): Promise<void> }[] = [];
afterEach(async () => {
  for (const file of opened.splice(0)) await file.close();
});
async function open(path: string) {
  const lora = await openLora(path);
  opened.push(lora);
  return lora;
}

let count = 0;
const write = (tensors: readonly SafetensorsTensor[], metadata?: Record<string, string>) =>
  writeTensors(at(`lora-${count++}.safetensors`), tensors, metadata);

/** Merges a file with a weight, and compares every weight that it changes with plain loops over its matrices. */
async function expectMerged(path: string, all: readonly Pair[], scaleOf: (pair: Pair) => number, weight = 1) {
  const lora = await open(path);
  const base = models.module("transformer");
  const merged = withLoras(base, [{ lora, weight }]);
  expect([...lora.factors.keys()].sort()).toEqual(all.map(({ module }) => `${module.official}.weight`).sort());
  for (const pair of all) {
    const key = `${pair.module.official}.weight`;
    const expected = added(await base.readF32(key), pair, scaleOf(pair) * weight);
    const found = await merged.readF32(key);
    const error = expected.reduce((most, value, i) => Math.max(most, Math.abs(value - found[i])), 0);
    const size = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    expect([key, error / size < 1e-6]).toEqual([key, true]);
  }
  return lora;
}

const underscored = (name: string) => name.replaceAll(".", "_");

/** How programs spell the two matrices of a module. */
const SPELLINGS: Record<string, (module: Module) => [down: string, up: string]> = {
  "ComfyUI, the official trainer's": ({ official }) =>
    both(`diffusion_model.${official}.lora_`, "A.weight", "B.weight"),
  "ComfyUI with the checkpoint's prefix": ({ official }) =>
    both(`model.diffusion_model.${official}.lora_`, "down.weight", "up.weight"),
  diffusers: ({ diffusers }) => both(`transformer.${diffusers}.lora_`, "A.weight", "B.weight"),
  "diffusers with the official names": ({ official }) => both(`transformer.${official}.lora_`, "A.weight", "B.weight"),
  "ComfyUI with the names of diffusers": ({ diffusers }) =>
    both(`diffusion_model.${diffusers}.lora_`, "A.weight", "B.weight"),
  "DiffSynth, no prefix and an adapter's name": ({ official }) =>
    both(`${official}.lora_`, "A.default.weight", "B.default.weight"),
  PEFT: ({ diffusers }) => both(`base_model.model.${diffusers}.lora_`, "A.weight", "B.weight"),
  "PEFT with an adapter of a name": ({ diffusers }) =>
    both(`base_model.model.${diffusers}.lora_`, "A.my_style.weight", "B.my_style.weight"),
  "PEFT below diffusers": ({ diffusers }) =>
    both(`transformer.base_model.model.${diffusers}.lora_`, "A.weight", "B.weight"),
  "PEFT around ComfyUI's names": ({ official }) =>
    both(`base_model.model.diffusion_model.${official}.lora_`, "A.weight", "B.weight"),
  "PEFT around a pipeline's transformer": ({ diffusers }) =>
    both(`base_model.model.transformer.${diffusers}.lora_`, "A.default.weight", "B.default.weight"),
  kohya: ({ official }) => both(`lora_unet_${underscored(official)}.lora_`, "down.weight", "up.weight"),
  "kohya with diffusers' names": ({ diffusers }) =>
    both(`lora_unet_${underscored(diffusers)}.lora_`, "down.weight", "up.weight"),
  LyCORIS: ({ official }) => both(`lycoris_${underscored(official)}.lora_`, "down.weight", "up.weight"),
  OneTrainer: ({ diffusers }) => both(`lora_transformer_${underscored(diffusers)}.lora_`, "down.weight", "up.weight"),
  "old diffusers, underscore": ({ diffusers }) => both(`transformer.${diffusers}_lora.`, "down.weight", "up.weight"),
  "old diffusers, dot": ({ diffusers }) => both(`unet.${diffusers}.lora.`, "down.weight", "up.weight"),
  "transformers' layers": ({ diffusers }) =>
    both(`transformer.${diffusers}.lora_linear_layer.`, "down.weight", "up.weight"),
  "bare matrices": ({ official }) => both(`diffusion_model.${official}.lora_`, "A", "B"),
  "torch.compile and data parallel": ({ official }) =>
    both(`module._orig_mod.diffusion_model.${official}.lora_`, "A.weight", "B.weight"),
};

function both(before: string, down: string, up: string): [string, string] {
  return [before + down, before + up];
}

/** What comes before the end of a name that says which matrix it is. */
const stem = (name: string) => name.replace(/[._]lora[._].*$/, "");

describe("openLora, of all spellings", () => {
  it.each(Object.entries(SPELLINGS))("%s: with and without alpha, whatever the rank", async (_, names) => {
    const all = pairs([4, 2, 3]);
    const tensors = all.flatMap(({ module, down, up }) => {
      const [a, b] = names(module);
      return [tensor(a, down), tensor(b, up)];
    });
    await expectMerged(await write(tensors), all, () => 1, -0.75);
    const scaled = all.map(({ module }, i) =>
      scalarTensor(`${stem(names(module)[0])}.alpha`, i + 0.5, i % 2 ? [] : [1]),
    );
    const alpha = (pair: Pair) => all.indexOf(pair) + 0.5;
    await expectMerged(await write([...tensors, ...scaled]), all, (pair) => alpha(pair) / pair.down.rows, 1.5);
  });

  it("old attention processors, whose output is not numbered", async () => {
    const [pair] = pairs([4], [MODULES[1]]);
    const before = "transformer.transformer_blocks.1.attn2.processor.to_out_lora";
    await expectMerged(
      await write([tensor(`${before}.down.weight`, pair.down), tensor(`${before}.up.weight`, pair.up)]),
      [pair],
      () => 1,
    );
  });

  it("matrices of convolutions by one pixel, and one between them", async () => {
    const [pair] = pairs([4], [MODULES[0]]);
    const before = "lora_unet_transformer_blocks_0_attn1_to_q";
    const [narrow, mid] = [matrix(32, 3, 71), matrix(3, 4, 72)];
    const tensors = [
      tensor(`${before}.lora_down.weight`, pair.down, [4, 32, 1, 1]),
      tensor(`${before}.lora_up.weight`, narrow, [32, 3, 1, 1]),
      tensor(`${before}.lora_mid.weight`, mid, [3, 4, 1, 1]),
      scalarTensor(`${before}.alpha`, 2),
    ];
    const down = { rows: 3, columns: 32, values: Float32Array.from(product(mid, pair.down)) };
    await expectMerged(await write(tensors), [{ ...pair, up: narrow, down }], () => 2 / 4);
  });

  it("without the tensors of text encoders, which it tells", async () => {
    const [pair] = pairs([4], [MODULES[0]]);
    const texts = [
      "lora_te1_text_model_encoder_layers_0_self_attn_k_proj.lora_down.weight",
      "lora_te_encoder_block_0.alpha",
      "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
      "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight",
      "text_encoder_2.x.lora_A.weight",
    ].map((name) => scalarTensor(name, 1));
    const own = [tensor("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", pair.down)];
    own.push(tensor("transformer.transformer_blocks.0.attn1.to_q.lora_B.weight", pair.up));
    const lora = await expectMerged(await write([...texts, ...own]), [pair], () => 1);
    expect(lora.leftOut).toHaveLength(5);
    expect(lora.notices).toEqual([
      expect.stringMatching(/: tensors for a text encoder are left out \(5, the first is "/),
    ]);
    expect((await failure(async () => openLora(await write(texts)))).message).toMatch(
      /holds a LoRA of a text encoder only, which is not supported$/,
    );
  });
});

const simple = (prefix: string, rank = 4) => {
  const all = pairs([rank]);
  const tensors = all.flatMap(({ module, down, up }) => [
    tensor(`${prefix}${module.diffusers}.lora_A.weight`, down),
    tensor(`${prefix}${module.diffusers}.lora_B.weight`, up),
  ]);
  return { all, tensors };
};

describe("the scale of a LoRA", () => {
  const cases: [string, Record<string, unknown>, (name: string) => number][] = [
    ["alpha", { r: 4, lora_alpha: 2 }, () => 0.5],
    ["rank-stabilised", { r: 4, lora_alpha: 6, use_rslora: true }, () => 3],
    ["PEFT's alpha where none is given", { r: 4 }, () => 2],
    ["null as if left out", { r: null, lora_alpha: null, alpha_pattern: null, bias: "none" }, () => 2],
    ["a zero", { lora_alpha: 0 }, () => 0],
    [
      "the end of a name",
      { lora_alpha: 4, alpha_pattern: { "attn1.to_q": 1, linear_2: 12 } },
      (name) => (name.endsWith("attn1.to_q") ? 1 / 4 : name.endsWith("linear_2") ? 3 : 1),
    ],
    [
      "a regular expression",
      { lora_alpha: 4, alpha_pattern: { "transformer_blocks\\.1\\..*": 2, "ff\\.net\\.(0\\.proj|2)": 12 } },
      (name) => (name.startsWith("transformer_blocks.1.") ? 0.5 : name.includes(".ff.") ? 3 : 1),
    ],
    [
      "only from a dot on, to the very end, the first that fits",
      {
        lora_alpha: 4,
        alpha_pattern: { ".*to_": 9, o_q: 9, "o_.*": 9, "(?P<n>to_[qk])": 8, to_q: 16, "^proj_o..": 2 },
      },
      (name) => (name.endsWith("to_q") ? 2 : name === "proj_out" ? 0.5 : 1),
    ],
    [
      "names in either spelling",
      { lora_alpha: 4, alpha_pattern: { "time_embed.linear": 8, patchify_proj: 8 } },
      (name) => (name === "adaln_single.linear" || name === "patchify_proj" ? 2 : 1),
    ],
  ];

  it.each(cases)("in the metadata of diffusers: %s", async (_, config, scale) => {
    const { all, tensors } = simple("transformer.");
    const own = Object.fromEntries(Object.entries(config).map(([key, value]) => [`transformer.${key}`, value]));
    const metadata = { lora_adapter_metadata: JSON.stringify({ ...own, "text_encoder.lora_alpha": 99 }) };
    await expectMerged(await write(tensors, metadata), all, ({ module }) => scale(module.official));
  });

  it.each(cases)("in PEFT's file beside the matrices: %s", async (name, config, scale) => {
    const { all, tensors } = simple("base_model.model.");
    const place = at(`peft ${name}`);
    mkdirSync(place);
    const file = await writeTensors(join(place, "adapter_model.safetensors"), tensors);
    writeFileSync(
      join(place, "adapter_config.json"),
      JSON.stringify({ peft_type: "LORA", fan_in_fan_out: true, ...config }),
    );
    for (const path of [file, place]) {
      const lora = await expectMerged(path, all, ({ module }) => scale(module.official));
      expect(lora).toMatchObject({ path, notices: [] });
    }
  });

  it("of its own tensors first, then of the metadata; a neighbour is asked only by PEFT's files", async () => {
    const place = at("neighbours");
    mkdirSync(place);
    writeFileSync(join(place, "adapter_config.json"), JSON.stringify({ r: 4, lora_alpha: 40 }));
    const { all, tensors } = simple("transformer.");
    const first = `${all[0].module.official}.alpha`;
    const metadata = { lora_adapter_metadata: JSON.stringify({ "transformer.lora_alpha": 8 }) };
    const path = await writeTensors(
      join(place, "x.safetensors"),
      [...tensors, scalarTensor(`transformer.${first}`, 1)],
      metadata,
    );
    await expectMerged(path, all, (pair) => (pair === all[0] ? 0.25 : 2));
    await expectMerged(await writeTensors(join(place, "y.safetensors"), tensors), all, () => 1);
    const peft = simple("base_model.model.");
    await expectMerged(await writeTensors(join(place, "z.safetensors"), peft.tensors), peft.all, () => 10);
    await expectMerged(
      await writeTensors(join(place, "adapter_model.safetensors"), simple("diffusion_model.").tensors),
      all,
      () => 10,
    );
  });

  it("is 1 for PEFT's names without the file beside them, which is told", async () => {
    const place = at("alone");
    mkdirSync(place);
    const { all, tensors } = simple("base_model.model.");
    const lora = await expectMerged(
      await writeTensors(join(place, "adapter_model.safetensors"), tensors),
      all,
      () => 1,
    );
    expect(lora.notices).toEqual([expect.stringMatching(/adapter_config\.json beside them, which is missing/)]);
  });

  it.each<[string, unknown, string, RegExp]>([
    ["null", null, "file_format", /its lora_adapter_metadata is null, expected an object/],
    ["a list", [], "file_format", /is \[\], expected an object/],
    ["a number", 3, "file_format", /is 3, expected/],
    ["a text", "x", "file_format", /is "x", expected/],
    [
      "another model",
      { "unet.lora_alpha": 2 },
      "file_format",
      /has "unet\.lora_alpha", expected names that begin with transformer\./,
    ],
    ["no prefix", { lora_alpha: 2 }, "file_format", /has "lora_alpha"/],
    ["alpha as text", { "transformer.lora_alpha": "2" }, "file_format", /lora_alpha is "2", expected a number/],
    ["alpha as a list", { "transformer.lora_alpha": [2] }, "file_format", /lora_alpha is \[2\]/],
    ["rank", { "transformer.r": 0 }, "file_format", /r is 0, expected a whole number above 0/],
    ["another rank", { "transformer.r": 8 }, "checkpoint", /the rank 8, its matrices have 4/],
    [
      "another rank of one",
      { "transformer.r": 4, "transformer.rank_pattern": { to_q: 2 } },
      "checkpoint",
      /to_q" the rank 2, its/,
    ],
    ["stabilised", { "transformer.use_rslora": "yes" }, "file_format", /use_rslora is "yes", expected true or false/],
    [
      "patterns as text",
      { "transformer.alpha_pattern": "abc" },
      "file_format",
      /alpha_pattern is "abc", expected numbers by/,
    ],
    ["patterns as a list", { "transformer.alpha_pattern": [1] }, "file_format", /alpha_pattern is \[1\]/],
    [
      "a pattern's value",
      { "transformer.alpha_pattern": { to_q: null } },
      "file_format",
      /alpha_pattern is \{"to_q":null\}/,
    ],
    ["a rank's value", { "transformer.rank_pattern": { to_q: "4" } }, "file_format", /rank_pattern is \{"to_q":"4"\}/],
    [
      "half a pattern",
      { "transformer.alpha_pattern": { "to_(q": 1 } },
      "file_format",
      /pattern "to_\(q" can't be read/,
    ],
    ["a pattern only Python knows", { "transformer.alpha_pattern": { "(?i)TO_Q": 1 } }, "file_format", /only Python/],
    [
      "a pattern without end",
      { "transformer.alpha_pattern": { "((\\w|\\.)+)+!": 1 } },
      "file_format",
      /longer than 0.5 s/,
    ],
    ["DoRA", { "transformer.use_dora": true }, "checkpoint", /use_dora true is not supported/],
    ["biases", { "transformer.lora_bias": true }, "checkpoint", /lora_bias true/],
    ["biases of the base", { "transformer.bias": "all" }, "checkpoint", /bias "all"/],
    ["whole modules", { "transformer.modules_to_save": ["proj_out"] }, "checkpoint", /modules_to_save \["proj_out"\]/],
    ["other adapters", { "transformer.peft_type": "LOKR" }, "checkpoint", /peft_type "LOKR"/],
    [
      "a changed base",
      { "transformer.init_lora_weights": "pissa_niter_4" },
      "checkpoint",
      /init_lora_weights "pissa_niter_4"/,
    ],
    ["layers twice", { "transformer.layer_replication": [[0, 4]] }, "checkpoint", /layer_replication/],
  ])("refuses metadata: %s", async (_, value, code, message) => {
    const path = await write(simple("transformer.").tensors, { lora_adapter_metadata: JSON.stringify(value) });
    const error = await failure(() => openLora(path));
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) });
    expect(error.message).toContain(path);
  });

  it("refuses metadata and neighbours that are not JSON", async () => {
    const path = await write(simple("transformer.").tensors, { lora_adapter_metadata: "{" });
    expect(await failure(() => openLora(path))).toMatchObject({
      code: "file_format",
      message: expect.stringMatching(/is not JSON/),
    });
    const place = at("broken neighbour");
    mkdirSync(place);
    await writeTensors(join(place, "adapter_model.safetensors"), simple("base_model.model.").tensors);
    writeFileSync(join(place, "adapter_config.json"), "<html>");
    const error = await failure(() => openLora(place));
    expect(error).toMatchObject({
      code: "file_format",
      message: expect.stringMatching(/adapter_config\.json is not JSON/),
    });
  });

  it.each([
    ["none", [], [0], "checkpoint", /has the shape \[0\], expected a single number/],
    ["two", [1, 2], [2], "checkpoint", /has the shape \[2\]/],
    ["NaN", [Number.NaN], [], "non_finite", /alpha" is NaN/],
    ["infinite", [Number.POSITIVE_INFINITY], [1], "non_finite", /alpha" is Infinity/],
  ] as const)("refuses an alpha that is %s", async (_, values, shape, code, message) => {
    const alpha = { ...anyTensor("transformer.proj_out.alpha", values), shape };
    const path = await write([...simple("transformer.").tensors, alpha]);
    expect(await failure(() => openLora(path))).toMatchObject({ code, message: expect.stringMatching(message) });
  });
});

describe("what is not a plain LoRA for LTX-Video", () => {
  const before = "transformer.transformer_blocks.0.attn1.to_q";
  it.each([
    ["DoRA", `${before}.lora_magnitude_vector`, /makes it DoRA/],
    ["DoRA with an adapter's name", `${before}.lora_magnitude_vector.default.weight`, /makes it DoRA/],
    ["DoRA of ComfyUI", "diffusion_model.transformer_blocks.0.attn1.to_q.dora_scale", /makes it DoRA/],
    ["LoKr", "lycoris_transformer_blocks_0_attn1_to_q.lokr_w1", /makes it LoKr/],
    ["LoKr in parts", "lora_unet_transformer_blocks_0_attn1_to_q.lokr_w2_a", /makes it LoKr/],
    ["LoHa", "lora_unet_transformer_blocks_0_attn1_to_q.hada_w1_a", /makes it LoHa/],
    ["OFT", `${before}.oft_blocks`, /makes it OFT/],
    ["a difference", "diffusion_model.transformer_blocks.0.attn1.to_q.diff", /a whole difference of a weight/],
    ["a bias's difference", "diffusion_model.transformer_blocks.0.attn1.to_q.diff_b", /a whole difference of a weight/],
    ["a norm's difference", "diffusion_model.transformer_blocks.0.attn1.q_norm.diff", /a whole difference of a weight/],
    ["a norm in place", "diffusion_model.transformer_blocks.0.norm1.w_norm", /a whole difference of a weight/],
    ["biases", `${before}.lora_B.bias`, /a LoRA with biases \(lora_bias\)/],
    ["biases with an adapter's name", `${before}.lora_B.default.bias`, /a LoRA with biases/],
    [
      "a whole weight",
      "base_model.model.proj_out.weight",
      /"base_model\.model\.proj_out\.weight" is not part of a LoRA/,
    ],
    ["a norm", `${before.replace("to_q", "norm_q")}.lora_A.weight`, /has no module ".*norm_q"/],
    [
      "another model",
      "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
      /no module ".*single_transformer_blocks/,
    ],
    [
      "another model of kohya",
      "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
      /no module "lora_unet_down/,
    ],
    [
      "LTX-2",
      "diffusion_model.transformer_blocks.0.audio_attn1.to_k.lora_A.weight",
      /is a LoRA for LTX-2, not for LTX-Video/,
    ],
    ["LTX-2 of kohya", "lora_unet_transformer_blocks_0_audio_attn1_to_k.lora_down.weight", /is a LoRA for LTX-2/],
    ["something", "x", /"x" is not part of a LoRA: expected names such as diffusion_model\./],
  ])("names %s", async (_, name, message) => {
    const { tensors } = simple("transformer.");
    const path = await write([...tensors, scalarTensor(name, 1)]);
    expect(await failure(() => openLora(path))).toMatchObject({
      code: "checkpoint",
      message: expect.stringMatching(message),
    });
  });

  it.each<[string, (tensors: SafetensorsTensor[]) => SafetensorsTensor[], RegExp]>([
    ["half a pair", (all) => all.slice(1), /only transformer\..*lora_B\.weight is there/],
    [
      "a lonely alpha",
      (all) => [...all, scalarTensor("transformer.transformer_blocks.1.attn1.to_k.alpha", 1)],
      /only a scale is there/,
    ],
    [
      "one module twice",
      (all) => [...all, { ...all[0], name: all[0].name.replace("transformer.", "diffusion_model.") }],
      /are the same matrix of the same module/,
    ],
    [
      "two adapters",
      (all) => [...all, { ...all[0], name: all[0].name.replace("lora_A", "lora_A.other") }],
      /are the same matrix/,
    ],
    [
      "other ranks",
      (all) => [{ ...all[0], ...tensor(all[0].name, matrix(3, 32, 1)) }, ...all.slice(1)],
      /are \[3,32\] and \[32,4\]/,
    ],
    [
      "rank 0",
      () =>
        [anyTensor("transformer.proj_out.lora_A.weight", []), anyTensor("transformer.proj_out.lora_B.weight", [])].map(
          (t, i) => ({ ...t, shape: i ? [8, 0] : [0, 32] }),
        ),
      /are \[0,32\] and \[8,0\]/,
    ],
    [
      "convolutions",
      (all) => [{ ...all[0], ...tensor(all[0].name, matrix(4, 288, 1), [4, 32, 3, 3]) }, ...all.slice(1)],
      /are \[4,32,3,3\] and/,
    ],
    [
      "integers",
      (all) => [{ ...anyTensor(all[0].name, new Array(128).fill(3), "I8"), shape: [4, 32] }, ...all.slice(1)],
      /is I8, expected floats/,
    ],
    ["nothing", () => [], /holds no tensors$/],
  ])("refuses %s", async (_, change, message) => {
    const path = await write(change(simple("transformer.").tensors));
    expect(await failure(() => openLora(path))).toMatchObject({
      code: "checkpoint",
      message: expect.stringMatching(message),
    });
  });

  it("names the tensor of a LoRA with values that are no numbers, when it is merged", async () => {
    const { tensors } = simple("transformer.");
    for (const value of [Number.NaN, Number.NEGATIVE_INFINITY]) {
      const broken = matrix(4, 32, 1);
      broken.values[70] = value;
      const lora = await open(await write([tensor(tensors[0].name, broken), ...tensors.slice(1)]));
      const merged = withLoras(models.module("transformer"), [{ lora, weight: 1 }]);
      const error = await failure(() => merged.readF32(`${MODULES[0].official}.weight`));
      expect(error).toMatchObject({ code: "non_finite" });
      expect(error.message).toMatch(
        new RegExp(`to_q\\.lora_A\\.weight" holds ${value}, at element 70: the LoRA is broken`),
      );
    }
    const lora = await open(await write(tensors));
    const merged = withLoras(models.module("transformer"), [{ lora, weight: 3e38 }]);
    const error = await failure(() => merged.read(`${MODULES[0].official}.weight`));
    expect(error).toMatchObject({
      code: "non_finite",
      message: expect.stringMatching(/once LoRAs are merged: lower their weights$/),
    });
  });

  it("takes a folder's file, and asks where there are several", async () => {
    const place = at("folder");
    mkdirSync(place);
    expect((await failure(() => openLora(place))).message).toMatch(
      /is a folder with no safetensors file: expected adapter_model/,
    );
    const { all, tensors } = simple("diffusion_model.");
    await writeTensors(join(place, "a.safetensors"), tensors);
    await expectMerged(place, all, () => 1);
    await writeTensors(join(place, "b.safetensors"), tensors);
    expect((await failure(() => openLora(place))).message).toMatch(
      /with a\.safetensors, b\.safetensors: .* name the file/,
    );
    await writeTensors(join(place, "pytorch_lora_weights.safetensors"), tensors);
    await expectMerged(place, all, () => 1);
  });
});

describe("adapters that other programs wrote", () => {
  const shared = join(__dirname, "..", "..", "..", "..", "shared", "golden-finetune");
  it.skipIf(!existsSync(shared)).each(["common", "others"])(
    "are merged as those merge them: %s (../shared/golden-finetune)",
    async (name) => {
      const fixture = await Fixture.open(join(shared, `f-lora-file-${name}.safetensors`));
      const state = fixture.state(fixture.config.param_prefix);
      const base = await write(
        [...state].map(([key, { shape, data }]) => ({ ...anyTensor(key, [...data]), shape })),
        { config: JSON.stringify(fixture.config.transformer) },
      );
      const file = (await openOfficial(base)).module("transformer");
      opened.push(file);
      let compared = 0;
      for (const { name: adapter, path, weight, scales } of fixture.config.files) {
        const lora = await open(join(shared, path));
        expect([...new Set([...lora.factors.values()].map(({ scale }) => scale))]).toEqual(scales);
        const merged = withLoras(file, [{ lora, weight }]);
        for (const output of fixture.names(`output/merged.${adapter}.transformer`)) {
          const key = output.slice(`output/merged.${adapter}.`.length);
          const [expected, found] = [fixture.data(output), await merged.readF32(key)];
          const error = Math.hypot(...expected.map((value, i) => value - found[i])) / Math.hypot(...expected);
          expect([output, error < 1e-6]).toEqual([output, true]);
          compared++;
        }
      }
      expect(compared).toBeGreaterThanOrEqual(6);
    },
  );
});
