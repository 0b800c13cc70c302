import { afterEach, describe, expect, it } from "vitest";
import { parseOfficialTransformer } from "../../lib/config/official/transformer.js";
import {
  LtxVideoTransformer,
  latentCoordinates,
  SKIP_MODES,
  type SkipLayers,
  skipMask,
} from "../../lib/models/transformer/index.js";
import { Initializer } from "../../lib/nn/index.js";
import { mean, normal, square } from "../../lib/ops/index.js";
import { backward, device, noGrad, scope, Tensor } from "../../lib/tensor/index.js";
import { failure } from "../support/failure.js";

const config = {
  _class_name: "Transformer3DModel",
  in_channels: 4,
  out_channels: 4,
  num_layers: 3,
  num_attention_heads: 2,
  attention_head_dim: 16,
  cross_attention_dim: 32,
  caption_channels: 12,
  causal_temporal_positioning: true,
};
const target = device();
const [BATCH, GRID] = [3, [2, 3, 2] as const];
const LENGTH = 12;

const models: LtxVideoTransformer[] = [];
function build(changes: Record<string, unknown> = {}, options: LtxVideoTransformer["options"] = {}) {
  const parsed = parseOfficialTransformer({ ...config, ...changes }, "test");
  const model = new LtxVideoTransformer(parsed.options, new Initializer(target, 7), options);
  models.push(model);
  return model;
}
afterEach(() => {
  for (const model of models.splice(0)) model.dispose();
});

const random = (shape: number[], purpose: number) => normal(shape, { seed: 3, step: 0, purpose }, { device: target });
const times = (values: readonly number[], shape = [values.length]) => Tensor.from(values, shape, { device: target });

async function run(model: LtxVideoTransformer, skip: SkipLayers | null = null, t = times([0.2, 0.5, 0.9])) {
  const rope = model.ropeAt(latentCoordinates(GRID, { causal: true, frameRate: 25 }));
  const velocity = noGrad(() =>
    model.forwardTokens(random([BATCH, LENGTH, 4], 1), t, random([BATCH, 5, 12], 2), null, { rope, skip }),
  );
  const values = [...(await velocity.read())];
  const size = values.length / BATCH;
  return Array.from({ length: BATCH }, (_, row) => values.slice(row * size, (row + 1) * size));
}

function distance(a: readonly number[], b: readonly number[]): number {
  const norm = (values: readonly number[]) => Math.sqrt(values.reduce((s, v) => s + v * v, 0));
  return norm(a.map((v, i) => v - b[i])) / norm(b);
}

describe("skipped layers", () => {
  it.each(SKIP_MODES)("change only the samples that skip, and otherwise than any other mode: %s", async (mode) => {
    const model = build();
    const plain = await run(model);
    const skipped = await run(model, { mode, mask: skipMask(3, BATCH, [1], [0, 2]) });
    expect(skipped[1]).toEqual(plain[1]);
    for (const row of [0, 2]) expect(distance(skipped[row], plain[row])).toBeGreaterThan(1e-3);
    for (const other of SKIP_MODES.filter((name) => name !== mode)) {
      const [row] = await run(model, { mode: other, mask: skipMask(3, BATCH, [1], [0]) });
      expect(distance(row, skipped[0])).toBeGreaterThan(1e-3);
    }
  });

  it("leave a block out as if the model had it not", async () => {
    const [whole, short] = [build(), build({ num_layers: 2 })];
    const state = await whole.stateDict();
    const kept = [...state].filter(([key]) => !key.startsWith("transformer_blocks.1."));
    const renamed = kept.map(([key, value]) => [key.replace("blocks.2.", "blocks.1."), value] as const);
    short.loadStateDict(new Map(renamed));
    const skip: SkipLayers = { mode: "transformer_block", mask: skipMask(3, BATCH, [1], [0, 1, 2]) };
    expect(await run(whole, skip)).toEqual(await run(short));
  });

  it("leave self-attention out as if it added nothing", async () => {
    const [whole, without] = [build(), build()];
    for (const { weight, bias } of without.transformer_blocks[2].attn1.to_out) {
      for (const parameter of [weight, bias]) parameter?.write(new Float32Array(parameter.size));
    }
    const skip: SkipLayers = { mode: "residual", mask: skipMask(3, BATCH, [2], [0, 1, 2]) };
    expect(await run(whole, skip)).toEqual(await run(without));
  });

  it.each(SKIP_MODES)("have the same gradients with checkpoints: %s", async (mode) => {
    const gradients: number[][] = [];
    for (const gradientCheckpointing of [false, true]) {
      const model = build({}, { gradientCheckpointing });
      const rope = model.ropeAt(latentCoordinates(GRID, { causal: true, frameRate: 25 }));
      const skip: SkipLayers = { mode, mask: skipMask(3, BATCH, [0, 1], [2]) };
      const [x, text] = [random([BATCH, LENGTH, 4], 1), random([BATCH, 5, 12], 2)];
      backward(scope(() => mean(square(model.forwardTokens(x, times([0.2, 0.5, 0.9]), text, null, { rope, skip })))));
      const { weight } = model.transformer_blocks[0].attn1.to_v;
      gradients.push([...((await weight.grad?.read()) ?? [])]);
    }
    expect(gradients[0].some((value) => value !== 0)).toBe(true);
    expect(gradients[1]).toEqual(gradients[0]);
  });

  it("are refused where they don't fit the model or the batch", async () => {
    const model = build();
    expect(await failure(() => skipMask(3, 1, [3], [0]))).toMatchObject({
      code: "invalid_argument",
      message: "[skip layers] block 3 is not one of the model's, which are 0 to 2",
    });
    expect((await failure(() => skipMask(3, 2, [0], [2]))).message).toContain("sample 2 is not in the batch of 2");
    const skip = (mask: number[][], mode = "residual") => run(model, { mode, mask } as SkipLayers);
    expect(await failure(() => skip([[1, 1, 0]]))).toMatchObject({ code: "shape_mismatch" });
    expect((await failure(() => skip(Array(3).fill([1, 0.5, 0])))).message).toContain("0 where a block is skipped");
    expect((await failure(() => skip(Array(3).fill([1, 1, 0]), "stg"))).message).toContain("attention_values");
  });
});

