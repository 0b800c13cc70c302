import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readSafetensors, writeSafetensors } from "../../lib/formats/safetensors.js";
import { T5TextEncoder } from "../../lib/models/text-encoder/index.js";
import { PromptCache } from "../../lib/models/text-encoder/prompt-cache.js";
import { device } from "../../lib/tensor/index.js";
import { testFolder } from "../support/tiny.js";
import { tinyT5Config, writeTinyT5 } from "../support/tiny-t5.js";

const folder = testFolder();
const rows = (...values: number[]) => Float32Array.from(values);

describe("PromptCache", () => {
  it("keeps the prompts in memory that were used last", async () => {
    const cache = await PromptCache.open("f", 2, { capacityBytes: 16 });
    await cache.add("a", rows(1, 2));
    await cache.add("b", rows(3, 4));
    expect(cache.get("a")).toEqual(rows(1, 2));
    await cache.add("c", rows(5, 6));
    expect([cache.get("a"), cache.get("b"), cache.get("c")]).toEqual([rows(1, 2), undefined, rows(5, 6)]);
    expect(cache).toMatchObject({ hits: 3, misses: 1, size: 2 });
    // One that alone is larger than the cache is still kept for those who ask next.
    await cache.add("d", rows(1, 2, 3, 4, 5, 6));
    expect([cache.size, cache.get("d")?.length]).toEqual([1, 6]);
  });

  it("comes back from its file, but not for another model or from a damaged file", async () => {
    const file = join(folder, "prompts.safetensors");
    const cache = await PromptCache.open("f", 2, { file });
    for (const [prompt, values] of [
      ["", rows(1, 2)],
      ["ünïcode 🎬", rows(3, 4, 5, 6)],
      ["\ud800", rows(9, 9)],
    ] as const) {
      await cache.add(prompt, values);
    }
    expect(existsSync(file)).toBe(false);
    await cache.flush();
    const again = await PromptCache.open("f", 2, { file });
    expect([again.size, again.get(""), again.get("ünïcode 🎬"), again.get("\ud800")]).toEqual([
      2,
      rows(1, 2),
      rows(3, 4, 5, 6),
      undefined,
    ]);
    expect((await PromptCache.open("g", 2, { file })).size).toBe(0);
    expect((await PromptCache.open("f", 3, { file })).size).toBe(0);
    writeFileSync(file, "damaged");
    const fresh = await PromptCache.open("f", 2, { file });
    expect(fresh.size).toBe(0);
    await fresh.add("x", rows(7, 8));
    await fresh.flush();
    expect((await PromptCache.open("f", 2, { file })).get("x")).toEqual(rows(7, 8));
    expect(readdirSync(folder).filter((name) => name.startsWith("."))).toEqual([]);
  });

  it("passes over entries that no prompt of this model can have", async () => {
    const file = join(folder, "strange.safetensors");
    const tensor = (name: string, shape: number[], values: Float32Array) => {
      return { name, dtype: "F32" as const, shape, data: new Uint8Array(values.buffer) };
    };
    await writeSafetensors(
      file,
      [
        tensor("prompt:good", [2, 2], rows(1, 2, 3, 4)),
        tensor("prompt:long", [3, 2], rows(1, 2, 3, 4, 5, 6)),
        tensor("prompt:wide", [1, 3], rows(1, 2, 3)),
        tensor("prompt:flat", [2], rows(1, 2)),
        tensor("prompt:empty", [0, 2], rows()),
        tensor("prompt:nan", [1, 2], rows(1, Number.NaN)),
        tensor("other", [1, 2], rows(1, 2)),
      ],
      { fingerprint: "f" },
    );
    const cache = await PromptCache.open("f", 2, { file, maxRows: 2 });
    expect(cache.size).toBe(1);
    expect(cache.get("good")).toEqual(rows(1, 2, 3, 4));
  });

  it("goes on without its file, and writes all when it can", async () => {
    const place = join(folder, "missing");
    const file = join(place, "prompts.safetensors");
    const cache = await PromptCache.open("f", 1, { file });
    for (let i = 0; i < 40; i++) await cache.add(String(i), rows(i));
    await expect(cache.flush()).rejects.toMatchObject({ code: "io", message: expect.stringContaining(place) });
    mkdirSync(place);
    await cache.flush();
    expect((await PromptCache.open("f", 1, { file })).size).toBe(40);
  });

  it("writes now and then by itself", async () => {
    const file = join(folder, "many.safetensors");
    const cache = await PromptCache.open("f", 1, { file });
    for (let i = 0; i < 20; i++) await cache.add(String(i), rows(i));
    const { tensors, close } = await readSafetensors(file);
    await close();
    expect(tensors.size).toBe(16);
  });
});

