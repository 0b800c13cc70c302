import { type LossKind, pairLoss } from "../ops/index.js";
import type { Tensor } from "../tensor/index.js";

/** Σ |a - b| (l1) or Σ (a - b)² (l2) over each sample of two videos: (B) f32. */
export const reconstructionLoss = (kind: LossKind, a: Tensor, b: Tensor): Tensor => pairLoss(kind, a, b);
