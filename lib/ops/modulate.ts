import { integer } from "../arguments.js";
import { check } from "../errors.js";
import { checkFloats, checkSingles, empty, launch, record, type Tensor } from "../tensor/index.js";

/**
 * x + h · ada[g][gate]: the gated residual of an adaptive-norm block. x, h (…, C), ada (G, rows, C) as in normAct.
 */
export function gatedAdd(x: Tensor, h: Tensor, ada: Tensor, gate: number): Tensor {
  checkFloats("gated_add", { x, h, ada });
  integer("gated_add", "gate", gate, 0);
  check(x.dims > 0, "shape_mismatch", () => `[gated_add] expects (…,C), got [${x.shape}]`);
  const channels = x.shape[x.dims - 1];
  const rows = channels ? x.size / channels : 0;
  check(x.size === h.size, "shape_mismatch", () => `[gated_add] x [${x.shape}] and h [${h.shape}] differ`);
  const divides = rows === 0 || (ada.shape[0] > 0 && rows % ada.shape[0] === 0);
  check(ada.dims === 3 && ada.shape[2] === channels && divides && gate < ada.shape[1], "shape_mismatch", () => {
    return `[gated_add] table [${ada.shape}] with gate row ${gate} does not fit input [${x.shape}]`;
  });
  const y = empty(x.shape, { dtype: x.dtype, device: x.device });
  launch("gated_add", [x, h, ada, y], [gate]);
  return record("gated_add", y, [x, h, ada], [h, ada], (grad) => {
    const dh = empty(h.shape, { dtype: h.dtype, device: h.device });
    const dada = empty(ada.shape, { dtype: ada.dtype, device: ada.device });
    launch("gated_add_backward", [h, ada, grad, dh, dada], [gate]);
    return [grad, dh, dada];
  });
}

/** x + plane · scale: noise injection. x (B,F,H,W,C), plane (H,W) a constant, scale (C) f32. */
export function addPlane(x: Tensor, plane: Tensor, scale: Tensor): Tensor {
  checkFloats("add_plane", { x, plane, scale });
  const [, , height, width, channels] = x.shape;
  check(x.dims === 5 && plane.size === height * width && scale.size === channels, "shape_mismatch", () => {
    return `[add_plane] plane [${plane.shape}] and scale [${scale.shape}] do not fit input [${x.shape}]`;
  });
  checkSingles("add_plane", { scale });
  const y = empty(x.shape, { dtype: x.dtype, device: x.device });
  launch("add_plane", [x, plane, scale, y]);
  return record("add_plane", y, [x, scale], [plane], (grad, needs) => {
    let dscale: Tensor | null = null;
    if (needs[1]) {
      dscale = empty(scale.shape, { device: x.device });
      launch("add_plane_backward", [plane, grad, dscale]);
    }
    return [grad, dscale];
  });
}
