import { show } from "../../arguments.js";
import { check } from "../../errors.js";
import type { Parameter } from "../../nn/index.js";
import type { Tensor } from "../../tensor/index.js";

/** What the transformer reads of prompts. */
export interface TextEmbedding {
  /** (B, L, width) f32. L is that of {@link paddedLength}: what every prompt pads would take most of the work. */
  embeddings: Tensor;
  /** (B, L) f32: 1 for tokens that count, 0 for padding. */
  mask: Tensor;
}

/** Queues the encoding of prompts that are ready for it; may be called more than once. */
export type PreparedPrompts = () => TextEmbedding;

/** Turns prompts into features of their tokens. The empty prompt stands for "unconditional". */
export interface TextEncoder {
  /** Features of each token. */
  readonly width: number;
  /** Longer prompts are cut to so many tokens. */
  readonly maxLength: number;
  /** Whether it learns together with the transformer; a frozen one's features are computed once and kept. */
  readonly trainable: boolean;
  /** Does what has to be waited for: the same prompts give the same values. @throws {LtxError} `aborted` and others */
  prepare(prompts: readonly string[], signal?: AbortSignal): Promise<PreparedPrompts>;
  /** What of a prompt is beyond {@link maxLength}, and not read; empty for all but long ones. */
  cutOff(prompt: string): string;
  /** Those that an optimizer updates; none when frozen. */
  parameters(): Parameter[];
  dispose(): void;
}

/** Lengths of batches are multiples of it, so that few shapes occur. */
const LENGTH_STEP = 8;

/**
 * The tokens that a batch is padded to: enough for its longest prompt. The reference pads to `maxLength`; tokens that the
 * mask drops get probability 0 there, so what is left out changes nothing.
 */
export function paddedLength(counts: readonly number[], maxLength: number): number {
  return Math.min(maxLength, Math.ceil(Math.max(1, ...counts) / LENGTH_STEP) * LENGTH_STEP);
}

/** @throws {LtxError} `invalid_argument` for anything but a list of strings; `op` stands in the message. */
export function checkPrompts(op: string, prompts: readonly string[]): void {
  const fits = Array.isArray(prompts) && prompts.length > 0 && prompts.every((prompt) => typeof prompt === "string");
  check(fits, "invalid_argument", () => {
    return `[${op}] expects a list of prompts (strings), got ${JSON.stringify(prompts)}`;
  });
}

/** What is told of a long prompt. */
const SHOWN = 60;

/** What the user should know of prompts that an encoder does not read whole. */
export function cutNotices(encoder: TextEncoder, prompts: readonly string[]): string[] {
  const notices: string[] = [];
  for (const prompt of new Set(prompts)) {
    const cut = encoder.cutOff(prompt);
    check(typeof cut === "string", "invalid_argument", () => {
      return `[prompt] the encoder's cutOff gave ${show(cut)}, expected a text`;
    });
    if (cut === "") continue;
    const shown = (text: string) => JSON.stringify(text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : text);
    notices.push(
      `the model reads ${encoder.maxLength} tokens of a prompt: of ${shown(prompt)} it does not see the end, ` +
        `${cut.length} ${cut.length === 1 ? "character" : "characters"} from ${shown(cut)} on`,
    );
  }
  return notices;
}
