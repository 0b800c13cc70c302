/** Files of weights of several parts: shards, LoRAs with their neighbours, official checkpoints and folders. */
import { copyFileSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseOfficialTransformer, parseOfficialUpsampler, parseOfficialVae } from "../../../lib/config/index.js";
import { openLora } from "../../../lib/formats/official/lora.js";
import { withLoras } from "../../../lib/formats/official/lora-merge.js";
import { openOfficial } from "../../../lib/formats/official/open.js";
import { type SafetensorsTensor, writeSafetensors } from "../../../lib/formats/safetensors.js";
import { openIndex, openShards } from "../../../lib/formats/sharded.js";
import { openTensorFile, type TensorFile } from "../../../lib/formats/tensor-file.js";
import { vaeConfig, writeOfficial } from "../../../test/support/official.js";
import { jsonText, mutateBytes, mutateJson } from "../mutate.js";
import type { Random } from "../random.js";
import { must, type Target } from "../target.js";
import { fileOf, mutateHeader, splitFile } from "./safetensors.js";

const f32 = (name: string, shape: number[], from = 0): SafetensorsTensor => {
  const values = Float32Array.from({ length: shape.reduce((n, d) => n * d, 1) }, (_, i) =>
    Math.fround(((i * 7 + from) % 13) / 13 - 0.4),
  );
  return { name, dtype: "F32", shape, data: new Uint8Array(values.buffer) };
};

async function readAll(file: TensorFile): Promise<void> {
  try {
    for (const [name, { byteLength }] of [...file.tensors].slice(0, 10)) {
      const bytes = await file.read(name);
      must(bytes.length === byteLength, () => `${name}: ${bytes.length} bytes of ${byteLength}`);
    }
  } finally {
    await file.close();
  }
}

export const shards: Target = {
  name: "shards",
  about: "shards with their index, in a folder",
  weight: 8,
  async setup(folder) {
    const names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    const outside = join(folder, "outside.safetensors");
    const place = join(folder, "model");
    mkdirSync(place);
    const parts = [
      [f32("a", [2]), f32("b", [3], 1)],
      [f32("c", [2, 2], 2), f32("d", [], 3)],
    ];
    for (const [i, part] of parts.entries()) await writeSafetensors(join(place, names[i]), part, { format: "pt" });
    await writeSafetensors(outside, [f32("a", [2])]);
    const files = names.map((name) => readFileSync(join(place, name)));
    const index = { metadata: { total_size: 44 }, weight_map: { a: names[0], b: names[0], c: names[1], d: names[1] } };
    const words = [
      ...names,
      "../outside.safetensors",
      outside,
      "missing.safetensors",
      ".",
      "..",
      "",
      "model.safetensors.index.json",
      "a/../x",
    ];
    return async (random) => {
      const path = join(place, "model.safetensors.index.json");
      for (const [i, name] of names.entries())
        writeFileSync(join(place, name), random.chance(0.1) ? mutateHeader(random, files[i]) : files[i]);
      const text = jsonText(random, random.chance(0.9) ? mutateJson(random, index, words) : index);
      writeFileSync(path, random.chance(0.9) ? text : mutateBytes(random, Buffer.from(text)));
      const file = await (random.chance(0.5) ? openIndex(path) : openShards(place));
      const map = JSON.parse(readFileSync(path, "utf8")).weight_map;
      for (const name of Object.values(map))
        must(typeof name === "string" && !/[\\/]/.test(name), () => `a shard named ${name}`);
      must(
        [...file.tensors.keys()].sort().join() === Object.keys(map).sort().join(),
        () => "other tensors than the index names",
      );
      await readAll(file);
    };
  },
};

const SPELLINGS = [
  (module: string, half: "A" | "B") => `diffusion_model.${module}.lora_${half}.weight`,
  (module: string, half: "A" | "B") => `transformer.${module}.lora_${half}.weight`,
  (module: string, half: "A" | "B") => `base_model.model.${module}.lora_${half}.default.weight`,
  (module: string, half: "A" | "B") => `diffusion_model.${module}.lora_${half === "A" ? "down" : "up"}.weight`,
  (module: string, half: "A" | "B") =>
    `lora_unet_${module.replaceAll(".", "_")}.lora_${half === "A" ? "down" : "up"}.weight`,
  (module: string, half: "A" | "B") =>
    `lycoris_${module.replaceAll(".", "_")}.lora_${half === "A" ? "down" : "up"}.weight`,
];
const MODULES = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_v"];
const LORA_WORDS = [
  "lora_A",
  ".alpha",
  ".dora_scale",
  ".lora_mid.weight",
  ".hada_w1_a",
  ".lokr_w1",
  ".diff_b",
  ".bias",
  "text_encoder.",
  "transformer.lora_alpha",
  "transformer.alpha_pattern",
  "transformer.use_rslora",
  "r",
  "lora_alpha",
  "NaN",
  "null",
  "1",
  "F32",
  "BF16",
  "I64",
  "PEFT_TYPE",
];

