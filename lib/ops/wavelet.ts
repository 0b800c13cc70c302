import { check } from "../errors.js";
import { checkFloats, empty, launch, record, type Tensor } from "../tensor/index.js";

/**
 * The 3D Haar transform: x (B,F,H,W,C) to (B,8,⌈F/2⌉,⌈H/2⌉,⌈W/2⌉,C), band = 4·highF + 2·highH + highW. An odd axis gets
 * one zero at its end.
 */
export function haar(x: Tensor): Tensor {
  checkFloats("haar", { x });
  check(x.dims === 5, "shape_mismatch", () => `[haar] expects (B,F,H,W,C), got [${x.shape}]`);
  const [b, f, h, w, c] = x.shape;
  const y = empty([b, 8, Math.ceil(f / 2), Math.ceil(h / 2), Math.ceil(w / 2), c], {
    dtype: x.dtype,
    device: x.device,
  });
  launch("haar", [x, y]);
  return record("haar", y, [x], [], (grad) => {
    const dx = empty(x.shape, { dtype: x.dtype, device: x.device });
    launch("haar_backward", [grad, dx]);
    return [dx];
  });
}

/** The wavelet loss: mean |haar(a - b)| over bands and positions, (B, C) f32 (LTX-Video §3, reference WaveletLoss3D). */
export function haarL1(a: Tensor, b: Tensor): Tensor {
  checkFloats("haar_l1", { a, b });
  check(a.dims === 5 && a.shape.join() === b.shape.join(), "shape_mismatch", () => {
    return `[haar_l1] expects two videos (B,F,H,W,C) of one shape, got [${a.shape}] and [${b.shape}]`;
  });
  const y = empty([a.shape[0], a.shape[4]], { device: a.device });
  launch("haar_l1", [a, b, y]);
  const toward = (from: Tensor, to: Tensor, grad: Tensor): Tensor => {
    const d = empty(from.shape, { dtype: from.dtype, device: from.device });
    launch("haar_l1_backward", [from, to, grad, d]);
    return d;
  };
  return record("haar_l1", y, [a, b], [a, b], (grad, needs) => [
    needs[0] ? toward(a, b, grad) : null,
    needs[1] ? toward(b, a, grad) : null,
  ]);
}
