import { integer } from "../../arguments.js";
import { check } from "../../errors.js";
import { type Initializer, LayerNorm, Linear, Module, type Parameter } from "../../nn/index.js";
import { add, addRows, affine, attention, cast, gatherRows } from "../../ops/index.js";
import { scope, Tensor } from "../../tensor/index.js";
import {
  checkPrompts,
  type PreparedPrompts,
  paddedLength,
  type TextEmbedding,
  type TextEncoder,
} from "./text-encoder.js";

export interface ByteEncoderOptions {
  width: number;
  layers: number;
  heads: number;
  /** Tokens of every prompt: its bytes between one for the beginning and one for the end. */
  max_length: number;
}

/** Tokens behind the 256 bytes. */
const BOS = 256;
const EOS = 257;
const PAD = 258;
const VOCABULARY = 259;
/** Added to the scores of padding. */
const MASKED = -10000;

/**
 * The tokens of a prompt, `maxLength` in all, and how many of them count. A prompt that is too long loses whole
 * characters at its end.
 */
export function byteTokens(prompt: string, maxLength: number): { tokens: Int32Array; length: number } {
  integer("byte encoder", "maxLength", maxLength, 2, 2 ** 20);
  const bytes = Buffer.from(prompt, "utf8");
  let end = Math.min(bytes.length, maxLength - 2);
  // A continuation byte (10xxxxxx) at the cut means that a character would be split.
  while (end < bytes.length && end > 0 && (bytes[end] & 0xc0) === 0x80) end--;
  const tokens = new Int32Array(maxLength).fill(PAD);
  tokens[0] = BOS;
  tokens.set(bytes.subarray(0, end), 1);
  tokens[end + 1] = EOS;
  return { tokens, length: end + 2 };
}

/** A pre-norm transformer layer with self-attention over the tokens that count. */
class EncoderLayer extends Module {
  norm1: LayerNorm;
  to_q: Linear;
  to_k: Linear;
  to_v: Linear;
  to_out: Linear;
  norm2: LayerNorm;
  linear_1: Linear;
  linear_2: Linear;

  constructor(
    width: number,
    private _heads: number,
    init: Initializer,
  ) {
    super();
    this.norm1 = new LayerNorm(width, init);
    this.to_q = new Linear(width, width, init);
    this.to_k = new Linear(width, width, init);
    this.to_v = new Linear(width, width, init);
    this.to_out = new Linear(width, width, init);
    this.norm2 = new LayerNorm(width, init);
    this.linear_1 = new Linear(width, 4 * width, init);
    this.linear_2 = new Linear(4 * width, width, init);
  }

  forward(x: Tensor, mask: Tensor): Tensor {
    const n = this.norm1.forward(x);
    const y = attention(this.to_q.forward(n), this.to_k.forward(n), this.to_v.forward(n), { heads: this._heads, mask });
    const h = add(x, this.to_out.forward(y));
    return add(h, this.linear_2.forward(this.linear_1.forward(this.norm2.forward(h), "gelu_tanh")));
  }
}

/** A table of learned rows. */
class Embedding extends Module {
  weight: Parameter;

  constructor(rows: number, width: number, init: Initializer, std: number) {
    super();
    this.weight = init.normal([rows, width], std);
  }
}

/**
 * A small text encoder without a vocabulary: a transformer over the UTF-8 bytes of the prompt, trained jointly with the
 * model. It fits prompts such as those of Moving MNIST; free text needs a pretrained encoder. Layers compute in
 * `computeDtype`, the result is f32.
 */
export class ByteTextEncoder extends Module implements TextEncoder {
  readonly trainable = true;
  token_embedding: Embedding;
  position_embedding: Embedding;
  layers: EncoderLayer[];
  norm: LayerNorm;

  /** @throws {LtxError} `config` when the heads don't divide the width or no byte fits. */
  constructor(
    private _options: ByteEncoderOptions,
    init: Initializer,
    readonly options: { computeDtype?: "f32" | "bf16" } = {},
  ) {
    super();
    const { width, layers, heads, max_length: maxLength } = _options;
    check(Number.isInteger(heads) && heads > 0 && width % heads === 0, "config", () => {
      return `[byte encoder] width ${width} does not divide into ${heads} heads`;
    });
    check(Number.isInteger(maxLength) && maxLength >= 3, "config", () => {
      return `[byte encoder] max_length must be an integer from 3 (two tokens mark the ends), got ${maxLength}`;
    });
    this.token_embedding = new Embedding(VOCABULARY, width, init, 1);
    this.position_embedding = new Embedding(maxLength, width, init, 1);
    this.layers = Array.from({ length: layers }, () => new EncoderLayer(width, heads, init));
    this.norm = new LayerNorm(width, init);
  }

  get width(): number {
    return this._options.width;
  }

  get maxLength(): number {
    return this._options.max_length;
  }

  cutOff(prompt: string): string {
    // Between the tokens for the beginning and the end.
    const read = byteTokens(prompt, this.maxLength).length - 2;
    return Buffer.from(prompt, "utf8").subarray(read).toString("utf8");
  }

  /** There is nothing to wait for: it learns, so each step encodes anew. */
  async prepare(prompts: readonly string[]): Promise<PreparedPrompts> {
    checkPrompts("byte encoder", prompts);
    return () => this.encode(prompts);
  }

  /**
   * Embeddings (B, L, width) f32 and mask (B, L) f32 of B prompts, L by {@link paddedLength}.
   * @throws {LtxError} `invalid_argument` for anything but a list of strings.
   */
  encode(prompts: readonly string[]): TextEmbedding {
    checkPrompts("byte encoder", prompts);
    const { maxLength, device } = this;
    const encoded = prompts.map((prompt) => byteTokens(prompt, maxLength));
    const length = paddedLength(
      encoded.map((row) => row.length),
      maxLength,
    );
    const tokens = new Int32Array(prompts.length * length);
    const counts = new Float32Array(tokens.length);
    for (const [i, row] of encoded.entries()) {
      tokens.set(row.tokens.subarray(0, length), i * length);
      counts.fill(1, i * length, i * length + row.length);
    }
    const shape = [prompts.length, length];
    return scope(() => {
      const mask = Tensor.from(counts, shape, { device });
      const scores = affine(mask, -MASKED, MASKED);
      const places = Tensor.from(
        Int32Array.from({ length }, (_, i) => i),
        [length],
        { device },
      );
      const positions = gatherRows(this.position_embedding.weight, places);
      let h = gatherRows(this.token_embedding.weight, Tensor.from(tokens, shape, { device }));
      h = cast(addRows(h, positions), this.options.computeDtype ?? "f32");
      for (const layer of this.layers) h = layer.forward(h, scores);
      return { embeddings: this.norm.forward(cast(h, "f32")), mask };
    });
  }
}
