/** The texts, or their features, that a request brings, checked. */
import { show } from "../../arguments.js";
import type { TextEmbedding } from "../../models/text-encoder/index.js";
import type { TransformerOptions } from "../../models/transformer/index.js";
import type { Tensor } from "../../tensor/index.js";
import { refuse } from "./check-media.js";

export interface PromptOptions {
  /** Texts, a video for each. */
  prompt?: string | readonly string[];
  /** What guidance leads away from: one for all, or one for each prompt. */
  negativePrompt?: string | readonly string[];
  /** Features (B, L, width) f32 of prompts instead of texts, with masks (B, L) f32: 1 for tokens that count. */
  promptEmbeds?: Tensor;
  promptAttentionMask?: Tensor;
  negativePromptEmbeds?: Tensor;
  negativePromptAttentionMask?: Tensor;
  /** How many videos for each prompt. */
  numImagesPerPrompt?: number;
}

/** What there is to draw: texts for every sample, or features of each prompt. */
export interface CheckedPrompts {
  prompts: readonly string[] | null;
  negativePrompts: readonly string[];
  embeds: { positive: TextEmbedding; negative: TextEmbedding | null } | null;
  batch: number;
  repeats: number;
}

/** More than fit into any memory; a program's mistake must not fill it with texts. */
const MAX_SAMPLES = 4096;

/** @throws {LtxError} `invalid_argument` */
export function checkPrompts(options: PromptOptions, transformer: TransformerOptions): CheckedPrompts {
  const { prompt, negativePrompt, promptEmbeds, numImagesPerPrompt: repeats = 1 } = options;
  if (!(Number.isSafeInteger(repeats) && repeats >= 1)) {
    refuse(`numImagesPerPrompt ${repeats}: needs a whole number from 1`);
  }
  const given = promptEmbeds ? promptEmbeds.shape[0] : Array.isArray(prompt) ? prompt.length : 1;
  if (given * repeats > MAX_SAMPLES) {
    refuse(`${given} prompts with numImagesPerPrompt ${repeats}: at most ${MAX_SAMPLES} videos can be drawn at once`);
  }
  if (promptEmbeds) {
    if (prompt !== undefined || negativePrompt !== undefined) {
      refuse("prompt and negativePrompt exclude promptEmbeds: give texts or features");
    }
    const embeds = checkEmbeds(options, transformer.caption_channels ?? transformer.cross_attention_dim);
    return { prompts: null, negativePrompts: [], embeds, repeats, batch: promptEmbeds.shape[0] * repeats };
  }
  const prompts = typeof prompt === "string" ? [prompt] : prompt;
  if (!areTexts(prompts)) {
    refuse(`prompt must be a text or a list of them, or give promptEmbeds; got ${show(prompt)}`);
  }
  const against = negativePrompt ?? "";
  const negative = typeof against === "string" ? prompts.map(() => against) : against;
  if (!areTexts(negative) || negative.length !== prompts.length) {
    refuse(`negativePrompt must be a text, or one for each of ${prompts.length} prompts; got ${show(against)}`);
  }
  const each = (list: readonly string[]) => list.flatMap((text) => Array<string>(repeats).fill(text.trim()));
  return {
    prompts: each(prompts),
    negativePrompts: each(negative),
    embeds: null,
    repeats,
    batch: prompts.length * repeats,
  };
}

const areTexts = (list: unknown): list is readonly string[] =>
  Array.isArray(list) && list.length > 0 && list.every((entry) => typeof entry === "string");

function checkEmbeds(options: PromptOptions, width: number): NonNullable<CheckedPrompts["embeds"]> {
  const { promptEmbeds, promptAttentionMask, negativePromptEmbeds, negativePromptAttentionMask } = options;
  const pair = (name: string, embeddings: Tensor | undefined, mask: Tensor | undefined): TextEmbedding => {
    const shape = embeddings?.shape ?? [];
    if (!embeddings || shape.length !== 3 || shape[2] !== width || embeddings.dtype !== "f32") {
      refuse(`${name}Embeds must be f32 [batch, tokens, ${width}], got ${embeddings}`);
    }
    if (!mask || mask.shape.join() !== shape.slice(0, 2).join() || mask.dtype !== "f32") {
      refuse(`${name}AttentionMask must be f32 [${shape.slice(0, 2)}], got ${mask}`);
    }
    return { embeddings, mask };
  };
  const positive = pair("prompt", promptEmbeds, promptAttentionMask);
  if (!negativePromptEmbeds) return { positive, negative: null };
  const negative = pair("negativePrompt", negativePromptEmbeds, negativePromptAttentionMask);
  const [wanted, found] = [positive.embeddings.shape, negative.embeddings.shape];
  if (wanted.join() !== found.join())
    refuse(`negativePromptEmbeds must be [${wanted}] as promptEmbeds, got [${found}]`);
  return { positive, negative };
}
