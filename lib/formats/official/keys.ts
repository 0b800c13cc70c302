/** The names that the official code and diffusers give to one and the same tensor. */
import { LtxError } from "../../errors.js";

export type ModuleKind = "transformer" | "vae" | "upsampler";
export type Spelling = "official" | "diffusers";

type Pairs = readonly (readonly [official: string, diffusers: string])[];

/** The first segments of names outside the blocks. */
const TRANSFORMER_ROOTS: Pairs = [
  ["patchify_proj.", "proj_in."],
  ["adaln_single.", "time_embed."],
];
/** Anywhere in a name. */
const TRANSFORMER_PARTS: Pairs = [
  [".q_norm.", ".norm_q."],
  [".k_norm.", ".norm_k."],
];

/** The name of a transformer's tensor in the other spelling. */
export function renameTransformerKey(key: string, to: Spelling): string {
  const [from, into] = to === "diffusers" ? [0, 1] : [1, 0];
  const root = TRANSFORMER_ROOTS.find((pair) => key.startsWith(pair[from]));
  const named = root ? `${root[into]}${key.slice(root[from].length)}` : key;
  return TRANSFORMER_PARTS.reduce((name, pair) => name.replace(pair[from], pair[into]), named);
}

/** Whether a transformer's tensor is one of those that files of 8-bit weights have as such. */
export const isFp8Weight = (key: string, shape: readonly number[]): boolean =>
  shape.length === 2 && /^transformer_blocks\.\d+\.(attn1|attn2|ff)\./.test(key);

/** What stands before the official names of a LoRA's tensors, and before those of diffusers. */
export const LORA_PREFIX: Record<Spelling, string> = { official: "diffusion_model.", diffusers: "transformer." };

const words = (text: string): ReadonlySet<string> => new Set(text.split(" "));
/** What names of each model are made of, besides numbers. */
const VOCABULARY: Record<ModuleKind, ReadonlySet<string>> = {
  transformer: words(
    "patchify_proj proj_out adaln_single emb timestep_embedder linear linear_1 linear_2 caption_projection " +
      "transformer_blocks attn1 attn2 to_q to_k to_v to_out q_norm k_norm ff net proj norm1 norm2 norm3 " +
      "scale_shift_table weight bias",
  ),
  vae: words(
    "encoder decoder down_blocks up_blocks res_blocks conv conv1 conv2 conv_in conv_out conv_shortcut conv_norm_out " +
      "norm norm1 norm2 norm3 per_channel_scale1 per_channel_scale2 scale_shift_table last_scale_shift_table " +
      "time_embedder last_time_embedder timestep_embedder linear_1 linear_2 timestep_scale_multiplier quant_conv " +
      "attention_blocks to_q to_k to_v to_out q_norm k_norm " +
      "post_quant_conv latent_norm_out running_mean running_var num_batches_tracked per_channel_statistics channel " +
      "mean-of-means mean-of-stds mean-of-stds_over_std-of-means std-of-means weight bias",
  ),
  upsampler: words(
    "initial_conv initial_norm res_blocks post_upsample_res_blocks upsampler final_conv conv conv1 conv2 norm1 norm2 " +
      "weight bias",
  ),
};

/** Whether an official name can be that of a tensor of such a model. */
export const isModelKey = (kind: ModuleKind, key: string): boolean =>
  key.split(".").every((word) => VOCABULARY[kind].has(word) || /^\d+$/.test(word));

/** Of a VAE, outside its blocks. */
const VAE_ROOTS: Pairs = [
  ["decoder.last_time_embedder.", "decoder.time_embedder."],
  ["decoder.last_scale_shift_table", "decoder.scale_shift_table"],
  ["per_channel_statistics.mean-of-means", "latents_mean"],
  ["per_channel_statistics.std-of-means", "latents_std"],
];
/** Of the names inside a block. */
const VAE_PARTS: Pairs = [
  ["res_blocks.", "resnets."],
  ["conv_shortcut.", "conv_shortcut.conv."],
  ["norm3.norm.", "norm3."],
];
/** Statistics that nothing reads; diffusers has no name for them. */
const UNUSED_STATISTICS = /^per_channel_statistics\.(channel|mean-of-stds|mean-of-stds_over_std-of-means)$/;

/** Whether a VAE's tensor is one that files carry and no model reads. */
export const isUnusedStatistic = (key: string): boolean => UNUSED_STATISTICS.test(key);

const OFFICIAL_BLOCK = /^(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)\.(.+)$/;
const DIFFUSERS_BLOCK =
  /^(encoder|decoder)\.(mid_block|(?:down|up)_blocks\.\d+(?:\.(?:downsamplers\.0|upsamplers\.0|conv_in|conv_out))?)\.(.+)$/;

/**
 * The names of a VAE's tensors in the other spelling. The official code numbers all blocks; diffusers puts each stage's
 * resampling and change of width under the stage's blocks, and has one block in the middle.
 * @returns the new name by the old one, without those that the other spelling has no name for
 * @throws LtxError `checkpoint` for blocks that diffusers does not have
 */
