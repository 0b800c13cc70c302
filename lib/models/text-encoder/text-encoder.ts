import { check } from "../../errors.js";
import type { Parameter } from "../../nn/index.js";
import type { Tensor } from "../../tensor/index.js";

/** What the transformer reads of prompts. */
export interface TextEmbedding {
  /** (B, L, width) f32. */
  embeddings: Tensor;
  /** (B, L) f32: 1 for tokens that count, 0 for padding. */
  mask: Tensor;
}

/** Queues the encoding of prompts that are ready for it; may be called more than once. */
export type PreparedPrompts = () => TextEmbedding;

/** Turns prompts into features of a fixed number of tokens. The empty prompt stands for "unconditional". */
export interface TextEncoder {
  /** Features of each token. */
  readonly width: number;
  /** Tokens of every prompt, after padding or truncation. */
  readonly maxLength: number;
  /** Whether it learns together with the transformer; a frozen one's features are computed once and kept. */
  readonly trainable: boolean;
  /** Does what has to be waited for: the same prompts give the same values. @throws {LtxError} */
  prepare(prompts: readonly string[]): Promise<PreparedPrompts>;
  /** Those that an optimizer updates; none when frozen. */
  parameters(): Parameter[];
  dispose(): void;
}

/** @throws {LtxError} `invalid_argument` for anything but a list of strings; `op` stands in the message. */
export function checkPrompts(op: string, prompts: readonly string[]): void {
  const fits = Array.isArray(prompts) && prompts.length > 0 && prompts.every((prompt) => typeof prompt === "string");
  check(fits, "invalid_argument", () => {
    return `[${op}] expects a list of prompts (strings), got ${JSON.stringify(prompts)}`;
  });
}
