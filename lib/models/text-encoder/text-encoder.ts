import type { Parameter } from "../../nn/index.js";
import type { Tensor } from "../../tensor/index.js";

/** What the transformer reads of prompts. */
export interface TextEmbedding {
  /** (B, L, width) f32. */
  embeddings: Tensor;
  /** (B, L) f32: 1 for tokens that count, 0 for padding. */
  mask: Tensor;
}

/** Turns prompts into features of a fixed number of tokens. The empty prompt stands for "unconditional". */
export interface TextEncoder {
  /** Features of each token. */
  readonly width: number;
  /** Tokens of every prompt, after padding or truncation. */
  readonly maxLength: number;
  /** Whether it learns together with the transformer; a frozen one's embeddings may be cached. */
  readonly trainable: boolean;
  /** Queues the encoding; the same prompts give the same values. */
  encode(prompts: readonly string[]): TextEmbedding;
  /** Those that an optimizer updates; none when frozen. */
  parameters(): Parameter[];
  dispose(): void;
}
