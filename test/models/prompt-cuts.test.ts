/** What encoders say of prompts that are too long for them. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ByteTextEncoder, cutNotices, T5TextEncoder } from "../../lib/models/text-encoder/index.js";
import { Initializer } from "../../lib/nn/index.js";
import { device } from "../../lib/tensor/index.js";
import { testFolder } from "../support/folder.js";
import { writeTinyT5 } from "../support/tiny-t5.js";

const folder = testFolder();
let t5: T5TextEncoder;
beforeAll(async () => {
  t5 = await T5TextEncoder.open({ version: "tiny", path: await writeTinyT5(folder, { width: 16 }), maxLength: 12 });
});
afterAll(() => t5.dispose());

describe("the byte encoder", () => {
  const encoder = new ByteTextEncoder({ width: 8, layers: 1, heads: 2, max_length: 16 }, new Initializer(device(), 1));
  afterAll(() => encoder.dispose());

  it.each([
    ["three and four", ""],
    ["three and seven", "n"],
    ["three and se数n", "数n"],
    ["", ""],
  ])("%s loses %j", (prompt, cut) => {
    expect(encoder.cutOff(prompt)).toBe(cut);
  });

  it("is told once for each prompt that loses something", () => {
    expect(cutNotices(encoder, ["three", "three and seven", "three and seven"])).toEqual([
      'the model reads 16 tokens of a prompt: of "three and seven" it does not see the end, 1 character from "n" on',
    ]);
  });
});

describe("T5", () => {
  const tokens = async (prompt: string) => {
    const { embeddings, mask } = (await t5.prepare([prompt]))();
    const read = Array.from(await mask.read()).reduce((a, b) => a + b, 0);
    embeddings.dispose();
    mask.dispose();
    return read;
  };

  it("reads all of what it cuts nothing from", async () => {
    for (const prompt of ["", "three", "three and 7"]) expect(t5.cutOff(prompt)).toBe("");
    expect(await tokens("three and 7")).toBeLessThan(12);
  });

  it("reads the same of a word that never ends, looking at its beginning alone", async () => {
    const letters = "threandsv7";
    const words = [1, 2, 3].map((seed) =>
      Array.from({ length: 50_000 }, (_, i) => letters[(i * i * seed + 3 * i + seed) % 10]).join(""),
    );
    const whole = await t5.prepare(words.map((word) => word.slice(0, 900)));
    const long = await t5.prepare(words);
    const read = async (prompts: typeof long) => {
      const { embeddings, mask } = prompts();
      const values = [Array.from(await embeddings.read()), Array.from(await mask.read())];
      embeddings.dispose();
      mask.dispose();
      return values;
    };
    expect(await read(long)).toEqual(await read(whole));
    for (const word of words) expect(t5.cutOff(word)).toBe(word);
  });

  it("names what follows the last word that is read whole", async () => {
    for (const words of [12, 13, 40, 5000]) {
      const prompt = Array.from({ length: words }, (_, i) => ["three", "and", "7"][i % 3]).join(" ");
      const cut = t5.cutOff(prompt);
      expect(await tokens(prompt)).toBe(12);
      expect(prompt.endsWith(` ${cut}`)).toBe(true);
      const kept = prompt.slice(0, prompt.length - cut.length - 1);
      expect(t5.cutOff(kept)).toBe("");
      const [next] = cut.split(" ");
      expect(t5.cutOff(`${kept} ${next}`)).toBe(next);
    }
  });

  it("reads the same of a prompt of 50,000 letters as of its beginning", async () => {
    const beginning = "three and 7 ".repeat(20);
    const long = beginning.repeat(220);
    const values = async (prompt: string) => {
      const { embeddings, mask } = (await t5.prepare([prompt]))();
      const found = Array.from(await embeddings.read());
      embeddings.dispose();
      mask.dispose();
      return found;
    };
    expect(await values(long)).toEqual(await values(beginning));
    const [cut, start] = [t5.cutOff(long), t5.cutOff(beginning)];
    expect(long.trim().length - cut.length).toBe(beginning.trim().length - start.length);
  });
});
