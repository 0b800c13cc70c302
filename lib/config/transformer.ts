import { z } from "zod";
import { count, layers, orNone, positive, weight } from "./fields.js";
import { section } from "./problems.js";
import { target } from "./targets.js";

/** What the feed-forward layers of the references' classes accept. */
export const FEED_FORWARD_ACTIVATIONS = ["gelu", "gelu-approximate", "geglu", "geglu-approximate"] as const;

/** Additional conditioning that the reference's other score networks use; LTX-Video takes none. */
const conditioning = section({
  signals: z.tuple([]).default([]),
  projections: z.strictObject({}, { error: () => "takes no keys" }).default({}),
  context_transformer_head: z
    .array(section({ target: target("context_head"), params: z.strictObject({}).default({}) }))
    .default([]),
});

export const transformerParams = section({
  input_spatial_size: z.union([count, z.tuple([count, count])]),
  input_channels: count,
  input_number_of_frames: count,
  is_learned_sigma: z.literal(false).default(false),
  is_class_conditional: z.literal(false).default(false),
  out_channels: orNone(count).default(null),
  num_layers: layers,
  activation_fn: z.enum(FEED_FORWARD_ACTIVATIONS).default("gelu-approximate"),
  attention_bias: z.boolean().default(true),
  attention_head_dim: count,
  num_attention_heads: count,
  attention_type: z.literal("default").default("default"),
  cross_attention_dim: count,
  caption_channels: orNone(count).default(null),
  double_self_attention: z.literal(false).default(false),
  dropout: z.literal(0).default(0),
  norm_elementwise_affine: z.boolean().default(false),
  norm_eps: positive.default(1e-6),
  norm_num_groups: count.default(32),
  num_embeds_ada_norm: orNone(count).default(1000),
  num_vector_embeds: orNone(z.null()).default(null),
  only_cross_attention: z.literal(false).default(false),
  project_to_2d_pos: z.boolean().default(true),
  upcast_attention: z.literal(false).default(false),
  use_linear_projection: z.literal(false).default(false),
  qk_norm: orNone(z.enum(["rms_norm", "layer_norm"])).default("rms_norm"),
  standardization_norm: z.enum(["rms_norm", "layer_norm"]).default("rms_norm"),
  positional_embedding_type: z.enum(["rope", "absolute"]).default("rope"),
  positional_embedding_theta: z.number().gt(1).default(10000),
  positional_embedding_max_pos: z.tuple([count, count, count]).default([20, 2048, 2048]),
  timestep_scale_multiplier: weight.default(1000),
  adaptive_norm: z.enum(["single_scale_shift", "single_scale", "none"]).default("single_scale_shift"),
  conditioning: conditioning.optional(),
});

/**
 * The score network, in the reference's names. `input_spatial_size` (one side, or [height, width]) and
 * `input_number_of_frames` are the latent's; the inner width is `num_attention_heads * attention_head_dim`;
 * `out_channels` is `input_channels` when left out. Options of the reference that its LTX-Video example never turns on
 * accept only the value that it has there.
 */
export type TransformerConfig = Omit<z.output<typeof transformerParams>, "conditioning" | "out_channels"> & {
  out_channels: number;
};

export function resolveTransformer({
  conditioning: _,
  ...params
}: z.output<typeof transformerParams>): TransformerConfig {
  return { ...params, out_channels: params.out_channels ?? params.input_channels };
}

export const transformerComponent = section({ target: target("score_network"), params: transformerParams });
