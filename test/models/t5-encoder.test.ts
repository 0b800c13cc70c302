import { describe, expect, it } from "vitest";
import { relativeBucket, T5Encoder } from "../../lib/models/text-encoder/index.js";
import { Initializer } from "../../lib/nn/index.js";
import { device } from "../../lib/tensor/index.js";
import { tinyT5Config } from "../support/tiny-t5.js";

/** An encoder whose values are set by their place, so that nothing in it is the same. */
function encoder(computeDtype: "f32" | "bf16" = "f32"): T5Encoder {
  const model = new T5Encoder(tinyT5Config, new Initializer(device()), { computeDtype });
  let n = 0;
  for (const [name, parameter] of model.namedParameters()) {
    const norm = name.includes("norm") ? 1 : 0;
    parameter.write(Float32Array.from({ length: parameter.size }, () => norm + 0.5 * Math.sin(++n)));
  }
  return model;
}

async function hidden(model: T5Encoder, ...args: Parameters<T5Encoder["forward"]>): Promise<number[]> {
  const result = model.forward(...args);
  const values = Array.from(await result.read());
  result.dispose();
  return values;
}

const distance = (a: number[], b: number[]) =>
  Math.sqrt(a.reduce((s, v, i) => s + (v - b[i]) ** 2, 0) / b.reduce((s, v) => s + v * v, 0));

describe("relativeBucket", () => {
  it("is exact near by, grows by powers, and knows both sides", () => {
    const bucket = (d: number) => relativeBucket(d, 32, 128);
    expect([0, -1, -7, 1, 7].map(bucket)).toEqual([0, 1, 7, 17, 23]);
    // Eight buckets on a side from 8 to 128, so each is 16^(1/8) = 1.41 times as wide as the one before.
    expect([-8, -11, -12, -15, -16, -22, -23, -32, -45, -46, -64, -90, -91, -127, -128, -1000].map(bucket)).toEqual([
      8, 8, 9, 9, 10, 10, 11, 12, 12, 13, 14, 14, 15, 15, 15, 15,
    ]);
    expect([8, 16, 32, 64, 128].map(bucket)).toEqual([24, 26, 28, 30, 31]);
  });
});

describe("T5Encoder", () => {
  it("has the keys of the hub's checkpoints, none of which learns", () => {
    const names = [...encoder().namedParameters()].map(([name]) => name);
    expect(names).toContain("shared.weight");
    expect(names).toContain("encoder.block.1.layer.1.DenseReluDense.wi_0.weight");
    expect(names.filter((name) => name.includes("relative"))).toEqual([
      "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ]);
    expect(
      encoder()
        .parameters()
        .some((p) => p.trainable || p.requiresGrad),
    ).toBe(false);
  });

  it("gives a text the same features whatever is behind it as padding", async () => {
    const model = encoder();
    const alone = await hidden(model, [[5, 9, 1]]);
    const padded = await hidden(model, [[5, 9, 1, 0, 0, 0]], [[1, 1, 1, 0, 0, 0]]);
    const other = await hidden(model, [[5, 9, 1, 7, 7, 7]], [[1, 1, 1, 0, 0, 0]]);
    expect(distance(padded.slice(0, alone.length), alone)).toBeLessThan(1e-5);
    expect(other.slice(0, alone.length)).toEqual(padded.slice(0, alone.length));
    const unmasked = await hidden(model, [[5, 9, 1, 7, 7, 7]]);
    expect(distance(unmasked.slice(0, alone.length), alone)).toBeGreaterThan(1e-3);
    model.dispose();
  });

  it("tells the order of tokens apart", async () => {
    const model = encoder();
    const width = tinyT5Config.d_model;
    const forth = await hidden(model, [[5, 9, 13]]);
    const back = await hidden(model, [[13, 9, 5]]);
    expect(distance(forth.slice(width, 2 * width), back.slice(width, 2 * width))).toBeGreaterThan(1e-3);
    model.dispose();
  });

  it("computes in bf16 too", async () => {
    const [single, half] = [encoder(), encoder("bf16")];
    const error = distance(await hidden(half, [[5, 9, 1, 30]]), await hidden(single, [[5, 9, 1, 30]]));
    expect(error).toBeGreaterThan(1e-5);
    expect(error).toBeLessThan(0.05);
    single.dispose();
    half.dispose();
  });

  it.each([
    [[[1, 2], [1]], undefined, "shape_mismatch"],
    [[[]], undefined, "shape_mismatch"],
    [[[1, 2]], [[1]], "shape_mismatch"],
    [[[1, 40]], undefined, "invalid_argument"],
    [[[1.5]], undefined, "invalid_argument"],
  ])("refuses ids %j with mask %j", (ids, mask, code) => {
    const model = encoder();
    expect(() => model.forward(ids, mask)).toThrow(expect.objectContaining({ code }));
    model.dispose();
  });
});
