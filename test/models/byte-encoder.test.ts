import { describe, expect, it } from "vitest";
import { ByteTextEncoder, byteTokens } from "../../lib/models/text-encoder/index.js";
import { Initializer } from "../../lib/nn/index.js";
import { mean, square } from "../../lib/ops/index.js";
import { backward, device, noGrad, scope, type Tensor } from "../../lib/tensor/index.js";

const target = device();
const options = { width: 16, layers: 2, heads: 2, max_length: 12 };
const build = (changes = {}) => new ByteTextEncoder({ ...options, ...changes }, new Initializer(target, 5));
const floats = async (tensor: Tensor) => Array.from(await tensor.read());
const encode = (encoder: ByteTextEncoder, prompts: string[]) => noGrad(() => encoder.encode(prompts));

describe("byteTokens", () => {
  const [bos, eos, pad] = [256, 257, 258];

  it("marks both ends and pads", () => {
    expect(byteTokens("3!", 6)).toEqual({ tokens: Int32Array.of(bos, 51, 33, eos, pad, pad), length: 4 });
  });

  it("takes the empty prompt", () => {
    expect(byteTokens("", 4)).toEqual({ tokens: Int32Array.of(bos, eos, pad, pad), length: 2 });
  });

  it("fills the whole length without a cut", () => {
    expect(byteTokens("ab", 4)).toEqual({ tokens: Int32Array.of(bos, 97, 98, eos), length: 4 });
  });

  it.each([
    ["aé", 4, [97]],
    ["aé", 5, [97, 0xc3, 0xa9]],
    ["a😀b", 6, [97]],
    ["a😀b", 7, [97, 0xf0, 0x9f, 0x98, 0x80]],
    ["😀", 4, []],
  ])("cuts %s at %i tokens between characters", (prompt, length, bytes) => {
    const { tokens, length: count } = byteTokens(prompt, length);
    expect(Array.from(tokens.slice(0, count))).toEqual([bos, ...bytes, eos]);
    expect(Array.from(tokens.slice(count)).every((t) => t === pad)).toBe(true);
  });
});

describe("ByteTextEncoder", () => {
  it("gives embeddings and a mask as long as the longest prompt, in steps of 8, at most of its full length", async () => {
    const encoder = build();
    const { embeddings, mask } = encode(encoder, ["ab", ""]);
    expect(embeddings.shape).toEqual([2, 8, 16]);
    expect(embeddings.dtype).toBe("f32");
    expect(await floats(mask)).toEqual([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]);
    expect(encode(encoder, ["three and 7"]).mask.shape).toEqual([1, 12]);
    expect([encoder.width, encoder.maxLength, encoder.trainable]).toEqual([16, 12, true]);
  });

  it("is a function of seed and prompt, whatever else is in the batch", async () => {
    const alone = await floats(encode(build(), ["seven"]).embeddings);
    const batch = await floats(encode(build(), ["seven", "three and 7"]).embeddings);
    for (const [i, value] of alone.entries()) expect(batch[i]).toBeCloseTo(value, 5);
    expect(await floats(encode(build(), ["sever"]).embeddings)).not.toEqual(alone);
  });

  it("lets no padding into the tokens that count", async () => {
    const encoder = build();
    const before = await floats(encode(encoder, ["ab"]).embeddings);
    const table = encoder.token_embedding.weight;
    const values = (await table.read()) as Float32Array;
    values.fill(9, 258 * 16);
    table.write(values);
    const after = await floats(encode(encoder, ["ab"]).embeddings);
    expect(after.slice(0, 4 * 16)).toEqual(before.slice(0, 4 * 16));
    expect(after.slice(4 * 16)).not.toEqual(before.slice(4 * 16));
  });

  it("sends a gradient to every parameter", async () => {
    const encoder = build();
    scope(() => backward(mean(square(encoder.encode(["ab"]).embeddings))));
    for (const [key, parameter] of encoder.namedParameters()) expect(parameter.grad, key).not.toBeNull();
    const rows = await floats(encoder.token_embedding.weight.grad as Tensor);
    const touched = [97, 98, 256, 257, 258];
    for (let row = 0; row < 259; row++) {
      expect(rows.slice(row * 16, row * 16 + 16).some((v) => v !== 0)).toBe(touched.includes(row));
    }
  });

  it("agrees in bf16 with f32", async () => {
    const exact = await floats(encode(build(), ["three and 7"]).embeddings);
    const rough = new ByteTextEncoder(options, new Initializer(target, 5), { computeDtype: "bf16" });
    const values = await floats(encode(rough, ["three and 7"]).embeddings);
    const error = Math.sqrt(
      values.reduce((s, v, i) => s + (v - exact[i]) ** 2, 0) / exact.reduce((s, v) => s + v * v, 0),
    );
    expect(error).toBeGreaterThan(0);
    expect(error).toBeLessThan(0.02);
  });

  it("names what does not fit", () => {
    expect(() => build({ heads: 3 })).toThrow("[byte encoder] width 16 does not divide into 3 heads");
    expect(() => build({ max_length: 2 })).toThrow("max_length must be an integer from 3");
    expect(() => build().encode([])).toThrow("expects a list of prompts");
    expect(() => build().encode([7] as unknown as string[])).toThrow("expects a list of prompts (strings), got [7]");
  });
});
