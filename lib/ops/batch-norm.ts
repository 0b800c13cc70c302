import { checkOptions, finite, flag } from "../arguments.js";
import { check } from "../errors.js";
import { checkFloats, checkSingles, empty, launch, record, type Tensor } from "../tensor/index.js";

export interface BatchNormOptions {
  /** (C) f32. */
  weight?: Tensor | null;
  bias?: Tensor | null;
  /** (C) f32 buffers: training moves them towards the batch's statistics in place, evaluation normalises by them. */
  runningMean: Tensor;
  runningVar: Tensor;
  training: boolean;
  /** The share of the batch in the running statistics. */
  momentum?: number;
  eps?: number;
}

const OPTIONS = ["weight", "bias", "runningMean", "runningVar", "training", "momentum", "eps"] as const;

/**
 * (x - mean) / √(variance + eps) · weight + bias for every channel of x (…, C), as PyTorch's BatchNorm2d and BatchNorm3d:
 * in training with mean and (biased) variance over all rows, whose unbiased variance goes into `runningVar`; in
 * evaluation with the running statistics, which are constants to the gradient.
 * @throws {LtxError} `shape_mismatch`, `dtype_mismatch`; `invalid_argument` when training sees a single row, which has no
 * variance.
 */
export function batchNorm(x: Tensor, options: BatchNormOptions): Tensor {
  checkOptions("batch_norm", options, OPTIONS);
  const { weight = null, bias = null, runningMean, runningVar, training, momentum = 0.1, eps = 1e-5 } = options;
  checkFloats("batch_norm", { x, runningMean, runningVar }, { weight, bias });
  flag("batch_norm", "training", training);
  finite("batch_norm", "momentum", momentum, 0, 1);
  finite("batch_norm", "eps", eps, 0);
  check(x.dims > 0, "shape_mismatch", () => `[batch_norm] expects (…,C), got [${x.shape}]`);
  const channels = x.shape[x.dims - 1];
  const vectors = { weight, bias, runningMean, runningVar };
  for (const [name, p] of Object.entries(vectors)) {
    check(!p || p.size === channels, "shape_mismatch", () => {
      return `[batch_norm] ${name} expects [${channels}], got [${p?.shape}] (input shape [${x.shape}])`;
    });
  }
  checkSingles("batch_norm", vectors);
  check(!training || x.size !== channels || channels === 0, "invalid_argument", () => {
    return `[batch_norm] training needs more than one value per channel, got input shape [${x.shape}]`;
  });
  const { device } = x;
  const y = empty(x.shape, { dtype: x.dtype, device });
  const stats = empty([2, channels], { device });
  launch("batch_norm", [x, weight, bias, y, stats, runningMean, runningVar], [eps, momentum, training ? 1 : 0]);
  record("batch_norm", y, [x, weight, bias], [x, weight, stats], (grad, needs) => {
    const dx = needs[0] ? empty(x.shape, { dtype: x.dtype, device }) : null;
    const dweight = weight && needs[1] ? empty(weight.shape, { device }) : null;
    const dbias = bias && needs[2] ? empty(bias.shape, { device }) : null;
    launch("batch_norm_backward", [x, weight, stats, grad, dx, dweight, dbias], [training ? 1 : 0]);
    return [dx, dweight, dbias];
  });
  stats.dispose(); // the tape, if any, holds it
  return y;
}
