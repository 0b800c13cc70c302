import { createHash } from "node:crypto";
import { afterEach, describe, expect, it } from "vitest";
import { parseTransformerParams } from "../../lib/config/index.js";
import { FeedForward, LtxVideoTransformer, type TransformerOptions } from "../../lib/models/transformer/index.js";
import { Initializer } from "../../lib/nn/index.js";
import { full, mean, normal, square } from "../../lib/ops/index.js";
import { backward, device, noGrad, scope, Tensor } from "../../lib/tensor/index.js";
import { activations } from "../support/reference/elementwise.js";

const target = device();
const GRID = [2, 3, 2];
const config = (changes: Record<string, unknown> = {}): TransformerOptions =>
  parseTransformerParams(
    {
      input_spatial_size: [3, 2],
      input_channels: 4,
      input_number_of_frames: 2,
      num_layers: 2,
      num_attention_heads: 2,
      attention_head_dim: 16,
      cross_attention_dim: 32,
      caption_channels: 12,
      ...changes,
    },
    "test",
  );

const models: LtxVideoTransformer[] = [];
function build(changes: Record<string, unknown> = {}, options: LtxVideoTransformer["options"] = {}) {
  const model = new LtxVideoTransformer(config(changes), new Initializer(target, 7), options);
  models.push(model);
  return model;
}
afterEach(() => {
  for (const model of models.splice(0)) model.dispose();
});

const random = (shape: number[], purpose: number) => normal(shape, { seed: 3, step: 0, purpose }, { device: target });
const inputs = (batch = 2, tokens = 5) => ({
  x: random([batch, ...GRID, 4], 1),
  t: Tensor.from(
    Float32Array.from({ length: batch }, (_, i) => (i + 1) / (batch + 1)),
    [batch],
    { device: target },
  ),
  text: random([batch, tokens, 12], 2),
  mask: full([batch, tokens], 1, { device: target }),
});
const hash = (values: Awaited<ReturnType<Tensor["read"]>> | undefined) =>
  createHash("sha256")
    .update(values ?? expect.fail("no gradient"))
    .digest("hex");
const floats = async (tensor: Tensor) => Array.from(await tensor.read());

function distance(a: readonly number[], b: readonly number[]): number {
  const norm = (values: readonly number[]) => Math.sqrt(values.reduce((s, v) => s + v * v, 0));
  return norm(a.map((v, i) => v - b[i])) / norm(b);
}

