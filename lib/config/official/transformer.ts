/** The configuration of an official transformer, as its checkpoint's metadata holds it. */
import { z } from "zod";
import { count, layers, orNone, positive, weight } from "../fields.js";
import { FEED_FORWARD_ACTIVATIONS } from "../transformer.js";
import { parseOfficial } from "./parse.js";

/** Options that no release turns on accept only the value that they have there. */
const only = <T extends boolean | number | string | null>(value: T) => z.literal(value).default(value as never);

/** Loose: what later releases add beside these keys is for others to read. */
const officialTransformer = z.looseObject({
  in_channels: count,
  out_channels: orNone(count).default(null),
  num_layers: layers,
  num_attention_heads: count,
  attention_head_dim: count,
  cross_attention_dim: orNone(count).default(null),
  caption_channels: orNone(count).default(null),
  activation_fn: z.enum(FEED_FORWARD_ACTIVATIONS).default("gelu-approximate"),
  attention_bias: z.boolean().default(true),
  attention_type: only("default"),
  double_self_attention: only(false),
  dropout: only(0),
  norm_elementwise_affine: z.boolean().default(false),
  norm_eps: positive.default(1e-6),
  num_vector_embeds: z.null().default(null),
  only_cross_attention: only(false),
  upcast_attention: only(false),
  use_linear_projection: only(false),
  adaptive_norm: z.enum(["single_scale_shift", "single_scale", "none"]).default("single_scale_shift"),
  standardization_norm: z.enum(["rms_norm", "layer_norm"]).default("rms_norm"),
  qk_norm: orNone(z.enum(["rms_norm", "layer_norm"])).default("rms_norm"),
  positional_embedding_type: only("rope"),
  positional_embedding_theta: z.number().gt(1).default(10000),
  positional_embedding_max_pos: z.tuple([count, count, count]).default([20, 2048, 2048]),
  timestep_scale_multiplier: weight.default(1000),
  causal_temporal_positioning: z.boolean().default(false),
});

/**
 * An official transformer: what `LtxVideoTransformer` is built from, and whether the first latent frame stands for one
 * frame alone in its positions (see `latentCoordinates`).
 */
export type OfficialTransformerConfig = ReturnType<typeof parseOfficialTransformer>;

/**
 * What keys a file leaves out have the value of all releases, but for those that give the model its size.
 * @param source stands in the messages
 * @throws LtxError `config`
 */
export function parseOfficialTransformer(value: unknown, source: string) {
  const { in_channels, out_channels, cross_attention_dim, causal_temporal_positioning, ...own } = parseOfficial(
    officialTransformer,
    value,
    `${source} (transformer)`,
  );
  return {
    options: {
      input_channels: in_channels,
      out_channels: out_channels ?? in_channels,
      num_layers: own.num_layers,
      num_attention_heads: own.num_attention_heads,
      attention_head_dim: own.attention_head_dim,
      cross_attention_dim: cross_attention_dim ?? own.num_attention_heads * own.attention_head_dim,
      caption_channels: own.caption_channels,
      activation_fn: own.activation_fn,
      attention_bias: own.attention_bias,
      norm_elementwise_affine: own.norm_elementwise_affine,
      norm_eps: own.norm_eps,
      qk_norm: own.qk_norm,
      standardization_norm: own.standardization_norm,
      adaptive_norm: own.adaptive_norm,
      positional_embedding_type: own.positional_embedding_type,
      positional_embedding_theta: own.positional_embedding_theta,
      positional_embedding_max_pos: own.positional_embedding_max_pos,
      project_to_2d_pos: true,
      timestep_scale_multiplier: own.timestep_scale_multiplier,
    },
    causalTemporalPositioning: causal_temporal_positioning,
  };
}
