/** A T5 with random weights and a tokenizer that knows the prompts of Moving MNIST, as a folder of the hub has them. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import protobuf from "protobufjs/minimal.js";
import { PhiloxRandom } from "../../lib/data/philox.js";
import { type SafetensorsTensor, writeSafetensors } from "../../lib/formats/safetensors.js";
import { narrow } from "../../lib/tensor/tensor.js";

export const tinyT5Config = {
  model_type: "t5",
  vocab_size: 40,
  d_model: 16,
  d_kv: 6,
  d_ff: 20,
  num_layers: 2,
  num_heads: 2,
  relative_attention_num_buckets: 8,
  relative_attention_max_distance: 16,
  layer_norm_epsilon: 1e-6,
  feed_forward_proj: "gated-gelu",
};

const WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "and"];
/** Text and score of the tokenizer's pieces: the special ones, whole words, digits, a few letters. */
export const tinyPieces: [string, number][] = [
  ["<pad>", 0],
  ["</s>", 0],
  ["<unk>", 0],
  ["▁", -2],
  ...WORDS.map((word, i): [string, number] => [`▁${word}`, -3 - i / 16]),
  ...Array.from({ length: 10 }, (_, i): [string, number] => [String(i), -4 - i / 16]),
  ["e", -6],
  ["n", -6.5],
  ["ne", -7],
];

export const tinyTokenizerJson = () => ({
  version: "1.0",
  added_tokens: tinyPieces.slice(0, 2).map(([content], id) => ({ id, content, special: true, normalized: false })),
  normalizer: { type: "Replace", pattern: { Regex: " {2,}" }, content: "▁" },
  pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: "always" },
  post_processor: null,
  decoder: { type: "Metaspace", replacement: "▁", prepend_scheme: "always" },
  model: { type: "Unigram", unk_id: 2, vocab: tinyPieces },
});

/** The same pieces as a SentencePiece model, with its fields' numbers in sentencepiece_model.proto. */
export function tinySentencePiece(options: { modelType?: number; charsmap?: Uint8Array } = {}): Uint8Array {
  const writer = new protobuf.Writer();
  for (const [i, [text, score]] of tinyPieces.entries()) {
    writer.uint32((1 << 3) | 2).fork();
    writer.uint32((1 << 3) | 2).string(text);
    writer.uint32((2 << 3) | 5).float(score);
    if (i < 3) writer.uint32(3 << 3).int32(i === 2 ? 2 : 3);
    writer.ldelim();
  }
  const { modelType = 1, charsmap } = options;
  writer
    .uint32((2 << 3) | 2)
    .fork()
    .uint32(3 << 3)
    .int32(modelType)
    .ldelim();
  if (charsmap) {
    writer
      .uint32((3 << 3) | 2)
      .fork()
      .uint32((2 << 3) | 2)
      .bytes(charsmap)
      .ldelim();
  }
  return writer.finish();
}

/** Names and shapes of the encoder's tensors, written out as the hub's files have them. */
export function tinyT5Shapes(d = tinyT5Config.d_model): [string, number[]][] {
  const { d_kv, d_ff, num_heads: heads, num_layers, relative_attention_num_buckets } = tinyT5Config;
  const inner = heads * d_kv;
  const shapes: [string, number[]][] = [["shared.weight", [tinyT5Config.vocab_size, d]]];
  for (let i = 0; i < num_layers; i++) {
    const attention = `encoder.block.${i}.layer.0`;
    const feedForward = `encoder.block.${i}.layer.1`;
    shapes.push(
      [`${attention}.SelfAttention.q.weight`, [inner, d]],
      [`${attention}.SelfAttention.k.weight`, [inner, d]],
      [`${attention}.SelfAttention.v.weight`, [inner, d]],
      [`${attention}.SelfAttention.o.weight`, [d, inner]],
      [`${attention}.layer_norm.weight`, [d]],
      [`${feedForward}.DenseReluDense.wi_0.weight`, [d_ff, d]],
      [`${feedForward}.DenseReluDense.wi_1.weight`, [d_ff, d]],
      [`${feedForward}.DenseReluDense.wo.weight`, [d, d_ff]],
      [`${feedForward}.layer_norm.weight`, [d]],
    );
  }
  shapes.push(
    ["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", [relative_attention_num_buckets, heads]],
    ["encoder.final_layer_norm.weight", [d]],
  );
  return shapes;
}

export interface TinyT5Options {
  seed?: number;
  /** Width of the features. */
  width?: number;
  dtype?: "F32" | "BF16";
  /** Cut into that many files with an index. */
  shards?: number;
  tokenizer?: "tokenizer.json" | "spiece.model";
  /** Change the tensors before they are written. */
  change?: (tensors: SafetensorsTensor[]) => SafetensorsTensor[];
}

/** Writes the folder. */
export async function writeTinyT5(folder: string, options: TinyT5Options = {}): Promise<string> {
  const { seed = 1, width = tinyT5Config.d_model, dtype = "F32", shards = 1, tokenizer = "tokenizer.json" } = options;
  const { change = (tensors) => tensors } = options;
  mkdirSync(folder, { recursive: true });
  const random = new PhiloxRandom(seed);
  const tensors = change(
    tinyT5Shapes(width).map(([name, shape]) => {
      const norm = shape.length === 1;
      const size = shape.reduce((a, b) => a * b);
      const values = Float32Array.from({ length: size }, () => random.uniform(-0.5, 0.5) + (norm ? 1 : 0));
      const stored = dtype === "F32" ? values : narrow(values);
      return { name, dtype, shape, data: new Uint8Array(stored.buffer) };
    }),
  );
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...tinyT5Config, d_model: width }));
  if (tokenizer === "tokenizer.json") writeFileSync(join(folder, tokenizer), JSON.stringify(tinyTokenizerJson()));
  else writeFileSync(join(folder, tokenizer), tinySentencePiece());
  if (shards === 1) {
    await writeSafetensors(join(folder, "model.safetensors"), tensors);
    return folder;
  }
  const map: Record<string, string> = {};
  for (let i = 0; i < shards; i++) {
    const name = `model-0000${i + 1}-of-0000${shards}.safetensors`;
    const part = tensors.filter((_, k) => k % shards === i);
    for (const tensor of part) map[tensor.name] = name;
    await writeSafetensors(join(folder, name), part);
  }
  writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify({ metadata: {}, weight_map: map }));
  return folder;
}
