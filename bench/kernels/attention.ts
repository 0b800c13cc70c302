import { type Bench, define, type Problem } from "./case.js";

interface AttentionSizes extends Record<string, number> {
  batch: number;
  queries: number;
  keys: number;
  heads: number;
  /** Of one head. */
  width: number;
  /** RMS norm of q and k over all heads. */
  norm: number;
  rope: number;
  mask: number;
}

const self = (batch: number, tokens: number, heads: number, width: number, fused = 1): AttentionSizes => {
  return { batch, queries: tokens, keys: tokens, heads, width, norm: fused, rope: fused, mask: 0 };
};
const cross = (batch: number, queries: number, keys: number, heads: number, width: number): AttentionSizes => {
  return { batch, queries, keys, heads, width, norm: 1, rope: 0, mask: 1 };
};

const problems: Problem<AttentionSizes>[] = [
  { scale: "tiny", name: "self 2x16 2x64", sizes: self(2, 16, 2, 64) },
  { scale: "tiny", name: "cross 2x16 to 9 2x64", sizes: cross(2, 16, 9, 2, 64) },
  { scale: "small", name: "self 128x16 12x64", sizes: self(128, 16, 12, 64) },
  { scale: "small", name: "cross 128x16 to 77 12x64", sizes: cross(128, 16, 77, 12, 64) },
  { scale: "cpu", name: "self 32x16 12x64", sizes: self(32, 16, 12, 64) },
  { scale: "cpu", name: "cross 32x16 to 77 12x64", sizes: cross(32, 16, 77, 12, 64) },
  { scale: "small", name: "self 1x1536 12x64", sizes: self(1, 1536, 12, 64) },
  { scale: "large", name: "self 1x1536 32x64", sizes: self(1, 1536, 32, 64) },
  { scale: "large", name: "self 1x6144 32x64", sizes: self(1, 6144, 32, 64) },
  { scale: "large", name: "self 1x6144 32x64, no norm, no rope", sizes: self(1, 6144, 32, 64, 0) },
  { scale: "large", name: "self 1x1536 32x128", sizes: self(1, 1536, 32, 128) },
  { scale: "large", name: "self 1x6144 32x128", sizes: self(1, 6144, 32, 128) },
  { scale: "large", name: "cross 1x6144 to 256 32x64", sizes: cross(1, 6144, 256, 32, 64) },
  { scale: "large", name: "cross 1x6144 to 256 32x128", sizes: cross(1, 6144, 256, 32, 128) },
];

const EPS = 1e-5;
/** Tokens that count; the mask drops the rest. */
const WORDS = 0.25;

function operands(bench: Bench, s: AttentionSizes) {
  const { batch, queries, keys, heads } = s;
  const dim = heads * s.width;
  const weight = () => (s.norm ? bench.between([dim], 0.5, 1.5) : null);
  const table = () => (s.rope ? bench.between([queries, dim], -1, 1) : null);
  const dropped = Float32Array.from({ length: batch * keys }, (_, i) => (i % keys < WORDS * keys ? 0 : -10000));
  return {
    inputs: [
      bench.input([batch, queries, dim]),
      bench.input([batch, keys, dim]),
      bench.input([batch, keys, dim]),
      weight(),
      weight(),
      table(),
      table(),
      s.mask ? bench.values(dropped, [batch, keys]) : null,
    ],
    outputs: [
      bench.output([batch, queries, dim]),
      bench.output([batch, heads, queries], "f32"),
      s.norm ? bench.output([batch, queries], "f32") : null,
      s.norm ? bench.output([batch, keys], "f32") : null,
    ],
    scalars: [heads, EPS, s.width ** -0.5],
  };
}

/** Of one product between all queries and keys. */
const product = (s: AttentionSizes) => 2 * s.batch * s.heads * s.queries * s.keys * s.width;

export const attentionCases = [
  ...define(
    "attention",
    problems,
    (s) => 2 * product(s),
    (bench, s) => {
      const { inputs, outputs, scalars } = operands(bench, s);
      return bench.kernel("attention", [...inputs, null, ...outputs], scalars);
    },
  ),
  // Scores once more, then dV, dP, dQ and dK.
  ...define(
    "attention_backward",
    problems,
    (s) => 5 * product(s),
    (bench, s) => {
      const { inputs, outputs, scalars } = operands(bench, s);
      bench.kernel("attention", [...inputs, null, ...outputs], scalars).run();
      const grads = inputs.slice(0, 5).map((x) => x && bench.output(x.shape, x.dtype === "bf16" ? "bf16" : "f32"));
      const dy = bench.input(outputs[0]?.shape ?? []);
      return bench.kernel("attention_backward", [...inputs, ...outputs, dy, ...grads], scalars);
    },
  ),
];
