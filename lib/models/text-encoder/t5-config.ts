/** A T5's config.json. Apart from what uses it, as zod takes long to load. */
import { z } from "zod";
import { count, layers } from "../../config/fields.js";
import { check, LtxError } from "../../errors.js";
import type { T5EncoderConfig } from "./t5-encoder.js";

const encoderConfig = z.object({
  vocab_size: count,
  d_model: count,
  d_kv: count,
  d_ff: count,
  num_layers: layers,
  num_heads: count,
  relative_attention_num_buckets: count.min(4).multipleOf(2).default(32),
  relative_attention_max_distance: count.default(128),
  layer_norm_epsilon: z.number().positive().default(1e-6),
  feed_forward_proj: z.string().default("relu"),
});

/**
 * The sizes of a T5 v1.1 in the contents of its `config.json`.
 * @param path stands in the messages
 * @throws LtxError `file_format`, `unavailable` for another kind of T5
 */
export function parseT5Config(json: unknown, path: string): T5EncoderConfig {
  const parsed = encoderConfig.safeParse(json);
  if (!parsed.success) {
    const [{ path: key, message }] = parsed.error.issues;
    throw new LtxError("file_format", `[t5] ${path}: ${key.join(".") || "the file"} is no T5's (${message})`);
  }
  const { feed_forward_proj: kind, ...config } = parsed.data;
  check(kind === "gated-gelu", "unavailable", () => {
    return `[t5] ${path} describes a T5 with feed_forward_proj "${kind}", only "gated-gelu" (T5 v1.1) is supported`;
  });
  return config;
}
