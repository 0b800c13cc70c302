import { haarL1 } from "../ops/index.js";
import type { Tensor } from "../tensor/index.js";

/** Mean |difference| of the Haar coefficients of two videos (B,F,H,W,C), over bands and positions: (B, C) f32. */
export const waveletLoss = (a: Tensor, b: Tensor): Tensor => haarL1(a, b);