describe("LtxVideoTransformer", () => {
  it("gives the same velocity and gradients without the tokens that every mask drops", async () => {
    const model = build();
    const { x, t, text } = inputs(2, 24);
    const words = [5, 8];
    const results: number[][] = [];
    for (const length of [24, 8]) {
      const shape = [2, length];
      const rows = Float32Array.from({ length: 2 * length }, (_, i) => (i % length < words[(i / length) | 0] ? 1 : 0));
      const all = (await text.read()) as Float32Array;
      const kept = [0, 1].flatMap((b) => Array.from(all.subarray(b * 24 * 12, (b * 24 + length) * 12)));
      const part = Tensor.from(Float32Array.from(kept), [...shape, 12], { device: target });
      const y = model.forward(x, t, part, Tensor.from(rows, shape, { device: target }));
      backward(scope(() => mean(square(y))));
      const { weight } = model.transformer_blocks[0].attn2.to_k;
      results.push([...(await floats(y)), ...(await floats(weight.grad as Tensor))]);
      for (const parameter of model.parameters()) parameter.grad = null;
    }
    expect(distance(results[1], results[0])).toBeLessThan(1e-6);
  });

  it("gives a velocity of the latents' shape, in f32", async () => {
    const { x, t, text, mask } = inputs();
    const velocity = noGrad(() => build({ out_channels: 6 }).forward(x, t, text, mask));
    expect(velocity.shape).toEqual([2, ...GRID, 6]);
    expect(velocity.dtype).toBe("f32");
    expect((await floats(velocity)).every(Number.isFinite)).toBe(true);
  });

  it("has the reference's state-dict keys", async () => {
    const keys = [...(await build({ num_layers: 1, norm_elementwise_affine: true }).stateDict()).keys()];
    const attention = (name: string) => [
      `${name}.q_norm.weight`,
      `${name}.k_norm.weight`,
      ...["to_q", "to_k", "to_v", "to_out.0"].flatMap((l) => [`${name}.${l}.weight`, `${name}.${l}.bias`]),
    ];
    const layer = (name: string) => [`${name}.weight`, `${name}.bias`];
    const block = [
      "norm1.weight",
      ...attention("attn1"),
      ...attention("attn2"),
      "norm2.weight",
      ...layer("ff.net.0.proj"),
      ...layer("ff.net.2"),
      "scale_shift_table",
    ].map((key) => `transformer_blocks.0.${key}`);
    const expected = [
      ...layer("patchify_proj"),
      ...layer("adaln_single.emb.timestep_embedder.linear_1"),
      ...layer("adaln_single.emb.timestep_embedder.linear_2"),
      ...layer("adaln_single.linear"),
      ...layer("caption_projection.linear_1"),
      ...layer("caption_projection.linear_2"),
      ...block,
      "scale_shift_table",
      ...layer("proj_out"),
    ];
    expect(keys.sort()).toEqual(expected.sort());
  });

  it.each([
    ["single_scale_shift", 6],
    ["single_scale", 4],
    ["none", 6],
  ])("with adaptive norm %s embeds the time in %i rows", async (adaptive_norm, rows) => {
    const model = build({ adaptive_norm });
    const { x, t, text, mask } = inputs();
    expect(model.adaln_single.linear.weight.shape).toEqual([rows * 32, 32]);
    const velocity = await floats(noGrad(() => model.forward(x, t, text, mask)));
    const later = await floats(noGrad(() => model.forward(x, full([2], 0.9, { device: target }), text, mask)));
    expect(velocity.every(Number.isFinite)).toBe(true);
    expect(distance(later, velocity)).toBeGreaterThan(0.01);
  });

  it.each([["rms_norm"], ["layer_norm"], [null]])("runs and learns with qk_norm %s", async (qk_norm) => {
    const model = build({ qk_norm });
    const { x, t, text, mask } = inputs();
    scope(() => backward(mean(square(model.forward(x, t, text, mask)))));
    for (const [key, parameter] of model.namedParameters()) expect(parameter.grad, key).not.toBeNull();
    const to_q = model.transformer_blocks[0].attn1.to_q.weight.grad as Tensor;
    expect((await floats(to_q)).some((v) => v !== 0)).toBe(true);
  });

  it.each(["f32", "bf16"] as const)(
    "computes the same %s gradients with checkpoints, from fewer bytes",
    async (computeDtype) => {
      const { x, t, text, mask } = inputs();
      const [results, kept]: [unknown[][], number[]] = [[], []];
      for (const gradientCheckpointing of [false, true]) {
        const model = build({ num_layers: 4 }, { gradientCheckpointing, computeDtype });
        noGrad(() => scope(() => model.forward(x, t, text, mask))); // fills the cache of tables
        for (let pass = 0; pass < 2; pass++) {
          const before = device().memory().live;
          const loss = scope(() => mean(square(model.forward(x, t, text, mask))));
          kept.push(device().memory().live - before);
          backward(loss);
          loss.dispose();
        }
        results.push(await Promise.all(model.parameters().map(async (p) => hash(await p.grad?.read()))));
      }
      expect(results[1]).toEqual(results[0]);
      expect(kept[2]).toBeLessThan(kept[0] / 3);
    },
  );

  it("does not see text that the mask drops", async () => {
    const model = build();
    const { x, t, text } = inputs(1);
    const mask = Tensor.from([1, 1, 0, 1, 0], [1, 5], { device: target });
    const values = (await text.read()) as Float32Array;
    const changed = (token: number) => {
      const copy = values.slice();
      copy.fill(5, token * 12, (token + 1) * 12);
      return Tensor.from(copy, [1, 5, 12], { device: target });
    };
    const velocity = (words: Tensor) => floats(noGrad(() => model.forward(x, t, words, mask)));
    const before = await velocity(text);
    expect(await velocity(changed(2))).toEqual(before);
    expect(await velocity(changed(4))).toEqual(before);
    expect(distance(await velocity(changed(3)), before)).toBeGreaterThan(1e-4);
  });

  it("treats a missing mask as all ones", async () => {
    const model = build();
    const { x, t, text, mask } = inputs();
    const masked = await floats(noGrad(() => model.forward(x, t, text, mask)));
    expect(distance(await floats(noGrad(() => model.forward(x, t, text))), masked)).toBeLessThan(1e-6);
  });

  it("answers each sample of a batch as if alone, in any order", async () => {
    const model = build();
    const { x, t, text, mask } = inputs();
    const swap = async (tensor: Tensor) => {
      const values = (await tensor.read()) as Float32Array;
      const half = values.length / 2;
      return Tensor.from(Float32Array.of(...values.slice(half), ...values.slice(0, half)), tensor.shape, {
        device: target,
      });
    };
    const straight = noGrad(() => model.forward(x, t, text, mask));
    const [x2, t2, text2] = [await swap(x), await swap(t), await swap(text)];
    const swapped = noGrad(() => model.forward(x2, t2, text2, mask));
    expect(distance(await floats(await swap(swapped)), await floats(straight))).toBeLessThan(1e-6);
  });

  it("takes a time for each token", async () => {
    const model = build();
    const { x, t, text, mask } = inputs();
    const [first, second] = await floats(t);
    const perToken = Tensor.from([...Array(12).fill(first), ...Array(12).fill(second)], [2, 12], { device: target });
    const expected = await floats(noGrad(() => model.forward(x, t, text, mask)));
    const actual = await floats(noGrad(() => model.forward(x, perToken, text, mask)));
    expect(distance(actual, expected)).toBeLessThan(1e-6);
  });

  it("agrees in bf16 with f32", async () => {
    const { x, t, text, mask } = inputs();
    const exact = await floats(noGrad(() => build().forward(x, t, text, mask)));
    const velocity = noGrad(() => build({}, { computeDtype: "bf16" }).forward(x, t, text, mask));
    expect(velocity.dtype).toBe("f32");
    const error = distance(await floats(velocity), exact);
    expect(error).toBeGreaterThan(0);
    expect(error).toBeLessThan(0.03);
  });

  it("keeps the tables of few grids, and frees all it made", () => {
    const live = target.memory().live;
    const model = new LtxVideoTransformer(config(), new Initializer(target));
    noGrad(() =>
      scope(() => {
        for (let frames = 1; frames <= 12; frames++) {
          const x = random([1, frames, 2, 2, 4], 1);
          model.forward(x, full([1], 0.5, { device: target }), random([1, 3, 12], 2));
        }
      }),
    );
    model.dispose();
    expect(target.memory().live).toBe(live);
  });

  it("names what does not fit", () => {
    const model = build();
    const { x, t, text, mask } = inputs();
    const forward =
      (...args: Parameters<LtxVideoTransformer["forward"]>) =>
      () =>
        model.forward(...args);
    expect(forward(random([2, ...GRID, 5], 1), t, text, mask)).toThrow(
      "[transformer] expects latents (B,F,H,W,4), got [2,2,3,2,5]",
    );
    expect(forward(x, full([3], 0.5, { device: target }), text, mask)).toThrow(
      "expects a time for each of the 2 samples",
    );
    expect(forward(x, t, random([2, 5, 13], 2), mask)).toThrow("expects text [2, L, 12], got [2,5,13]");
    expect(forward(x, t, text, full([2, 4], 1, { device: target }))).toThrow("expects a mask f32 [2, 5]");
    expect(() => build({ cross_attention_dim: 64 })).toThrow("num_attention_heads · attention_head_dim = 32, got 64");
    expect(() => build({ positional_embedding_type: "absolute", project_to_2d_pos: false })).toThrow(
      "not supported yet",
    );
  });
});