export function vaeKeys(keys: Iterable<string>, to: Spelling): Map<string, string> {
  const names = [...keys];
  const blocks = to === "diffusers" ? diffusersBlocks(names) : officialBlocks(names);
  const [from, into] = to === "diffusers" ? [0, 1] : [1, 0];
  const pattern = to === "diffusers" ? OFFICIAL_BLOCK : DIFFUSERS_BLOCK;
  const result = new Map<string, string>();
  for (const name of names) {
    const match = pattern.exec(name);
    if (match) {
      const [, half, block, rest] = match;
      const part = VAE_PARTS.reduce((text, pair) => swap(text, pair[from], pair[into]), rest);
      result.set(name, `${blocks.get(`${half}.${block}`)}.${part}`);
    } else if (to === "official" || !isUnusedStatistic(name)) {
      const root = VAE_ROOTS.find((pair) => name.startsWith(pair[from]));
      result.set(name, root ? `${root[into]}${name.slice(root[from].length)}` : name);
    }
  }
  return result;
}

/** Replaces a whole run of segments, once. */
function swap(text: string, from: string, to: string): string {
  const at = `.${text}`.indexOf(`.${from}`);
  return at < 0 ? text : `${text.slice(0, at)}${to}${text.slice(at + from.length)}`;
}

/** Diffusers' name for every official block, as `encoder.down_blocks.4` to `encoder.down_blocks.1.downsamplers.0`. */
function diffusersBlocks(names: readonly string[]): Map<string, string> {
  const result = new Map<string, string>();
  for (const half of ["encoder.down_blocks", "decoder.up_blocks"] as const) {
    const kinds = blockKinds(names, half);
    const encoder = half === "encoder.down_blocks";
    const middle = encoder ? kinds.length - 1 : 0;
    let stage = encoder ? -1 : 0;
    for (const [i, kind] of kinds.entries()) {
      if (i === middle && kind !== "stage") {
        throw new LtxError(
          "checkpoint",
          `[convert] diffusers needs a res_x in the middle, found another in ${half}.${i}`,
        );
      }
      if (encoder && kind === "stage") stage++;
      const inStage = encoder
        ? { stage: "", resample: ".downsamplers.0", width: ".conv_out" }
        : { stage: "", resample: ".upsamplers.0", width: ".conv_in" };
      const name = i === middle ? `${half.split(".")[0]}.mid_block` : `${half}.${stage}${inStage[kind]}`;
      result.set(`${half}.${i}`, name);
      if (!encoder && kind === "stage" && i !== middle) stage++;
    }
  }
  if (new Set(result.values()).size < result.size) {
    throw new LtxError("checkpoint", "[convert] diffusers has no VAE with two resampling blocks in one stage");
  }
  return result;
}

type BlockKind = "stage" | "resample" | "width";

/** What each official block of one half is: res_x, compress_*, or res_x_y. */
function blockKinds(names: readonly string[], half: string): BlockKind[] {
  const kinds: BlockKind[] = [];
  for (const name of names) {
    const match = OFFICIAL_BLOCK.exec(name);
    if (match?.[1] !== half) continue;
    const kind = /^(res_blocks|time_embedder)\./.test(match[3]) ? "stage" : kindOfOne(match[3], name);
    kinds[Number(match[2])] = kind;
  }
  return kinds;
}

function kindOfOne(rest: string, name: string): BlockKind {
  if (/^conv\./.test(rest)) return "resample";
  if (/^(conv1|conv2|conv_shortcut|norm\d|per_channel_scale\d)\b/.test(rest)) return "width";
  throw new LtxError("checkpoint", `[convert] diffusers has no form for the VAE block of "${name}"`);
}

/** The official name for every block of diffusers. */
function officialBlocks(names: readonly string[]): Map<string, string> {
  const found = new Set(
    names.flatMap((name) => {
      const match = DIFFUSERS_BLOCK.exec(name);
      return match ? [`${match[1]}.${match[2]}`] : [];
    }),
  );
  const result = new Map<string, string>();
  const number = (half: string, ordered: readonly string[]) => {
    for (const [i, block] of ordered.filter((name) => found.has(name)).entries()) result.set(block, `${half}.${i}`);
  };
  const stages = Array.from({ length: found.size }, (_, i) => i);
  number("encoder.down_blocks", [
    ...stages.flatMap((i) => ["", ".downsamplers.0", ".conv_out"].map((part) => `encoder.down_blocks.${i}${part}`)),
    "encoder.mid_block",
  ]);
  number("decoder.up_blocks", [
    "decoder.mid_block",
    ...stages.flatMap((i) => [".conv_in", ".upsamplers.0", ""].map((part) => `decoder.up_blocks.${i}${part}`)),
  ]);
  return result;
}
