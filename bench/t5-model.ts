/** A text encoder of the reference's size with random weights, as a folder of the Hugging Face hub has it. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PhiloxRandom } from "../lib/data/philox.js";
import { type SafetensorsTensor, writeSafetensors } from "../lib/formats/safetensors.js";
import { T5Encoder, type T5EncoderConfig } from "../lib/models/text-encoder/index.js";
import { Initializer } from "../lib/nn/index.js";
import { device } from "../lib/tensor/index.js";
import { tinyTokenizerJson } from "../test/support/tiny-t5.js";

/** google/t5-v1_1-base. */
export const T5_BASE: T5EncoderConfig = {
  vocab_size: 32128,
  d_model: 768,
  d_kv: 64,
  d_ff: 2048,
  num_layers: 12,
  num_heads: 12,
  relative_attention_num_buckets: 32,
  relative_attention_max_distance: 128,
  layer_norm_epsilon: 1e-6,
};

/** Random values are drawn once and serve all tensors, each from another place on. */
const POOL = 1 << 20;

/** Writes it into an existing folder, with a tokenizer that knows the prompts of Moving MNIST. */
export async function writeT5(folder: string, size: T5EncoderConfig): Promise<void> {
  const random = new PhiloxRandom(1);
  const pool = Float32Array.from({ length: POOL }, () => random.uniform(-1, 1));
  const encoder = new T5Encoder(size, new Initializer(device("cpu")));
  const shapes = [...encoder.namedParameters()].map(([name, { shape }]) => ({ name, shape }));
  encoder.dispose();
  const tensors = shapes.map(({ name, shape }, i): SafetensorsTensor => {
    const data = async () => {
      const scale = 1 / Math.sqrt(shape[shape.length - 1]);
      const values = new Float32Array(shape.reduce((a, b) => a * b));
      for (let k = 0; k < values.length; k++) values[k] = shape.length === 1 ? 1 : scale * pool[(k + 7919 * i) % POOL];
      return new Uint8Array(values.buffer);
    };
    return { name, dtype: "F32", shape, data };
  });
  await writeSafetensors(join(folder, "model.safetensors"), tensors);
  const config = { model_type: "t5", feed_forward_proj: "gated-gelu", ...size };
  await writeFile(join(folder, "config.json"), JSON.stringify(config));
  await writeFile(join(folder, "tokenizer.json"), JSON.stringify(tinyTokenizerJson()));
}
