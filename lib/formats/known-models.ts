/** Models of other families, told from their tensors' names, so that a refusal can say what the file is. */
import type { TensorFile } from "./tensor-file.js";

const T5 =
  /^(text_encoders\.t5xxl\.(transformer\.)?)?encoder\.block\.\d+\.layer\.0\.SelfAttention\.q\.(lora_A\.)?weight$/;
const PREFIX = /^(model\.)?diffusion_model\./;

/** What has tensors of these names; the first that fits. */
const FAMILIES: readonly (readonly [name: RegExp, what: string])[] = [
  [T5, "a T5 text encoder, not a video model: give it as the text encoder"],
  [/^(text_model|transformer\.text_model)\.encoder\.layers\.0\./, "a CLIP text encoder"],
  [/^(model\.|language_model\.)+layers\.0\.self_attn\.q_proj\.weight$/, "a language model"],
  [/^double_blocks\.0\.img_attn\.qkv\.weight$/, "a FLUX or HunyuanVideo model"],
  [/^blocks\.0\.cross_attn\.norm_k\.weight$|^blocks\.0\.self_attn\.norm_k\.weight$/, "a Wan model"],
  [
    /^joint_blocks\.0\.|^input_blocks\.0\.0\.|^down_blocks\.0\.attentions\.0\.transformer_blocks\./,
    "a Stable Diffusion model",
  ],
  [/^blocks\.0\.(attn|attn1)\.qkv_x\./, "a Mochi model"],
  [/^features\.0\.weight$/, "a network of torchvision, such as VGG16"],
];

/**
 * Of LTX-2's transformer those parts that LTX-Video's doesn't have: for sound, to join that with the picture, and what its
 * later versions add to attention and prompts.
 */
const NEWER =
  /^(transformer\.)?(audio_(adaln_single|patchify_proj|proj_out|caption_projection)|av_ca_\w+|prompt_adaln\w*|transformer_blocks\.\d+\.(audio_\w+|\w+_to_audio\w*|attn[12]\.to_gate_logits))\./;

type Tensors = Pick<TensorFile, "tensors" | "metadata">;

/** What to say of a model of LTX-Video's successors; undefined for all others. */
export function newerModel({ tensors, metadata }: Tensors): string | undefined {
  const { model_version: version } = metadata;
  const newer = version !== undefined && /^v?[2-9]/.test(version);
  if (!newer && ![...tensors.keys()].some((name) => NEWER.test(name.replace(PREFIX, "")))) return undefined;
  return `LTX-2${newer ? ` (version ${version.slice(0, 20)})` : ""}, which makes video with sound: this package runs LTX-Video 0.9.0 to 0.9.8`;
}

/** What to say of a file in which none of LTX-Video's models was found; undefined when nobody knows it. */
export function otherModel({ tensors }: Pick<Tensors, "tensors">): string | undefined {
  const names = [...tensors.keys()].map((name) => name.replace(PREFIX, ""));
  for (const [family, what] of FAMILIES) if (names.some((name) => family.test(name))) return what;
  return undefined;
}