describe("times", () => {
  it("of runs of tokens are those of each of their tokens", async () => {
    const model = build();
    const frames = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7];
    const tokens = frames.flatMap((t) => Array<number>(LENGTH / 2).fill(t));
    const byFrame = await run(model, null, times(frames, [BATCH, 2]));
    const byToken = await run(model, null, times(tokens, [BATCH, LENGTH]));
    for (const row of [0, 1, 2]) expect(distance(byFrame[row], byToken[row])).toBeLessThan(1e-6);
    expect(await failure(() => run(model, null, times([0.1, 0.2])))).toMatchObject({ code: "shape_mismatch" });
    expect(await failure(() => run(model, null, times(Array(15).fill(0.5))))).toMatchObject({ code: "shape_mismatch" });
  });
});

describe("latentCoordinates", () => {
  it("are the corners of the voxels, time in seconds", () => {
    const [t, y, x] = latentCoordinates([3, 1, 2], { causal: false, frameRate: 24 }).map((axis) => [...axis]);
    expect(t).toEqual([0, 0, 8 / 24, 8 / 24, 16 / 24, 16 / 24]);
    expect(y).toEqual([0, 0, 0, 0, 0, 0]);
    expect(x).toEqual([0, 32, 0, 32, 0, 32]);
  });

  it("let the first latent frame stand for one frame where time is causal", () => {
    const frames = (firstFrame?: number) => [...latentCoordinates([4, 1, 1], { causal: true, firstFrame })[0]];
    expect(frames()).toEqual([0, 1, 9, 17]);
    expect(frames(16)).toEqual([16, 17, 25, 33]);
    expect([...latentCoordinates([2, 1, 1], { causal: true, temporalFactor: 4, frameRate: 0.5 })[0]]).toEqual([0, 2]);
    expect(() => latentCoordinates([1, 1, 1], { causal: true, frameRate: 0 })).toThrow("above 0, got 0");
  });
});

describe("parseOfficialTransformer", () => {
  it("reads the official names, with the releases' values where they are left out", () => {
    const { options, causalTemporalPositioning } = parseOfficialTransformer(config, "a.safetensors");
    expect(causalTemporalPositioning).toBe(true);
    expect(options).toMatchObject({ input_channels: 4, cross_attention_dim: 32, qk_norm: "rms_norm", norm_eps: 1e-6 });
    const { causal_temporal_positioning: _, ...older } = config;
    expect(parseOfficialTransformer(older, "a.safetensors").causalTemporalPositioning).toBe(false);
  });

  it.each([
    [{ num_layers: undefined }, "num_layers: missing"],
    [{ activation_fn: "glu" }, "expected one of gelu, gelu-approximate, geglu, geglu-approximate"],
    [{ qk_norm: "rms" }, "expected one of rms_norm, layer_norm"],
    [{ positional_embedding_max_pos: [20, 2048] }, "positional_embedding_max_pos"],
  ])("says what is wrong with %o", async (changes, message) => {
    const error = await failure(() => parseOfficialTransformer({ ...config, ...changes }, "a.safetensors"));
    expect(error.code).toBe("config");
    expect(error.message).toContain("[config] a.safetensors (transformer): ");
    expect(error.message).toContain(message);
  });
});