describe("T5TextEncoder", () => {
  const open = async (options: { file?: string; maxLength?: number } = {}) => {
    const path = await writeTinyT5(join(folder, "t5"));
    const { file, maxLength = 6 } = options;
    return T5TextEncoder.open({ version: "tiny", path, maxLength, cache: { file } });
  };
  const read = async (text: T5TextEncoder, prompts: string[]) => {
    const { embeddings, mask } = (await text.prepare(prompts))();
    const result = {
      shape: embeddings.shape,
      values: Array.from(await embeddings.read()),
      mask: Array.from(await mask.read()),
    };
    embeddings.dispose();
    mask.dispose();
    return result;
  };

  it("pads with zeros, cuts, and encodes each prompt once, whatever it comes with", async () => {
    const text = await open();
    const { d_model: width } = tinyT5Config;
    const { shape, values, mask } = await read(text, ["three and 7", "", "one and two and three and four"]);
    expect(shape).toEqual([3, 6, width]);
    expect(mask).toEqual([1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
    for (const [i, counts] of mask.entries()) {
      expect(values.slice(i * width, (i + 1) * width).some((v) => v !== 0)).toBe(counts === 1);
    }
    expect(text.cache).toMatchObject({ hits: 0, misses: 3, size: 3 });
    const alone = await read(text, [""]);
    expect(alone.values).toEqual(values.slice(6 * width, 12 * width));
    expect(text.cache).toMatchObject({ hits: 1, misses: 3 });
    // Two who ask at once for the same prompt share the work.
    const [a, b] = await Promise.all([read(text, ["nine"]), read(text, ["nine"])]);
    expect(a).toEqual(b);
    expect(text.cache.size).toBe(4);
    text.dispose();
  });

  it("needs no weights for prompts that its file holds, and frees what it loaded", async () => {
    const before = device().memory().live;
    const file = join(folder, "t5-prompts.safetensors");
    const first = await open({ file });
    const expected = await read(first, ["one", "two"]);
    await first.cache.flush();
    const second = await open({ file });
    const live = device().memory().live;
    expect(await read(second, ["two", "one", "two"])).toMatchObject({
      mask: [...expected.mask.slice(6), ...expected.mask],
    });
    expect(second.cache).toMatchObject({ hits: 3, misses: 0 });
    await device().synchronize();
    expect(device().memory().live).toBe(live);
    // Another length asks for other features.
    expect((await open({ file, maxLength: 7 })).cache.size).toBe(0);
    first.dispose();
    second.dispose();
    await device().synchronize();
    expect(device().memory().live).toBe(before);
  });

  it("gives the network's memory back when all prompts have been there for a while, and loads it again", async () => {
    const text = await open();
    const before = device().memory().live;
    const prepared = await text.prepare(["one"]);
    const loaded = device().memory().live;
    expect(loaded).toBeGreaterThan(before);
    for (let i = 0; i < 63; i++) await text.prepare(["one"]);
    await device().synchronize();
    expect(device().memory().live).toBe(loaded);
    for (let i = 0; i < 2; i++) await text.prepare(["one"]);
    await device().synchronize();
    expect(device().memory().live).toBe(before);
    const { embeddings, mask } = prepared();
    expect(embeddings.shape).toEqual([1, 6, tinyT5Config.d_model]);
    for (const tensor of [embeddings, mask]) tensor.dispose();
    await text.prepare(["two"]);
    await device().synchronize();
    expect(device().memory().live).toBe(loaded);
    text.dispose();
  });

  it("refuses what is no list of texts", async () => {
    const text = await open();
    for (const prompts of [[], "one", [1]]) {
      await expect(text.prepare(prompts as unknown as string[])).rejects.toMatchObject({ code: "invalid_argument" });
    }
    await expect(open({ maxLength: 0 })).rejects.toMatchObject({ code: "config" });
  });
});
