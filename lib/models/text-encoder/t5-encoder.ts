import { integer } from "../../arguments.js";
import { check } from "../../errors.js";
import { type Initializer, Module, type Parameter } from "../../nn/index.js";
import {
  add,
  affine,
  attention,
  cast,
  gatherRows,
  linear,
  mul,
  normAct,
  reshape,
  toChannelsFirst,
} from "../../ops/index.js";
import { noGrad, scope, Tensor } from "../../tensor/index.js";

/** The keys of a T5's config.json that shape its encoder. */
export interface T5EncoderConfig {
  vocab_size: number;
  d_model: number;
  /** Width of a head; all heads together need not be `d_model` wide. */
  d_kv: number;
  d_ff: number;
  num_layers: number;
  num_heads: number;
  relative_attention_num_buckets: number;
  relative_attention_max_distance: number;
  layer_norm_epsilon: number;
}

/** Added to the scores of padding: far below any score, and small enough that nothing it is multiplied by overflows. */
const MASKED = -1e30;

/** A linear map (…, inputs) to (…, outputs) without bias; its values are only ever loaded. */
class Projection extends Module {
  weight: Parameter;

  constructor(inputs: number, outputs: number, init: Initializer) {
    super();
    this.weight = init.weight([outputs, inputs], 0);
  }

  forward(x: Tensor, activation: "none" | "gelu_tanh" = "none"): Tensor {
    return linear(x, this.weight, null, activation);
  }
}

/** A table of rows. */
class Embedding extends Module {
  constructor(public weight: Parameter) {
    super();
  }
}

class RmsNorm extends Module {
  weight: Parameter;

  constructor(
    width: number,
    private _eps: number,
    init: Initializer,
  ) {
    super();
    this.weight = init.constant([width], 1);
  }

  forward(x: Tensor): Tensor {
    return normAct(x, { kind: "rms_norm", eps: this._eps, weight: this.weight });
  }
}

class SelfAttention extends Module {
  q: Projection;
  k: Projection;
  v: Projection;
  o: Projection;
  /** The first block's; the others use it too. */
  relative_attention_bias: Embedding | null;

  constructor(config: T5EncoderConfig, first: boolean, init: Initializer) {
    super();
    const { d_model: width, d_kv, num_heads: heads, relative_attention_num_buckets: buckets } = config;
    const inner = heads * d_kv;
    this.q = new Projection(width, inner, init);
    this.k = new Projection(width, inner, init);
    this.v = new Projection(width, inner, init);
    this.o = new Projection(inner, width, init);
    this.relative_attention_bias = first ? new Embedding(init.constant([buckets, heads], 0)) : null;
  }
}

class SelfAttentionLayer extends Module {
  SelfAttention: SelfAttention;
  layer_norm: RmsNorm;

  constructor(
    private _config: T5EncoderConfig,
    first: boolean,
    init: Initializer,
  ) {
    super();
    this.SelfAttention = new SelfAttention(_config, first, init);
    this.layer_norm = new RmsNorm(_config.d_model, _config.layer_norm_epsilon, init);
  }

  forward(x: Tensor, mask: Tensor, bias: Tensor): Tensor {
    const { q, k, v, o } = this.SelfAttention;
    const n = this.layer_norm.forward(x);
    // T5 does not scale its scores: its initial values take care of that.
    const options = { heads: this._config.num_heads, scale: 1, mask, bias };
    return add(x, o.forward(attention(q.forward(n), k.forward(n), v.forward(n), options)));
  }
}

class DenseReluDense extends Module {
  wi_0: Projection;
  wi_1: Projection;
  wo: Projection;

  constructor({ d_model: width, d_ff: inner }: T5EncoderConfig, init: Initializer) {
    super();
    this.wi_0 = new Projection(width, inner, init);
    this.wi_1 = new Projection(width, inner, init);
    this.wo = new Projection(inner, width, init);
  }
}

class FeedForwardLayer extends Module {
  DenseReluDense: DenseReluDense;
  layer_norm: RmsNorm;

  constructor(config: T5EncoderConfig, init: Initializer) {
    super();
    this.DenseReluDense = new DenseReluDense(config, init);
    this.layer_norm = new RmsNorm(config.d_model, config.layer_norm_epsilon, init);
  }

  forward(x: Tensor): Tensor {
    const { wi_0, wi_1, wo } = this.DenseReluDense;
    const n = this.layer_norm.forward(x);
    return add(x, wo.forward(mul(wi_0.forward(n, "gelu_tanh"), wi_1.forward(n))));
  }
}

class Block extends Module {
  layer: [SelfAttentionLayer, FeedForwardLayer];

  constructor(config: T5EncoderConfig, first: boolean, init: Initializer) {
    super();
    this.layer = [new SelfAttentionLayer(config, first, init), new FeedForwardLayer(config, init)];
  }

  forward(x: Tensor, mask: Tensor, bias: Tensor): Tensor {
    return this.layer[1].forward(this.layer[0].forward(x, mask, bias));
  }
}

