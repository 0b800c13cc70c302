import { parseOfficialTransformer } from "../../../lib/config/official/transformer.js";
import { check } from "../../../lib/errors.js";
import {
  LtxVideoTransformer,
  latentCoordinates,
  type Positions,
  ropeTables,
  type SkipLayers,
  type SkipMode,
} from "../../../lib/models/transformer/index.js";
import { spaceToDepth, toChannelsLast } from "../../../lib/ops/index.js";
import { backward, noGrad, type Tensor } from "../../../lib/tensor/index.js";
import { constant, evaluate, init, leaf } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";

/** The reference's skip strategies. Its `Residual` computes what the model does without it; ours skips, so none is taken. */
const SKIP_MODE: Record<string, SkipMode | null> = {
  none: null,
  AttentionSkip: "attention_skip",
  AttentionValues: "attention_values",
  Residual: null,
  TransformerBlock: "transformer_block",
};

/** An official transformer with fresh values, as `config` describes it. */
export function buildOfficialTransformer(config: unknown, source: string): LtxVideoTransformer {
  return new LtxVideoTransformer(parseOfficialTransformer(config, source).options, init());
}

/** The velocity of the fixture's tokens; their positions are the same for all samples of a batch. */
export function sampleTokens(
  fixture: Fixture,
  model: LtxVideoTransformer,
  inputs = { x: constant(fixture, "input/hidden_states"), text: constant(fixture, "input/encoder_hidden_states") },
  skip: SkipLayers | null = null,
): Tensor {
  const t = constant(fixture, "input/timestep");
  const mask = fixture.has("input/encoder_attention_mask") ? constant(fixture, "input/encoder_attention_mask") : null;
  const [positions, ...others] = positionsOf(fixture, "input/indices_grid");
  check(
    others.every((other) => String(other) === String(positions)),
    "unavailable",
    () => {
      return `[golden] ${fixture.name}: samples of one batch have different positions`;
    },
  );
  return model.forwardTokens(inputs.x, t, inputs.text, mask, { rope: model.ropeAt(positions), skip });
}

export const officialTransformer: GoldenCase = (fixture) => {
  const { config } = fixture;
  const prefix = config.param_prefix ?? "";
  const model = buildOfficialTransformer(config.transformer, fixture.path);
  model.loadStateDict(fixture.state(prefix));
  return evaluate(
    model,
    () => {
      if (fixture.has("input/cotangent_sample")) return withGradients(fixture, model);
      if (!fixture.has("input/skip_layer_mask"))
        return { output: { sample: noGrad(() => sampleTokens(fixture, model)) } };
      const strategies = fixture.names("output/sample_").map((name) => name.slice("output/sample_".length));
      const samples = strategies.map((name) => [
        `sample_${name}`,
        noGrad(() => sampleTokens(fixture, model, undefined, skipLayers(fixture, name))),
      ]);
      return { output: Object.fromEntries(samples) };
    },
    prefix,
  );
};

function withGradients(fixture: Fixture, model: LtxVideoTransformer) {
  const inputs = { x: leaf(fixture, "input/hidden_states"), text: leaf(fixture, "input/encoder_hidden_states") };
  const sample = sampleTokens(fixture, model, inputs);
  backward(sample, constant(fixture, "input/cotangent_sample"));
  return { output: { sample }, input: { hidden_states: inputs.x, encoder_hidden_states: inputs.text } };
}

function skipLayers(fixture: Fixture, strategy: string): SkipLayers | null {
  check(Object.hasOwn(SKIP_MODE, strategy), "unavailable", () => `[golden] unknown skip strategy ${strategy}`);
  const mode = SKIP_MODE[strategy];
  const [layers, batch] = fixture.shape("input/skip_layer_mask");
  const mask = fixture.data("input/skip_layer_mask");
  return (
    mode && { mode, mask: Array.from({ length: layers }, (_, i) => [...mask.subarray(i * batch, (i + 1) * batch)]) }
  );
}

/** (B,3,L) as positions of each sample. */
function positionsOf(fixture: Fixture, name: string): Positions[] {
  const [batch, axes, length] = fixture.shape(name);
  const values = fixture.data(name);
  return Array.from({ length: batch }, (_, b) => {
    const axis = (i: number) => values.subarray((b * axes + i) * length, (b * axes + i + 1) * length);
    return [axis(0), axis(1), axis(2)] as const;
  });
}

/** Rotary tables of several widths and grids. */
export const officialRope: GoldenCase = async (fixture) => {
  const result = new Map<string, Float32Array>();
  for (const { name, inner_dim: dim, theta, max_pos: maxPos } of fixture.config.cases) {
    const samples = positionsOf(fixture, `input/indices_grid_${name}`).map((p) =>
      ropeTables(p, { dim, theta, maxPos, angles: "f32" }),
    );
    for (const table of ["cos", "sin"] as const) {
      result.set(`output/${table}_${name}`, joined(samples.map((sample) => sample[table])));
    }
  }
  return result;
};

/** Latents as tokens, and where these are: in the latent, in the video, and in seconds. */
export const patchifier: GoldenCase = async (fixture) => {
  const result = new Map<string, Float32Array>();
  for (const { index, patch_size: patch, shape, frame_rate: frameRate, scale_factors: factors } of fixture.config
    .cases) {
    const [batch, , frames, height, width] = shape;
    const grid = [frames, height / patch, width / patch] as const;
    const put = (name: string, options: Parameters<typeof latentCoordinates>[1]) => {
      const [t, y, x] = latentCoordinates(grid, options);
      result.set(`output/${name}`, joined(Array(batch).fill(Float32Array.of(...t, ...y, ...x))));
    };
    put(`latent_coords_${index}`, { temporalFactor: 1, spatialFactor: patch, causal: false });
    for (const [kind, causal] of [
      ["causal", true],
      ["plain", false],
    ] as const) {
      const options = { temporalFactor: factors[0], spatialFactor: factors[1] * patch, causal };
      put(`pixel_coords_${index}_${kind}`, options);
      put(`fractional_coords_${index}_${kind}`, { ...options, frameRate });
    }
    const tokens = await evaluate(null, () => {
      const latents = toChannelsLast(constant(fixture, `input/latents_${index}`));
      return { output: { [`tokens_${index}`]: spaceToDepth(latents, { stride: [1, patch, patch] }) } };
    });
    for (const [name, values] of tokens) result.set(name, values);
  }
  return result;
};

function joined(parts: readonly Float32Array[]): Float32Array {
  return Float32Array.from(parts.flatMap((part) => [...part]));
}
