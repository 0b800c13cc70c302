import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { openLora } from "../../lib/formats/official/lora.js";
import { withLoras } from "../../lib/formats/official/lora-merge.js";
import { type OfficialModels, openOfficial } from "../../lib/formats/official/open.js";
import { readSafetensors, type SafetensorsTensor } from "../../lib/formats/safetensors.js";
import { convert } from "../../lib/pipelines/index.js";
import { failure } from "../support/failure.js";
import {
  added,
  MODULES,
  matrix,
  type Pair,
  pairs,
  product,
  scalarTensor,
  tensor,
  writeTensors,
} from "../support/lora.js";
import { writeOfficial } from "../support/official.js";
import { call, testFolder } from "../support/tiny.js";

const folder = testFolder();
const at = (...names: string[]) => join(folder, ...names);
let count = 0;
const fresh = () => at(`out-${count++}.safetensors`);
const write = (tensors: readonly SafetensorsTensor[], metadata?: Record<string, string>) =>
  writeTensors(fresh(), tensors, metadata);

let models: OfficialModels;
beforeAll(async () => {
  models = await openOfficial(await writeOfficial(folder, "0.9.5", "f32"));
});

interface Source {
  path: () => Promise<string>;
  scale: (pair: Pair) => number;
}

/** LoRAs of ranks that differ and scales that differ, in the spellings of several programs. */
const all = pairs([4, 2, 3, 4]);
const alphaOf = (pair: Pair) => all.indexOf(pair) + 0.5;
const kohya = (official: string) => `lora_unet_${official.replaceAll(".", "_")}`;
const matrices = (name: (pair: Pair) => string, [a, b]: readonly [string, string]) =>
  all.flatMap((pair) => [tensor(name(pair) + a, pair.down), tensor(name(pair) + b, pair.up)]);
const alphas = (name: (pair: Pair) => string) => all.map((pair) => scalarTensor(`${name(pair)}.alpha`, alphaOf(pair)));
const LETTERS = [".lora_A.weight", ".lora_B.weight"] as const;
const WORDS = [".lora_down.weight", ".lora_up.weight"] as const;
const comfy = ({ module }: Pair) => `diffusion_model.${module.official}`;
const diffusers = ({ module }: Pair) => `transformer.${module.diffusers}`;

const SOURCES: Record<string, Source> = {
  "ComfyUI with alphas": {
    path: () => write([...matrices(comfy, WORDS), ...alphas(comfy)]),
    scale: (pair) => alphaOf(pair) / pair.down.rows,
  },
  "ComfyUI without alphas": { path: () => write(matrices(comfy, LETTERS)), scale: () => 1 },
  kohya: {
    path: () => {
      const name = ({ module }: Pair) => kohya(module.official);
      return write([...matrices(name, WORDS), ...alphas(name)], { ss_network_dim: "4" });
    },
    scale: (pair) => alphaOf(pair) / pair.down.rows,
  },
  "diffusers with metadata": {
    path: () =>
      write(matrices(diffusers, LETTERS), {
        format: "pt",
        lora_adapter_metadata: JSON.stringify({
          "transformer.r": 4,
          "transformer.lora_alpha": 6,
          "transformer.rank_pattern": Object.fromEntries(all.map(({ module, down }) => [module.diffusers, down.rows])),
          "transformer.alpha_pattern": { "transformer_blocks\\.1\\..*": 1 },
        }),
      }),
    scale: ({ module, down }) => (module.official.startsWith("transformer_blocks.1.") ? 1 : 6) / down.rows,
  },
  "PEFT's folder, rank-stabilised": {
    path: async () => {
      const place = at(`peft-${count++}`);
      mkdirSync(place);
      await writeTensors(
        join(place, "adapter_model.safetensors"),
        matrices(({ module }) => `base_model.model.${module.diffusers}`, LETTERS),
      );
      const config = { peft_type: "LORA", lora_alpha: 5, use_rslora: true, rank_pattern: {} };
      writeFileSync(join(place, "adapter_config.json"), JSON.stringify(config));
      return place;
    },
    scale: ({ down }) => 5 / Math.sqrt(down.rows),
  },
};

async function expectMerged(path: string, scale: Source["scale"]) {
  const lora = await openLora(path);
  const base = models.module("transformer");
  const merged = withLoras(base, [{ lora, weight: 1 }]);
  expect([...lora.factors.keys()].sort()).toEqual(all.map(({ module }) => `${module.official}.weight`).sort());
  for (const pair of all) {
    const key = `${pair.module.official}.weight`;
    const expected = added(await base.readF32(key), pair, scale(pair));
    const found = await merged.readF32(key);
    const size = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const error = expected.reduce((most, value, i) => Math.max(most, Math.abs(value - found[i])), 0);
    expect([key, error / size < 1e-6]).toEqual([key, true]);
  }
  await lora.close();
}