export const lora: Target = {
  name: "lora",
  about: "LoRA files with their metadata and adapter_config.json, merged into weights",
  weight: 6,
  async setup(folder) {
    const basePath = join(folder, "base.safetensors");
    const tensors = MODULES.map((name, i) => f32(`${name}.weight`, [4, 6], i));
    await writeSafetensors(basePath, tensors);
    const base = await openTensorFile(basePath);
    const path = join(folder, "adapter_model.safetensors");
    const seeds: Buffer[] = [];
    for (const spell of SPELLINGS) {
      for (const alpha of [false, true]) {
        const parts = MODULES.flatMap((module, i) => [
          f32(spell(module, "A"), [2, 6], i + 3),
          f32(spell(module, "B"), [4, 2], i + 5),
          ...(alpha ? [f32(`${spell(module, "A").replace(/\.lora_.*/, "")}.alpha`, [], 9)] : []),
        ]);
        await writeSafetensors(path, parts);
        seeds.push(readFileSync(path));
      }
    }
    const metadata = {
      "transformer.lora_alpha": 3,
      "transformer.r": 2,
      "transformer.alpha_pattern": { "attn1.to_q": 1 },
      "transformer.use_rslora": false,
    };
    const config = {
      peft_type: "LORA",
      r: 2,
      lora_alpha: 4,
      use_rslora: false,
      use_dora: false,
      alpha_pattern: { "attn1.to_q": 8 },
      rank_pattern: {},
      target_modules: ["to_q"],
      bias: "none",
      fan_in_fan_out: false,
    };
    return async (random) => {
      rmSync(join(folder, "adapter_config.json"), { force: true });
      let { header, data } = splitFile(random.pick(seeds));
      if (random.chance(0.4)) {
        const own = random.chance(0.5) ? metadata : mutateJson(random, metadata, LORA_WORDS);
        header.__metadata__ = { lora_adapter_metadata: jsonText(random, own) };
      }
      if (random.chance(0.3)) {
        const own = random.chance(0.3) ? config : mutateJson(random, config, LORA_WORDS);
        writeFileSync(join(folder, "adapter_config.json"), jsonText(random, own));
      }
      if (random.chance(0.2)) {
        data = Buffer.from(data);
        const at = random.below(data.length / 4) * 4;
        data.writeFloatLE(random.pick([Number.NaN, Number.POSITIVE_INFINITY, 1e38, 0, -1]), at);
      }
      let bytes = fileOf(JSON.stringify(header), data);
      if (random.chance(0.6)) bytes = mutateHeader(random, bytes);
      else if (random.chance(0.3)) bytes = mutateBytes(random, bytes, seeds);
      writeFileSync(path, bytes);
      const opened = await openLora(path);
      try {
        for (const [key, { rank, scale, shape }] of opened.factors) {
          must(Number.isFinite(scale), () => `the scale of ${key} is ${scale}`);
          must(
            Number.isInteger(rank) && rank > 0 && shape.every((n) => n >= 0),
            () => `${key} has rank ${rank} and shape [${shape}]`,
          );
        }
        const merged = withLoras(base, [{ lora: opened, weight: 0.5 }]);
        const used = new Set([...opened.factors.values()].flatMap(({ up, down, mid }) => [up, down, mid]));
        for (const name of opened.file.tensors.keys()) {
          must(
            used.has(name) || name.endsWith("alpha") || opened.leftOut.includes(name),
            () => `${name} is used by nothing`,
          );
        }
        for (const [key, { rank, scale, shape, up, down, mid }] of opened.factors) {
          if (mid !== undefined) continue;
          const [was, is] = [await base.readF32(key), await merged.readF32(key)];
          const [a, b] = [await opened.file.readF32(down), await opened.file.readF32(up)];
          for (let i = 0; i < is.length; i++) {
            const [row, column] = [Math.floor(i / shape[1]), i % shape[1]];
            let [sum, size] = [0, Math.abs(was[i])];
            for (let r = 0; r < rank; r++) {
              const product = 0.5 * scale * b[row * rank + r] * a[r * shape[1] + column];
              sum += product;
              size += Math.abs(product);
            }
            const near = Math.abs(is[i] - was[i] - sum) <= 1e-4 * (size + 1e-3) || !(size < 1e30);
            must(near, () => `${key}[${i}] became ${is[i]}, expected ${was[i] + sum}`);
          }
        }
      } finally {
        await opened.close();
      }
    };
  },
};

const parsers = { transformer: parseOfficialTransformer, vae: parseOfficialVae, upsampler: parseOfficialUpsampler };

