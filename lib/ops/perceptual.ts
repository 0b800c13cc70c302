import { check } from "../errors.js";
import { checkFloats, checkSingles, empty, launch, record, type Tensor } from "../tensor/index.js";

/**
 * One layer's part of LPIPS (Zhang et al. 2018, arXiv:1801.03924): features a, b (N, …, C), of which every pixel is
 * divided by its length plus 1e-10, and the mean over pixels of Σ_c w_c · (â_c - b̂_c)², as (N) f32. Differentiable in a
 * and b; the weights w (C) f32 are constants.
 * @throws {LtxError} `shape_mismatch`, `dtype_mismatch`.
 */
export function lpipsDistance(a: Tensor, b: Tensor, w: Tensor): Tensor {
  checkFloats("lpips_distance", { a, b, w });
  check(a.dims >= 2 && a.shape.join() === b.shape.join(), "shape_mismatch", () => {
    return `[lpips_distance] expects two feature maps (N,…,C) of one shape, got [${a.shape}] and [${b.shape}]`;
  });
  const [samples, channels] = [a.shape[0], a.shape[a.dims - 1]];
  check(samples === 0 || a.size > 0, "shape_mismatch", () => {
    return `[lpips_distance] the mean needs at least one pixel and channel, got [${a.shape}]`;
  });
  check(w.size === channels, "shape_mismatch", () => `[lpips_distance] weights expect [${channels}], got [${w.shape}]`);
  checkSingles("lpips_distance", { weights: w });
  const y = empty([samples], { device: a.device });
  launch("lpips_distance", [a, b, w, y]);
  return record("lpips_distance", y, [a, b], [a, b, w], (grad, needs) => {
    const grads = [a, b].map((t, i) => (needs[i] ? empty(t.shape, { dtype: t.dtype, device: t.device }) : null));
    launch("lpips_distance_backward", [a, b, w, grad, ...grads]);
    return grads;
  });
}