describe("feed-forward", () => {
  const { gelu, gelu_tanh: tanhGelu } = activations;

  it.each([
    ["gelu", 4, (h: number[]) => h.map(gelu)],
    ["gelu-approximate", 4, (h: number[]) => h.map(tanhGelu)],
    ["geglu", 8, (h: number[]) => h.slice(0, h.length / 2).map((v, i) => v * gelu(h[h.length / 2 + i]))],
    ["geglu-approximate", 4, (h: number[]) => h.map((v) => v / (1 + Math.exp(-1.702 * v)))],
  ] as const)("with %s is what the reference's class computes", async (activation, width, apply) => {
    const dim = 6;
    const layer = new FeedForward(dim, activation, new Initializer(target, 11));
    const [up, , down] = layer.net;
    expect(up.proj.weight.shape).toEqual([width * dim, dim]);
    const values = async (x: Tensor | null) => [...Float32Array.from(await (x as Tensor).read())];
    const [w1, b1, w2, b2] = await Promise.all([up.proj.weight, up.proj.bias, down.weight, down.bias].map(values));
    const product = (w: number[], b: number[], x: number[]) =>
      b.map((bias, o) => x.reduce((sum, v, i) => sum + v * w[o * x.length + i], bias));
    const x = [0.3, -1.2, 2, 0.7, -0.4, 1.5];
    const expected = product(w2, b2, [...apply(product(w1, b1, x))]);
    const found = await values(noGrad(() => layer.forward(Tensor.from(x, [1, dim], { device: target }))));
    for (const [i, v] of expected.entries()) expect(found[i]).toBeCloseTo(v, 5);
    layer.dispose();
  });
});
