import { check } from "../errors.js";
import { checkFloats, empty, launch, record, type Shape, type Tensor } from "../tensor/index.js";

/**
 * The greatest value of every window of 2×2 pixels: (B,F,H,W,C) to (B,F,⌊H/2⌋,⌊W/2⌋,C), as PyTorch's max_pool2d with
 * kernel and stride 2. The gradient goes to the window's first maximum.
 * @throws {LtxError} `shape_mismatch` when the video is smaller than a window.
 */
export function maxPool2d(x: Tensor): Tensor {
  checkFloats("max_pool2d", { x });
  const [b, f, h, w, c] = x.shape;
  check(x.dims === 5 && (x.size === 0 || (h >= 2 && w >= 2)), "shape_mismatch", () => {
    return `[max_pool2d] expects (B,F,H,W,C) with at least 2×2 pixels, got [${x.shape}]`;
  });
  const shape: Shape = [b, f, Math.floor(h / 2), Math.floor(w / 2), c];
  const y = empty(shape, { dtype: x.dtype, device: x.device });
  launch("max_pool2d", [x, y]);
  return record("max_pool2d", y, [x], [x], (grad) => {
    const dx = empty(x.shape, { dtype: x.dtype, device: x.device });
    launch("max_pool2d_backward", [x, grad, dx]);
    return [dx];
  });
}
