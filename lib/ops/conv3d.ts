import { checkOptions, checkShape, flag, integers, listed } from "../arguments.js";
import { check } from "../errors.js";
import { checkFloats, checkSingles, empty, launch, record, type Shape, type Tensor } from "../tensor/index.js";

export interface Conv3dOptions {
  /** (time, height, width). */
  stride?: readonly [number, number, number];
  /** Frames added in front and behind. */
  padTime?: readonly [number, number];
  /** Whether those frames repeat the first and the last one; else they are zero. */
  replicate?: boolean;
  /** Zeros added on each side of height and width. */
  padSpace?: readonly [number, number];
}

const OPTIONS = ["stride", "padTime", "replicate", "padSpace"] as const;

/** The output shape (B, F', H', W', Co) of a convolution. */
export function conv3dShape(x: Shape, w: Shape, options: Conv3dOptions): Shape {
  checkShape("conv3d", x);
  checkShape("conv3d", w);
  check(x.length === 5 && w.length === 5, "shape_mismatch", () => {
    return `[conv3d] expects input (B,F,H,W,C) and weight (O,T,Y,X,I), got [${x}] and [${w}]`;
  });
  checkOptions("conv3d", options, OPTIONS);
  const { stride = [1, 1, 1], padTime = [0, 0], padSpace = [0, 0], replicate = false } = options;
  check(integers(stride, 3, 1), "invalid_argument", () => {
    return `[conv3d] stride ${listed(stride)} must be positive: 3 whole numbers`;
  });
  const pads = [padTime, padSpace].flat();
  check(integers(padTime, 2, 0) && integers(padSpace, 2, 0), "invalid_argument", () => {
    return `[conv3d] padding ${listed(pads)} must not be negative: 2 whole numbers each for time and space`;
  });
  flag("conv3d", "replicate", replicate);
  const out = (size: number, pad: number, kernel: number, step: number) => Math.floor((size + pad - kernel) / step) + 1;
  return [
    x[0],
    out(x[1], padTime[0] + padTime[1], w[1], stride[0]),
    out(x[2], 2 * padSpace[0], w[2], stride[1]),
    out(x[3], 2 * padSpace[1], w[3], stride[2]),
    w[0],
  ];
}

/**
 * 3D convolution: x (B,F,H,W,Ci) and w (Co,kt,kh,kw,Ci) in f32 or bf16, bias (Co) f32, result (B,F',H',W',Co) in x's
 * dtype, plus `residual` of that shape. Time is padded inside the kernel, no copy is made.
 * @throws {LtxError} `shape_mismatch` when channels don't match or the kernel doesn't fit the padded input.
 */
export function conv3d(
  x: Tensor,
  w: Tensor,
  bias: Tensor | null = null,
  options: Conv3dOptions = {},
  residual: Tensor | null = null,
): Tensor {
  checkFloats("conv3d", { x, w }, { bias, residual });
  const shape = conv3dShape(x.shape, w.shape, options);
  check(x.shape[4] === w.shape[4], "shape_mismatch", () => {
    return `[conv3d] weight expects ${w.shape[4]} input channels, got ${x.shape[4]} (input shape [${x.shape}])`;
  });
  check(
    w.shape.slice(1).every((d) => d > 0),
    "shape_mismatch",
    () => {
      return `[conv3d] kernel extents and input channels must be positive, got weight [${w.shape}]`;
    },
  );
  check(
    !bias || bias.size === w.shape[0],
    "shape_mismatch",
    () => `[conv3d] bias expects [${w.shape[0]}], got [${bias?.shape}]`,
  );
  checkSingles("conv3d", { bias });
  const { stride = [1, 1, 1], padTime = [0, 0], padSpace = [0, 0], replicate = false } = options;
  check(shape.every((d) => d >= 0) && (x.size === 0 || shape.slice(1).every((d) => d > 0)), "shape_mismatch", () => {
    return `[conv3d] kernel [${w.shape.slice(1, 4)}] is larger than the padded input [${x.shape}]`;
  });
  check(!options.replicate || x.shape[1] > 0 || shape[0] * shape[1] === 0, "shape_mismatch", () => {
    return `[conv3d] input [${x.shape}] has no frame to repeat`;
  });
  check(!residual || residual.shape.join() === shape.join(), "shape_mismatch", () => {
    return `[conv3d] residual expects [${shape}], got [${residual?.shape}]`;
  });
  check(!residual || residual.dtype === x.dtype, "dtype_mismatch", () => {
    return `[conv3d] residual must be ${x.dtype} as the input, got ${residual?.dtype}`;
  });
  const scalars = [...stride, ...padTime, ...padSpace, replicate ? 1 : 0];
  const y = empty(shape, { dtype: x.dtype, device: x.device });
  launch("conv3d", [x, w, bias, residual, y], scalars);
  return record("conv3d", y, [x, w, bias, residual], [x, w], (grad, needs) => {
    const dx = needs[0] ? empty(x.shape, { dtype: x.dtype, device: x.device }) : null;
    if (dx) launch("conv3d_backward_input", [grad, w, dx], scalars);
    const dw = needs[1] || needs[2] ? empty(w.shape, { device: w.device }) : null;
    const dbias = bias && needs[2] ? empty(bias.shape, { device: w.device }) : null;
    if (dw) launch("conv3d_backward_weight", [x, grad, dw, dbias], scalars);
    return [dx, dw, dbias, residual && needs[3] ? grad : null];
  });
}
