import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openOfficial } from "../../lib/formats/official/open.js";
import { readSafetensors } from "../../lib/formats/safetensors.js";
import { convert, openCheckpoint } from "../../lib/pipelines/index.js";
import { failure } from "../support/failure.js";
import { writeLora, writeOfficial } from "../support/official.js";
import { call, testFolder } from "../support/tiny.js";

const folder = testFolder();
const at = (...names: string[]) => join(folder, ...names);
const json = (...names: string[]) => JSON.parse(readFileSync(at(...names), "utf8"));

async function contents(path: string): Promise<Map<string, string>> {
  const file = await readSafetensors(path);
  const entries = [...file.tensors].map(async ([name, { dtype }]) => {
    const hash = createHash("sha256").update(await file.read(name));
    return [name, `${dtype} ${hash.digest("hex")}`] as const;
  });
  const result = new Map((await Promise.all(entries)).sort(([a], [b]) => (a < b ? -1 : 1)));
  await file.close();
  return result;
}

describe("convert of official models", () => {
  it.each([
    ["0.9.0", "f32"],
    ["0.9.1", "bf16"],
    ["0.9.5", "bf16"],
    ["0.9.5", "fp8"],
  ] as const)("gives %s %s back as it was, from both other forms", async (generation, kind) => {
    const source = await writeOfficial(folder, generation, kind);
    const name = `${generation}-${kind}`;
    const native = await convert(source, at(`${name}-native.safetensors`), { to: "ltx-native" });
    await convert(native.path, at(`${name}-back.safetensors`), { to: "official" });
    const diffusers = await convert(source, at(`${name}-diffusers`), { to: "diffusers" });
    await convert(diffusers.path, at(`${name}-again.safetensors`), { to: "official" });
    await convert(diffusers.path, at(`${name}-across.safetensors`), { to: "ltx-native" });
    const original = readFileSync(source);
    expect(native).toMatchObject({ kind: "official", source });
    expect(diffusers.tensors).toBe(native.tensors);
    expect(readFileSync(at(`${name}-back.safetensors`)).equals(original)).toBe(true);
    expect(readFileSync(at(`${name}-again.safetensors`)).equals(original)).toBe(true);
    expect(await contents(at(`${name}-across.safetensors`))).toEqual(await contents(native.path));
    const [whole, parts] = [await openOfficial(source), await openOfficial(diffusers.path)];
    expect(parts.layout).toBe("diffusers");
    expect(parts.configs).toEqual(whole.configs);
    await whole.close();
    await parts.close();
  });

  it("writes diffusers' names and configurations", async () => {
    const source = await writeOfficial(folder, "0.9.5");
    await convert(source, at("names"), { to: "diffusers" });
    expect(readdirSync(at("names")).sort()).toEqual(["model_index.json", "scheduler", "transformer", "vae"]);
    expect(json("names", "transformer", "config.json")).toMatchObject({
      _class_name: "LTXVideoTransformer3DModel",
      qk_norm: "rms_norm_across_heads",
      patch_size: 1,
    });
    expect(json("names", "vae", "config.json")).toMatchObject({
      _class_name: "AutoencoderKLLTXVideo",
      block_out_channels: [2, 4, 8, 16, 32],
      decoder_block_out_channels: [8, 16, 32],
      decoder_layers_per_block: [1, 2, 1, 1],
      downsample_type: ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
      layers_per_block: [1, 1, 1, 1, 2],
      spatial_compression_ratio: 32,
      temporal_compression_ratio: 8,
      upsample_factor: [2, 2, 2],
    });
    expect(json("names", "scheduler", "scheduler_config.json")).toMatchObject({
      use_dynamic_shifting: true,
      shift_terminal: 0.1,
    });
    const transformer = await contents(at("names", "transformer", "diffusion_pytorch_model.safetensors"));
    expect([...transformer.keys()]).toContain("transformer_blocks.1.attn2.norm_q.weight");
    expect([...transformer.keys()]).toContain("time_embed.emb.timestep_embedder.linear_1.bias");
    const vae = await contents(at("names", "vae", "diffusion_pytorch_model.safetensors"));
    for (const name of [
      "encoder.mid_block.resnets.1.conv2.conv.weight",
      "encoder.down_blocks.3.downsamplers.0.conv.conv.weight",
      "decoder.up_blocks.1.resnets.1.scale_shift_table",
      "decoder.time_embedder.timestep_embedder.linear_2.bias",
      "decoder.scale_shift_table",
      "latents_mean",
    ]) {
      expect([...vae.keys()]).toContain(name);
    }
    expect([...vae.keys()].filter((name) => /statistics|res_blocks|last_/.test(name))).toEqual([]);
  });

  it("reads a diffusers folder that another program wrote", async () => {
    const source = await writeOfficial(folder, "0.9.0", "f32");
    await convert(source, at("own"), { to: "diffusers" });
    const { writeSafetensors } = await import("../../lib/formats/safetensors.js");
    mkdirSync(at("foreign"));
    for (const kind of ["transformer", "vae"]) {
      mkdirSync(at("foreign", kind));
      const file = await readSafetensors(at("own", kind, "diffusion_pytorch_model.safetensors"));
      const tensors = [...file.tensors].map(([name, { dtype, shape }]) => ({
        name,
        dtype,
        shape,
        data: () => file.read(name),
      }));
      await writeSafetensors(at("foreign", kind, "diffusion_pytorch_model.safetensors"), tensors, { format: "pt" });
      await file.close();
      writeFileSync(at("foreign", kind, "config.json"), readFileSync(at("own", kind, "config.json")));
    }
    await convert(at("foreign"), at("foreign.safetensors"), { to: "official" });
    const [expected, found] = [await contents(source), await contents(at("foreign.safetensors"))];
    const unused = [...expected.keys()].filter((name) => !found.has(name));
    expect(unused).toEqual(
      ["channel", "mean-of-stds", "mean-of-stds_over_std-of-means"].map((s) => `vae.per_channel_statistics.${s}`),
    );
    for (const [name, bytes] of found) expect(bytes).toBe(expected.get(name));
    const { configs, ...models } = await openOfficial(at("foreign.safetensors"));
    expect(configs.transformer).toMatchObject({ qk_norm: "rms_norm", causal_temporal_positioning: false });
    expect(configs.vae).toMatchObject({
      _class_name: "CausalVideoAutoencoder",
      encoder_base_channels: 2,
      decoder_base_channels: 4,
    });
    await models.close();
  });

  it("divides weights among files of a size", async () => {
    const source = await writeOfficial(folder, "0.9.5");
    const official = await convert(source, at("sharded"), { to: "official", maxShardSize: 100_000 });
    const names = readdirSync(at("sharded")).sort();
    const count = names.length - 1;
    expect(count).toBeGreaterThan(2);
    expect(names[0]).toBe(`sharded-00001-of-${String(count).padStart(5, "0")}.safetensors`);
    const { metadata, weight_map } = json("sharded", "sharded.safetensors.index.json");
    expect(Object.keys(weight_map)).toHaveLength(official.tensors);
    expect(metadata.total_size).toBeLessThan(official.bytes);
    await convert(at("sharded"), at("unsharded.safetensors"), { to: "official" });
    expect(readFileSync(at("unsharded.safetensors")).equals(readFileSync(source))).toBe(true);
    await convert(source, at("sharded-diffusers"), { to: "diffusers", maxShardSize: 50_000 });
    const inside = readdirSync(at("sharded-diffusers", "transformer"));
    expect(inside).toContain("diffusion_pytorch_model.safetensors.index.json");
    await convert(at("sharded-diffusers"), at("unsharded2.safetensors"), { to: "official" });
    expect(readFileSync(at("unsharded2.safetensors")).equals(readFileSync(source))).toBe(true);
  });

  it("changes types, and merges LoRAs", async () => {
    const source = await writeOfficial(folder, "0.9.0", "f32");
    const lora = await writeLora(at("merge.safetensors"));
    const options = { to: "official", dtype: "bf16", loras: [{ path: lora, weight: 0.5 }] } as const;
    await convert(source, at("merged.safetensors"), options);
    const [before, after] = [await contents(source), await contents(at("merged.safetensors"))];
    const entries = await readSafetensors(at("merged.safetensors"));
    expect([...entries.tensors.values()].every(({ dtype }) => dtype === "BF16")).toBe(true);
    await entries.close();
    await convert(source, at("plain.safetensors"), { to: "official", dtype: "bf16" });
    const plain = await contents(at("plain.safetensors"));
    const changed = [...after].filter(([name, bytes]) => plain.get(name) !== bytes).map(([name]) => name);
    const expected = [0, 1].flatMap((i) => [`blocks.${i}.attn1.to_q`, `blocks.${i}.attn2.to_v`]);
    expect(changed).toEqual(expected.map((name) => `model.diffusion_model.transformer_${name}.weight`));
    expect([...after.keys()]).toEqual([...before.keys()]);
  });

  it("rounds the weights of the transformer's blocks to 8 bits, as the official files of the name have them", async () => {
    const source = await writeOfficial(folder, "0.9.5");
    await convert(source, at("to-fp8.safetensors"), { to: "official", dtype: "fp8" });
    const [wanted, found] = await Promise.all(
      [await writeOfficial(folder, "0.9.5", "fp8"), at("to-fp8.safetensors")].map(readSafetensors),
    );
    const types = (file: typeof wanted) => [...file.tensors].map(([name, { dtype }]) => [name, dtype]);
    expect(types(found)).toEqual(types(wanted));
    const before = await readSafetensors(source);
    const key = "model.diffusion_model.transformer_blocks.1.ff.net.2.weight";
    const [exact, rounded] = [await before.readF32(key), await found.readF32(key)];
    for (const [i, value] of exact.entries()) {
      expect(Math.abs(rounded[i] - value)).toBeLessThanOrEqual(Math.max(Math.abs(value) / 16, 2 ** -10));
    }
    for (const file of [wanted, found, before]) await file.close();
    const lora = await writeLora(at("fp8-lora.safetensors"));
    for (const [from, options] of [
      [source, { dtype: "fp8" }],
      [lora, { dtype: "fp8", to: "diffusers" }],
      [lora, { to: "diffusers", loras: [{ path: lora }] }],
    ] as const) {
      expect((await failure(() => convert(from, at("no.safetensors"), options))).code).toBe("invalid_argument");
    }
  });

  it("changes a LoRA's spelling and nothing else", async () => {
    const comfy = await writeLora(at("comfy.safetensors"));
    await convert(comfy, at("as-diffusers.safetensors"), { to: "diffusers" });
    const renamed = [...(await contents(comfy))].map(([name, bytes]) => [
      name.replace("diffusion_model.", "transformer."),
      bytes,
    ]);
    expect([...(await contents(at("as-diffusers.safetensors")))]).toEqual(renamed);
    const back = await convert(at("as-diffusers.safetensors"), at("comfy-back.safetensors"), { to: "ltx-native" });
    expect(back.kind).toBe("lora");
    expect(readFileSync(back.path).equals(readFileSync(comfy))).toBe(true);
  });

  it("leaves nothing behind and what was there untouched when it fails", async () => {
    const place = at("fails");
    mkdirSync(place);
    const source = await writeOfficial(folder, "0.9.0", "f32");
    const bytes = readFileSync(source);
    writeFileSync(at("cut.safetensors"), bytes.subarray(0, bytes.length - 10));
    const old = join(place, "old");
    mkdirSync(old);
    writeFileSync(join(old, "mine.txt"), "mine");
    const other = await writeLora(at("other.safetensors"), { dim: 64 });
    const cases: [string, () => Promise<unknown>, string, RegExp][] = [
      ["full", () => convert(source, old, { to: "diffusers" }), "file_exists", /old holds mine\.txt already/],
      ["cut", () => convert(at("cut.safetensors"), join(place, "x"), { to: "diffusers" }), "file_format", /damaged/],
      ["no folder", () => convert(source, join(place, "no", "x"), { to: "diffusers" }), "io", /no\/x/],
      [
        "a folder's name",
        () => convert(source, join(place, "x"), { to: "official" }),
        "invalid_argument",
        /\*\.safetensors/,
      ],
      [
        "size",
        () => convert(source, join(place, "x"), { to: "official", maxShardSize: 0 }),
        "invalid_argument",
        /above 0/,
      ],
      [
        "no form",
        () => convert(source, join(place, "x.safetensors"), { maxShardSize: 5 }),
        "invalid_argument",
        /which form/,
      ],
      [
        "LoRA",
        () => convert(source, join(place, "x.safetensors"), { to: "official", loras: [{ path: other }] }),
        "checkpoint",
        /other\.safetensors is for another model/,
      ],
      [
        "config",
        () => convert(source, join(place, "x.safetensors"), { to: "official", config: "a.yaml" }),
        "invalid_argument",
        /own models/,
      ],
    ];
    for (const [name, run, code, message] of cases) {
      expect([name, await failure(run)]).toEqual([
        name,
        expect.objectContaining({ code, message: expect.stringMatching(message) }),
      ]);
    }
    expect(readdirSync(place)).toEqual(["old"]);
    expect(readdirSync(old)).toEqual(["mine.txt"]);
    await convert(source, old, { to: "diffusers", force: true });
    expect(readFileSync(join(old, "mine.txt"), "utf8")).toBe("mine");
    expect(existsSync(join(old, "vae", "config.json"))).toBe(true);
  });

  it("is what other commands tell who gives them an official model", async () => {
    const source = await writeOfficial(folder, "0.9.0");
    for (const stage of ["vae", "flow"] as const) {
      expect(await failure(() => openCheckpoint(source, stage))).toMatchObject({
        code: "checkpoint",
        message: `[checkpoint] ${source} is an official model: LtxVideoPipeline and "ltx-native generate" work with those`,
      });
    }
  });

  it("is a command", async () => {
    const source = await writeOfficial(folder, "0.9.5");
    const lora = await writeLora(at("cli-lora.safetensors"));
    const out = at("cli-diffusers");
    const first = await call(
      "convert",
      "--checkpoint",
      source,
      "--to",
      "diffusers",
      "--out",
      out,
      "--max-shard-size",
      "0.1MB",
    );
    expect(first).toMatchObject({ code: 0, stderr: "" });
    expect(first.stdout).toMatch(/cli-diffusers: \d+ tensors, \d+\.\d MB, read back\n$/);
    const merged = at("cli-merged.safetensors");
    const flags = [
      "convert",
      "--checkpoint",
      out,
      "--to",
      "official",
      "--out",
      merged,
      "--json",
      "--lora",
      `${lora}:0.5`,
    ];
    expect(JSON.parse((await call(...flags)).stdout)).toMatchObject({
      type: "converted",
      kind: "official",
      path: merged,
    });
    const key = "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight";
    expect((await contents(merged)).get(key)).not.toBe((await contents(source)).get(key));
    for (const wrong of [
      ["--to", "pytorch"],
      ["--max-shard-size", "many"],
      ["--max-shard-size", "0"],
    ]) {
      expect((await call("convert", "--checkpoint", source, "--out", at("no.safetensors"), ...wrong)).code).toBe(2);
    }
  });
});