class Stack extends Module {
  block: Block[];
  final_layer_norm: RmsNorm;

  constructor(config: T5EncoderConfig, init: Initializer) {
    super();
    this.block = Array.from({ length: config.num_layers }, (_, i) => new Block(config, i === 0, init));
    this.final_layer_norm = new RmsNorm(config.d_model, config.layer_norm_epsilon, init);
  }
}

/**
 * The encoder of T5 v1.1 (Raffel et al., "Exploring the Limits of Transfer Learning", with the gated GELU of v1.1),
 * frozen. Its state-dict keys are those of T5EncoderModel in the transformers library. Layers compute in
 * `computeDtype`.
 */
export class T5Encoder extends Module {
  shared: Embedding;
  encoder: Stack;

  constructor(
    private _config: T5EncoderConfig,
    init: Initializer,
    private _options: { computeDtype?: "f32" | "bf16" } = {},
  ) {
    super();
    this.shared = new Embedding(init.weight([_config.vocab_size, _config.d_model], 0));
    this.encoder = new Stack(_config, init);
    for (const parameter of this.parameters()) parameter.trainable = false;
    this.requiresGrad(false);
  }

  get config(): T5EncoderConfig {
    return this._config;
  }

  /**
   * The last hidden state (B,L,d_model) f32 of token ids, B rows of L; `mask` has 1 for tokens that count, 0 for
   * padding, which no token attends to.
   * @throws {LtxError} `shape_mismatch`; `invalid_argument` for ids outside the vocabulary
   */
  forward(
    ids: readonly (readonly number[])[],
    mask: readonly (readonly number[])[] = ids.map((row) => row.map(() => 1)),
  ): Tensor {
    const { device } = this;
    const [batch, length] = [ids.length, ids[0]?.length ?? 0];
    const isRow = (row: readonly number[]) => row.length === length;
    check(length > 0 && ids.every(isRow) && mask.length === batch && mask.every(isRow), "shape_mismatch", () => {
      return `[t5] expects rows of ids of one length and a mask like them, got lengths ${ids.map((row) => row.length)} and ${mask.map((row) => row.length)}`;
    });
    const vocabulary = this._config.vocab_size;
    const stray = ids.flat().find((id) => !Number.isInteger(id) || id < 0 || id >= vocabulary);
    check(stray === undefined, "invalid_argument", () => {
      return `[t5] token ${stray} is not in the model's vocabulary of ${vocabulary}: are tokenizer and weights of one model?`;
    });
    return scope(() =>
      noGrad(() => {
        const index = Tensor.from(Int32Array.from(ids.flat()), [batch, length], { device });
        const scores = affine(
          Tensor.from(Float32Array.from(mask.flat()), [batch, length], { device }),
          -MASKED,
          MASKED,
        );
        const bias = this.positionBias(length);
        let h = cast(gatherRows(this.shared.weight, index), this._options.computeDtype ?? "f32");
        for (const block of this.encoder.block) {
          const before = h;
          h = scope(() => block.forward(before, scores, bias));
          before.dispose();
        }
        return this.encoder.final_layer_norm.forward(cast(h, "f32"));
      }),
    );
  }

  /** (heads, L, L) f32: what each head adds to the score of a key by how far it stands from the query. */
  private positionBias(length: number): Tensor {
    const { num_heads: heads, relative_attention_num_buckets, relative_attention_max_distance } = this._config;
    const buckets = new Int32Array(length * length);
    for (let q = 0; q < length; q++) {
      for (let k = 0; k < length; k++) {
        buckets[q * length + k] = relativeBucket(
          k - q,
          relative_attention_num_buckets,
          relative_attention_max_distance,
        );
      }
    }
    const table = this.encoder.block[0].layer[0].SelfAttention.relative_attention_bias as Embedding;
    return scope(() => {
      const rows = gatherRows(table.weight, Tensor.from(buckets, [1, 1, length, length], { device: this.device }));
      return reshape(toChannelsFirst(rows), [heads, length, length]);
    });
  }
}

/**
 * The bucket of a key `distance` positions behind the query. Half of the buckets are for keys behind, half for those in
 * front; of each half the first half are for one distance each, the rest grow by powers up to `maxDistance`, and the last
 * takes everything beyond.
 */
export function relativeBucket(distance: number, buckets: number, maxDistance: number): number {
  integer("t5", "distance", distance);
  integer("t5", "buckets", buckets, 2);
  integer("t5", "maxDistance", maxDistance, 1);
  const half = buckets >> 1;
  const side = distance > 0 ? half : 0;
  const exact = half >> 1;
  const n = Math.abs(distance);
  if (n < exact) return side + n;
  // In f32, as the original: the edges of the buckets lie exactly on powers.
  const { fround, log } = Math;
  const share = fround(fround(log(fround(n / exact))) / fround(log(maxDistance / exact)));
  return side + Math.min(half - 1, exact + Math.floor(fround(share * (half - exact))));
}
