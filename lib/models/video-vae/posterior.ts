/** Parts of the posterior's moments (B, …, 2C); its sample and its divergence are ops. */
import { affine, clamp, exp, sliceLast } from "../../ops/index.js";
import type { Tensor } from "../../tensor/index.js";

const half = (moments: Tensor): number => moments.shape[moments.dims - 1] / 2;

/** The mean, which is also the mode: (B, …, C). */
export const posteriorMean = (moments: Tensor): Tensor => sliceLast(moments, 0, half(moments));

/** The log-variances, clamped to [-30, 20]: (B, …, C). */
export const posteriorLogvars = (moments: Tensor): Tensor =>
  clamp(sliceLast(moments, half(moments), half(moments)), -30, 20);

/** The standard deviations (B, …, C). */
export const posteriorStd = (moments: Tensor): Tensor => exp(affine(posteriorLogvars(moments), 0.5));