describe("convert of a LoRA", () => {
  it.each(Object.entries(SOURCES))("%s: is as strong in every spelling, there and back", async (_, { path, scale }) => {
    const from = await path();
    for (const to of ["diffusers", "official", "comfyui", "ltx-native"] as const) {
      const there = await convert(from, fresh(), { to });
      expect(there).toMatchObject({ kind: "lora", leftOut: [], notices: [] });
      await expectMerged(there.path, scale);
      for (const next of ["official", "diffusers"] as const) {
        const back = await convert(there.path, fresh(), { to: next });
        await expectMerged(back.path, scale);
      }
    }
  });

  it("to diffusers: names that it takes without exception, the scale in the metadata for PEFT", async () => {
    const { path } = await convert(await SOURCES.kohya.path(), fresh(), { to: "diffusers" });
    const file = await readSafetensors(path);
    expect([...file.tensors.keys()].sort()).toEqual(
      all.flatMap((pair) => LETTERS.map((letter) => diffusers(pair) + letter)).sort(),
    );
    const { lora_adapter_metadata, ...rest } = file.metadata;
    expect(rest).toEqual({ ss_network_dim: "4" });
    const config = JSON.parse(lora_adapter_metadata);
    const own = (pattern: string, usual: string, { module }: Pair) =>
      config[`transformer.${pattern}`][module.diffusers] ?? config[`transformer.${usual}`];
    for (const pair of all) {
      expect([own("rank_pattern", "r", pair), own("alpha_pattern", "lora_alpha", pair)]).toEqual([
        pair.down.rows,
        alphaOf(pair),
      ]);
    }
    expect(config["transformer.target_modules"]).toEqual(all.map(({ module }) => module.diffusers).sort());
    await file.close();
  });

  it("to ComfyUI: a number beside the matrices where the scale is not 1, no metadata that others read", async () => {
    const { path } = await convert(await SOURCES["diffusers with metadata"].path(), fresh(), { to: "comfyui" });
    const file = await readSafetensors(path);
    expect(file.metadata).toEqual({ format: "pt" });
    for (const pair of all) {
      const scale = SOURCES["diffusers with metadata"].scale(pair);
      const name = `${comfy(pair)}.alpha`;
      expect([name, file.tensors.has(name)]).toEqual([name, scale !== 1]);
      if (scale !== 1) expect((await file.readF32(name))[0]).toBeCloseTo(scale * pair.down.rows, 12);
    }
    await file.close();
  });

  it("keeps a scale that float32 can't hold to the last bit", async () => {
    const there = await convert(await SOURCES["PEFT's folder, rank-stabilised"].path(), fresh(), { to: "official" });
    const lora = await openLora(there.path);
    for (const { module, down } of all) {
      expect(lora.factors.get(`${module.official}.weight`)?.scale).toBeCloseTo(5 / Math.sqrt(down.rows), 14);
    }
    await lora.close();
  });

  it("changes types of the matrices alone, and counts what is beyond one", async () => {
    const { path } = await convert(await SOURCES.kohya.path(), fresh(), { to: "official", dtype: "bf16" });
    const file = await readSafetensors(path);
    for (const [name, { dtype }] of file.tensors)
      expect([name, dtype]).toEqual([name, name.endsWith(".alpha") ? "F32" : "BF16"]);
    await file.close();
    await expectMerged(path, SOURCES.kohya.scale);
    const huge = matrix(4, 32, 0);
    huge.values.set([1e5, -2e6], 9);
    const [first, ...others] = matrices(comfy, LETTERS);
    const broken = await write([tensor(first.name, huge), ...others]);
    expect(await failure(() => convert(broken, fresh(), { to: "diffusers", dtype: "f16" }))).toMatchObject({
      code: "dtype_mismatch",
      message: expect.stringMatching(
        /to_q\.lora_A\.weight" has 2 of 128 values beyond the range of f16.*largest is 2\.000e\+6/,
      ),
    });
  });

  it("multiplies a middle matrix in", async () => {
    const [down, mid, up] = [matrix(4, 32, 1), matrix(3, 4, 2), matrix(32, 3, 3)];
    const name = kohya(MODULES[0].official);
    const from = await write([
      tensor(`${name}.lora_down.weight`, down, [4, 32, 1, 1]),
      tensor(`${name}.lora_mid.weight`, mid, [3, 4, 1, 1]),
      tensor(`${name}.lora_up.weight`, up, [32, 3, 1, 1]),
      scalarTensor(`${name}.alpha`, 2),
    ]);
    for (const to of ["official", "diffusers"] as const) {
      const { path } = await convert(from, fresh(), { to });
      const lora = await openLora(path);
      const key = `${MODULES[0].official}.weight`;
      expect(lora.factors.get(key)).toMatchObject({ rank: 3, scale: 0.5, shape: [32, 32] });
      const base = models.module("transformer");
      const folded = { rows: 3, columns: 32, values: Float32Array.from(product(mid, down)) };
      const expected = added(await base.readF32(key), { down: folded, up }, 0.5);
      const found = await withLoras(base, [{ lora, weight: 1 }]).readF32(key);
      for (const [i, value] of expected.entries()) expect(found[i]).toBeCloseTo(value, 4);
      await lora.close();
    }
  });

  it("names what it leaves out, and writes nothing of what it doesn't understand or can't work", async () => {
    const own = matrices(comfy, LETTERS);
    const texts = await write([...own, scalarTensor("lora_te_encoder_block_0_layer_0.alpha", 1)]);
    const result = await convert(texts, fresh(), { to: "diffusers" });
    expect(result.leftOut).toEqual(["lora_te_encoder_block_0_layer_0.alpha"]);
    expect(result.notices).toEqual([
      expect.stringMatching(/tensors for a text encoder are left out \(1, the first is "/),
    ]);
    const out = at("nothing");
    mkdirSync(out);
    const nan = matrix(4, 32, 0);
    nan.values[5] = Number.NaN;
    for (const [tensors, code, message] of [
      [[...own, scalarTensor(`${comfy(all[0])}.dora_scale`, 1)], "checkpoint", /makes it DoRA/],
      [
        [...own, scalarTensor(`${comfy(all[0])}.lora_C.weight`, 1)],
        "checkpoint",
        /lora_C\.weight" is not part of a LoRA/,
      ],
      [
        [...own, scalarTensor("lora_unet_input_blocks_1.lora_down.weight", 1)],
        "checkpoint",
        /no module "lora_unet_input_blocks_1"/,
      ],
      [[tensor(own[0].name, nan), ...own.slice(1)], "non_finite", /to_q\.lora_A\.weight" holds NaN, at element 5/],
    ] as const) {
      const from = await write(tensors);
      const error = await failure(() => convert(from, join(out, "x.safetensors"), { to: "diffusers" }));
      expect(error).toMatchObject({ code, message: expect.stringMatching(message) });
    }
    expect(readdirSync(out)).toEqual([]);
  });
});

describe("--lora FILE:WEIGHT", () => {
  const key = `model.diffusion_model.${MODULES[0].official}.weight`;
  it("is one thing to every command: weights of any form, paths with colons, PEFT's folders", async () => {
    const source = await writeOfficial(folder, "0.9.5", "f32");
    const plain = await SOURCES["ComfyUI without alphas"].path();
    const colon = at("epoch:12");
    mkdirSync(colon);
    await writeTensors(join(colon, "adapter_model.safetensors"), matrices(comfy, LETTERS));
    writeFileSync(
      join(colon, "adapter_config.json"),
      JSON.stringify({ lora_alpha: 4, rank_pattern: {}, use_rslora: false }),
    );
    const base = await models.module("transformer").readF32(`${MODULES[0].official}.weight`);
    for (const [text, weight] of [
      [`${plain}:.5`, 0.5],
      [`${plain}:+1`, 1],
      [`${plain}:1e-1`, 0.1],
      [`${plain}:-2.`, -2],
      [`${plain}:0`, 0],
      [plain, 1],
      [colon, 1],
      [`${colon}:0.25`, 0.25],
      [`${join(colon, "adapter_model.safetensors")}:2`, 2],
    ] as const) {
      const out = fresh();
      const { code, stderr } = await call(
        "convert",
        "--checkpoint",
        source,
        "--to",
        "official",
        "--out",
        out,
        "--lora",
        text,
      );
      expect([text, code, stderr]).toEqual([text, 0, ""]);
      const file = await readSafetensors(out);
      const expected = added(base, all[0], weight);
      const found = await file.readF32(key);
      for (const [i, value] of expected.entries()) expect(found[i]).toBeCloseTo(value, 4);
      await file.close();
    }
    for (const text of [
      `${plain}:1.2.3`,
      `${plain}:`,
      `${plain}:nan`,
      `${plain}:1e999`,
      `${plain}:high`,
      "missing:--1",
    ]) {
      const { code, stderr } = await call(
        "convert",
        "--checkpoint",
        source,
        "--to",
        "official",
        "--out",
        fresh(),
        "--lora",
        text,
      );
      expect([text, code]).toEqual([text, 2]);
      expect(stderr).toMatch(/the weight ".*" is not a number: expected a file, or file:weight/);
    }
  });
});
