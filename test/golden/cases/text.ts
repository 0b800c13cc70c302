import { check } from "../../../lib/errors.js";
import { T5Encoder, type T5EncoderConfig, T5Tokenizer } from "../../../lib/models/text-encoder/index.js";
import { evaluate, init } from "../support/evaluate.js";
import type { Fixture, GoldenCase } from "../support/fixture.js";

/** The rows of a matrix in the file as numbers. */
function rows(fixture: Fixture, name: string): number[][] {
  const [count, width] = fixture.shape(name);
  const values = fixture.data(name);
  return Array.from({ length: count }, (_, i) => Array.from(values.subarray(i * width, (i + 1) * width)));
}

/** The last hidden state of token ids under their mask. */
export const t5Encoder: GoldenCase = (fixture) => {
  const { t5 } = fixture.config as { t5: T5EncoderConfig & { feed_forward_proj: string } };
  check(t5.feed_forward_proj === "gated-gelu", "unavailable", () => {
    return `[golden] ${fixture.name}: feed_forward_proj ${JSON.stringify(t5.feed_forward_proj)} is not supported, only "gated-gelu"`;
  });
  const model = new T5Encoder(t5, init());
  model.loadStateDict(fixture.state(fixture.config.param_prefix ?? ""));
  return evaluate(model, () => {
    const mask = fixture.has("input/attention_mask") ? rows(fixture, "input/attention_mask") : undefined;
    return { output: { last_hidden_state: model.forward(rows(fixture, "input/input_ids"), mask) } };
  });
};

/** What Python's str.strip takes away: not quite what JavaScript's trim does. */
const PYTHON_SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+";
const strip = (text: string): string => text.replace(new RegExp(`^${PYTHON_SPACE}|${PYTHON_SPACE}$`, "g"), "");

/** The ids of texts, cut and padded to one length, by the SentencePiece model in the file. */
export const t5Tokenizer: GoldenCase = async (fixture) => {
  const { strings, max_length: length } = fixture.config as { strings: string[]; max_length: number };
  const tokenizer = T5Tokenizer.fromSentencePiece(Uint8Array.from(fixture.data("input/spiece_model")), fixture.path);
  const ids = new Float32Array(strings.length * length).fill(tokenizer.pad);
  const mask = new Float32Array(ids.length);
  const lengths = new Float32Array(strings.length);
  for (const [i, text] of strings.map(strip).entries()) {
    lengths[i] = tokenizer.encode(text).length;
    const row = tokenizer.encode(text, length);
    ids.set(row, i * length);
    mask.fill(1, i * length, i * length + row.length);
  }
  return new Map([
    ["output/input_ids", ids],
    ["output/attention_mask", mask],
    ["output/untruncated_length", lengths],
  ]);
};
