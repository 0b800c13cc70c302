/** What the official models' tensors tell of them, where a file says nothing else. */
import { check } from "../../errors.js";
import type { TensorFile } from "../tensor-file.js";

/** All releases have as many heads. */
const HEADS = 32;

/**
 * Whether a transformer's positions are causal, as they are since 0.9.5. The VAE beside it shows that: its encoder was the
 * first to halve the resolution with a convolution inside another module. Without one the size does: the larger
 * transformers all came later.
 */
export function causalPositions(vae: TensorFile | undefined, layers: number): boolean {
  if (!vae) return layers > 28;
  return [...vae.tensors.keys()].some((name) => /^encoder\.down_blocks\.\d+\.conv\.conv\./.test(name));
}

/**
 * The configuration of an official transformer by the shapes of its tensors.
 * @throws LtxError `checkpoint` when a tensor is missing that the sizes are read from
 */
export function inferTransformerConfig(
  path: string,
  transformer: TensorFile,
  vae: TensorFile | undefined,
): Record<string, unknown> {
  const { tensors } = transformer;
  const shapeOf = (name: string): readonly number[] => {
    const entry = tensors.get(name);
    check(entry, "checkpoint", () => {
      return `[official] ${path} says nothing of its transformer and has no "${name}" to tell its size by: is the file whole?`;
    });
    return entry.shape;
  };
  const [dim, inChannels] = shapeOf("patchify_proj.weight");
  const [, contextDim] = shapeOf("transformer_blocks.0.attn2.to_k.weight");
  const [outChannels] = shapeOf("proj_out.weight");
  const [rows] = shapeOf("transformer_blocks.0.scale_shift_table");
  const blocks = new Set([...tensors.keys()].flatMap((name) => /^transformer_blocks\.(\d+)\./.exec(name)?.[1] ?? []));
  const layers = blocks.size;
  const gap = Array.from({ length: layers }, (_, i) => i).find((i) => !blocks.has(String(i)));
  check(gap === undefined, "checkpoint", () => {
    const found = [...blocks].slice(0, 5).join(", ");
    return `[official] ${path} has ${layers} transformer blocks, but none of number ${gap} (it has ${found}): is the file whole?`;
  });
  check(dim % HEADS === 0, "checkpoint", () => {
    return `[official] ${path} says nothing of its transformer, whose width ${dim} is none of a release: a config is needed in the file's metadata`;
  });
  const qkNorm = tensors.has("transformer_blocks.0.attn1.q_norm.weight");
  return {
    _class_name: "Transformer3DModel",
    in_channels: inChannels,
    out_channels: outChannels,
    num_layers: layers,
    num_attention_heads: HEADS,
    attention_head_dim: dim / HEADS,
    cross_attention_dim: contextDim,
    caption_channels: tensors.get("caption_projection.linear_1.weight")?.shape[1] ?? null,
    attention_bias: tensors.has("transformer_blocks.0.attn1.to_q.bias"),
    adaptive_norm: rows === 4 ? "single_scale" : "single_scale_shift",
    norm_elementwise_affine: tensors.has("transformer_blocks.0.norm1.weight"),
    qk_norm: qkNorm ? (tensors.has("transformer_blocks.0.attn1.q_norm.bias") ? "layer_norm" : "rms_norm") : null,
    causal_temporal_positioning: causalPositions(vae, layers),
  };
}
