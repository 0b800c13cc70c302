import { mean, posteriorKl } from "../ops/index.js";
import type { Tensor } from "../tensor/index.js";

/** KL(posterior ‖ N(0, 1)) of moments (B, …, 2C), summed over a sample and averaged over the batch: (1) f32. */
export const klLoss = (moments: Tensor): Tensor => mean(posteriorKl(moments));
