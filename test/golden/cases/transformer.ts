import { parseTransformerParams } from "../../../lib/config/index.js";
import {
  absolutePositions,
  gridPositions,
  LtxVideoTransformer,
  type RopeOptions,
  ropeTables,
} from "../../../lib/models/transformer/index.js";
import { rope, toChannelsFirst, toChannelsLast } from "../../../lib/ops/index.js";
import { backward, noGrad, Tensor } from "../../../lib/tensor/index.js";
import { constant, evaluate, init, leaf } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";

/** The transformer that a reference configuration describes, with the file's parameters behind `prefix`. */
export function loadTransformer(fixture: Fixture, params: Record<string, unknown>, prefix = ""): LtxVideoTransformer {
  const { loss: _, ...own } = params;
  const model = new LtxVideoTransformer(parseTransformerParams(own, fixture.path), init());
  model.loadStateDict(fixture.state(prefix));
  return model;
}

/** The velocity; where the file has a cotangent, also the gradients of their product's sum. */
export const transformer: GoldenCase = async (fixture) => {
  const model = loadTransformer(fixture, fixture.config);
  const mask = fixture.has("input/text_attention_mask") ? constant(fixture, "input/text_attention_mask") : null;
  const t = constant(fixture, "input/timestep");
  const positions = positionTable(fixture, model);
  const result = await evaluate(model, () => {
    const x = leaf(fixture, "input/x");
    const text_embeddings = leaf(fixture, "input/text_embeddings");
    const forward = () => toChannelsFirst(model.forward(toChannelsLast(x), t, text_embeddings, mask));
    if (!fixture.has("input/cotangent")) return { output: { velocity: noGrad(forward) } };
    const velocity = forward();
    backward(velocity, constant(fixture, "input/cotangent"));
    return { output: { velocity }, input: { x, text_embeddings } };
  });
  return new Map([...positions, ...result]);
};

function positionTable(fixture: Fixture, { to_2d_proj: projection }: LtxVideoTransformer): [string, Float32Array][] {
  if (!projection) return [];
  const [, , frames, height, width] = fixture.shape("input/x");
  return [["output/pos_embed_3d", absolutePositions([frames, height, width], projection.weight.shape[1])]];
}

/** The rotary tables of one grid, and q turned by them. */
export const ropeTurn: GoldenCase = async (fixture) => {
  const { config } = fixture;
  const options: RopeOptions = {
    dim: config.inner_dim,
    theta: config.positional_embedding_theta,
    maxPos: config.positional_embedding_max_pos,
    spacing: config.spacing,
  };
  const { cos, sin } = ropeTables(gridPositions([config.num_frames, config.height, config.width]), options);
  const turned = await evaluate(null, () => {
    const shape = [cos.length / options.dim, options.dim];
    const q_rotated = rope(constant(fixture, "input/q"), Tensor.from(cos, shape), Tensor.from(sin, shape));
    return { output: { q_rotated } };
  });
  return new Map([["output/cos", cos], ["output/sin", sin], ...turned]);
};