/** Opens what lies at a path and reads its configurations as the pipelines do. */
async function openModels(path: string): Promise<void> {
  const models = await openOfficial(path);
  try {
    for (const kind of models.kinds) {
      const file = models.module(kind);
      must(file.tensors.size > 0, () => `a ${kind} of no tensors`);
      const config = models.configs[kind];
      if (config !== undefined) checkNumbers(parsers[kind](config, path), kind);
      const [name] = file.tensors.keys();
      await file.read(name);
    }
  } finally {
    await models.close();
  }
}

/** A configuration that was accepted holds no number that is none. */
export function checkNumbers(value: unknown, at: string): void {
  must(typeof value !== "number" || Number.isFinite(value), () => `${at} is ${value}`);
  if (typeof value !== "object" || value === null) return;
  for (const [key, item] of Object.entries(value)) checkNumbers(item, `${at}.${key}`);
}

export const official: Target = {
  name: "official",
  about: "official checkpoints: single files with their configuration, and diffusers folders",
  weight: 4,
  async setup(folder) {
    const files: Buffer[] = [];
    for (const generation of ["0.9.0", "0.9.1", "0.9.5"] as const)
      files.push(readFileSync(await writeOfficial(folder, generation)));
    const path = join(folder, "case.safetensors");
    const place = join(folder, "diffusers");
    const rare = join(folder, "model.safetensors");
    return async (random) => {
      const { header, data } = splitFile(random.pick(files));
      const about = header.__metadata__ as Record<string, string>;
      if (random.chance(0.7)) about.config = jsonText(random, mutateJson(random, JSON.parse(about.config), WORDS));
      if (random.chance(0.2)) delete about.config;
      if (random.chance(0.3)) dropSome(random, header);
      const bytes = fileOf(JSON.stringify(header), data);
      if (random.chance(0.75)) {
        writeFileSync(path, random.chance(0.85) ? bytes : mutateHeader(random, bytes));
        return openModels(path);
      }
      rmSync(place, { recursive: true, force: true });
      const part = random.pick(["transformer", "vae", "latent_upsampler"]);
      mkdirSync(join(place, part), { recursive: true });
      writeFileSync(rare, bytes);
      const act = random.pick([copyFileSync, symlinkSync]);
      act(
        rare,
        join(
          place,
          part,
          random.pick([
            "diffusion_pytorch_model.safetensors",
            "model.safetensors",
            "diffusion_pytorch_model.fp16.safetensors",
          ]),
        ),
      );
      const config = {
        _class_name: random.pick(["LTXVideoTransformer3DModel", "AutoencoderKLLTXVideo", "LTXLatentUpsamplerModel"]),
        ...vaeConfig("0.9.5"),
      };
      writeFileSync(join(place, part, "config.json"), jsonText(random, mutateJson(random, config, WORDS)));
      if (random.chance(0.3))
        writeFileSync(join(place, "model_index.json"), jsonText(random, { _class_name: "LTXPipeline" }));
      await openModels(random.chance(0.8) ? place : join(place, part));
    };
  },
};

const WORDS = [
  "compress_all",
  "res_x",
  "res_x_y",
  "attn_res_x",
  "compress_time",
  "multiplier",
  "residual",
  "none",
  "uniform",
  "per_channel",
  "rope",
  "gelu",
  "Transformer3DModel",
  "CausalVideoAutoencoder",
  "rms_norm",
  "group_norm",
];

function dropSome(random: Random, header: Record<string, unknown>): void {
  const prefix = random.pick([
    "vae.",
    "vae.encoder.",
    "model.diffusion_model.",
    "vae.decoder.up_blocks.1",
    "vae.per_channel",
  ]);
  const added = random.pick(["", "first_stage_model.", "text_encoders."]);
  for (const key of Object.keys(header)) {
    if (!key.startsWith(prefix)) continue;
    if (added) header[added + key.slice(prefix.length)] = header[key];
    delete header[key];
  }
}

/** The models' configurations alone. */
export const modelConfig: Target = {
  name: "model-config",
  about: "configurations of official models",
  weight: 20,
  async setup(folder) {
    const configs: [keyof typeof parsers, unknown][] = [
      [
        "upsampler",
        {
          in_channels: 8,
          mid_channels: 32,
          num_blocks_per_stage: 1,
          dims: 3,
          spatial_upsample: true,
          temporal_upsample: false,
        },
      ],
    ];
    for (const generation of ["0.9.0", "0.9.1", "0.9.5"] as const) {
      const { header } = splitFile(readFileSync(await writeOfficial(folder, generation)));
      const config = JSON.parse((header.__metadata__ as Record<string, string>).config);
      configs.push(["vae", config.vae], ["transformer", config.transformer]);
    }
    return async (random) => {
      const [kind, config] = random.pick(configs);
      checkNumbers(parsers[kind](mutateJson(random, config, WORDS), "config.json"), kind);
    };
  },
};
