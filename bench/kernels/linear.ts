import { Unary } from "../../lib/ops/enums.js";
import { define, type Problem } from "./case.js";

interface LinearSizes extends Record<string, number> {
  rows: number;
  inputs: number;
  outputs: number;
  bias: number;
  gelu: number;
}

const plain = (rows: number, inputs: number, outputs: number): LinearSizes => {
  return { rows, inputs, outputs, bias: 1, gelu: 0 };
};
const gelu = (rows: number, inputs: number, outputs: number): LinearSizes => ({
  ...plain(rows, inputs, outputs),
  gelu: 1,
});

/** Of the transformer's layers those that a GPU's quick check takes. */
const QUICK = ["2048 rows 768->768", "2048 rows 768->3072 gelu"];

/** The layers of configs/moving_mnist/ltx_video.yaml: 16 tokens a clip, beside 77 of text. */
function flowLayers(batch: number): Problem<LinearSizes>[] {
  const tokens = 16 * batch;
  const layers = [
    { name: `${77 * batch} rows 768->768`, sizes: plain(77 * batch, 768, 768) },
    { name: `${tokens} rows 768->768`, sizes: plain(tokens, 768, 768) },
    { name: `${tokens} rows 768->3072 gelu`, sizes: gelu(tokens, 768, 3072) },
    { name: `${tokens} rows 3072->768`, sizes: plain(tokens, 3072, 768) },
    { name: `${tokens} rows 128->768`, sizes: plain(tokens, 128, 768) },
    { name: `${tokens} rows 768->128`, sizes: plain(tokens, 768, 128) },
    { name: `${batch} rows 768->4608`, sizes: plain(batch, 768, 4608) },
  ];
  return layers.map(({ name, sizes }) => ({ scale: QUICK.includes(name) ? "small" : "cpu", name, sizes }));
}

const layers: Problem<LinearSizes>[] = [
  { scale: "tiny", name: "24 rows 40->56 gelu", sizes: gelu(24, 40, 56) },
  ...[32, 128].flatMap(flowLayers),
  { scale: "large", name: "6144 rows 2048->2048", sizes: plain(6144, 2048, 2048) },
  { scale: "large", name: "6144 rows 2048->8192 gelu", sizes: gelu(6144, 2048, 8192) },
  { scale: "large", name: "6144 rows 8192->2048", sizes: plain(6144, 8192, 2048) },
];
/** The same without the activation, whose gradient is an op of its own. */
const products = layers.map((problem) => ({ ...problem, name: problem.name.replace(" gelu", "") }));

const flops = ({ rows, inputs, outputs }: LinearSizes) => 2 * rows * inputs * outputs;

export const linearCases = [
  ...define("linear", layers, flops, (bench, { rows, inputs, outputs, bias, gelu }) => {
    const operands = [
      bench.input([rows, inputs]),
      bench.parameter([outputs, inputs]),
      bias ? bench.parameter([outputs]) : null,
      bench.output([rows, outputs]),
      null,
    ];
    return bench.kernel("linear", operands, [gelu ? Unary.gelu_tanh : Unary.none]);
  }),
  ...define("linear_backward_input", products, flops, (bench, { rows, inputs, outputs }) => {
    const operands = [bench.input([rows, outputs]), bench.parameter([outputs, inputs]), bench.output([rows, inputs])];
    return bench.kernel("linear_backward_input", operands, [0]);
  }),
  ...define("linear_backward_weight", products, flops, (bench, { rows, inputs, outputs }) => {
    const grads = [bench.output([outputs, inputs], "f32"), bench.output([outputs], "f32")];
    return bench.kernel("linear_backward_weight", [
      bench.input([rows, inputs]),
      bench.input([rows, outputs]),
      ...grads,
    ]);
  }),
];

/** The rate that all other products are measured against: large ones, where they run best. */
export const matmulCases = define(
  "matmul",
  [
    { scale: "tiny" as const, name: "96^3", sizes: { rows: 96, inputs: 96, outputs: 96 } },
    { scale: "cpu" as const, name: "4096^3", sizes: { rows: 4096, inputs: 4096, outputs: 4096 } },
    { scale: "cpu" as const, name: "8192 rows 768->768", sizes: { rows: 8192, inputs: 768, outputs: 768 } },
    { scale: "small" as const, name: "1536^3", sizes: { rows: 1536, inputs: 1536, outputs: 1536 } },
    { scale: "large" as const, name: "8192^3", sizes: { rows: 8192, inputs: 8192, outputs: 8192 } },
  ],
  ({ rows, inputs, outputs }) => 2 * rows * inputs * outputs,
  (bench, { rows, inputs, outputs }) => {
    const operands = [
      bench.input([rows, inputs]),
      bench.parameter([outputs, inputs]),
      null,
      bench.output([rows, outputs]),
      null,
    ];
    return bench.kernel("linear", operands, [Unary.none]);
  },
);
