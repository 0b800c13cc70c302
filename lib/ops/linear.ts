import { choice } from "../arguments.js";
import { check } from "../errors.js";
import {
  checkFloats,
  checkSingles,
  empty,
  launch,
  record,
  type Shape,
  type Tensor,
  wantsGrad,
} from "../tensor/index.js";
import { Unary } from "./enums.js";

/** What a product can end with: functions that take no bounds or slope. */
const Activation = {
  none: Unary.none,
  silu: Unary.silu,
  gelu: Unary.gelu,
  gelu_tanh: Unary.gelu_tanh,
  sigmoid: Unary.sigmoid,
  exp: Unary.exp,
  square: Unary.square,
  abs: Unary.abs,
  sqrt: Unary.sqrt,
  relu: Unary.relu,
  tanh: Unary.tanh,
} as const;
export type LinearActivation = keyof typeof Activation;

/**
 * act(x wᵀ + bias): x (…, K) and w (N, K) in f32 or bf16, bias (N) f32, result (…, N) in x's dtype. The product
 * accumulates in f32; with bf16 input the weight is read as bf16, with f32 input one in bf16 is widened.
 * @throws {LtxError} `shape_mismatch`, `dtype_mismatch`.
 */
export function linear(
  x: Tensor,
  w: Tensor,
  bias: Tensor | null = null,
  activation: LinearActivation = "none",
): Tensor {
  checkFloats("linear", { x, w }, { bias });
  const code = choice("linear", "activation", activation, Activation);
  const [outputs, inputs] = w.shape;
  check(w.dims === 2 && x.dims > 0 && x.shape[x.dims - 1] === inputs, "shape_mismatch", () => {
    return `[linear] weight [${w.shape}] expects ${inputs} input features, got ${x.shape[x.dims - 1]} (input shape [${x.shape}])`;
  });
  check(inputs > 0, "shape_mismatch", () => `[linear] needs at least one input feature, got weight [${w.shape}]`);
  check(
    !bias || bias.size === outputs,
    "shape_mismatch",
    () => `[linear] bias expects [${outputs}], got [${bias?.shape}]`,
  );
  checkSingles("linear", { bias });
  const shape: Shape = [...x.shape.slice(0, -1), outputs];
  const y = empty(shape, { dtype: x.dtype, device: x.device });
  const pre =
    activation !== "none" && wantsGrad(x, w, bias) ? empty(shape, { dtype: x.dtype, device: x.device }) : null;
  launch("linear", [x, w, bias, y, pre], [code]);
  record("linear", y, [x, w, bias], [x, w, pre], (grad, needs, into) => {
    let dpre = grad;
    if (pre) {
      dpre = empty(shape, { dtype: grad.dtype, device: grad.device });
      launch("unary_backward", [pre, grad, dpre], [code, 0, 0]);
    }
    // Several products of one input (q, k and v) add to its gradient as they go.
    const sum = into[0]?.dtype === x.dtype ? into[0] : null;
    const dx = needs[0] ? (sum ?? empty(x.shape, { dtype: x.dtype, device: x.device })) : null;
    if (dx) launch("linear_backward_input", [dpre, w, dx], [sum ? 1 : 0]);
    const dw = needs[1] || needs[2] ? empty(w.shape, { device: w.device }) : null;
    const dbias = bias && needs[2] ? empty(bias.shape, { device: w.device }) : null;
    if (dw) launch("linear_backward_weight", [x, dpre, dw, dbias]);
    return [dx, dw, dbias];
  });
  pre?.dispose(); // the tape holds it
  return y;
}
