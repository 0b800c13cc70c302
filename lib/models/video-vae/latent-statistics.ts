/** What brings latents to unit scale, channel by channel. */
import { Counter, type Initializer, Module, type StateBuffer } from "../../nn/index.js";
import { addRows, affine, concatLast, normAct, reciprocal, sliceLast, unary } from "../../ops/index.js";
import { scope, type Tensor } from "../../tensor/index.js";

/** x (…,C) · scale + shift, both (C). */
const scaled = (x: Tensor, scale: Tensor, shift: Tensor): Tensor =>
  normAct(x, { kind: "none", weight: scale, bias: shift });

/** (x - mean) / std of each channel. */
function standardized(x: Tensor, mean: Tensor, std: Tensor): Tensor {
  return normAct(addRows(x, affine(mean, -1)), { kind: "none", weight: reciprocal(std) });
}

/** The latents' statistics over the data that the transformer was trained on. */
export class PerChannelStatistics extends Module {
  "std-of-means": StateBuffer;
  "mean-of-means": StateBuffer;

  constructor(channels: number, init: Initializer) {
    super();
    this["std-of-means"] = init.buffer([channels], 1);
    this["mean-of-means"] = init.buffer([channels], 0);
  }

  /** (x - mean) / std. */
  normalize(x: Tensor): Tensor {
    return scope(() => standardized(x, this["mean-of-means"], this["std-of-means"]));
  }

  /** x · std + mean. */
  denormalize(x: Tensor): Tensor {
    return scaled(x, this["std-of-means"], this["mean-of-means"]);
  }
}

const EPS = 1e-5;

/** `normalize_latent_channels`: a batch norm of the means without weights, in evaluation. */
export class LatentNorm extends Module {
  running_mean: StateBuffer;
  running_var: StateBuffer;
  num_batches_tracked = new Counter();

  constructor(channels: number, init: Initializer) {
    super();
    this.running_mean = init.buffer([channels], 0);
    this.running_var = init.buffer([channels], 1);
  }

  private std(): Tensor {
    return unary("sqrt", affine(this.running_var, 1, EPS));
  }

  /** Moments, or means alone, with the means normalised. */
  normalize(moments: Tensor): Tensor {
    return scope(() => {
      const [channels, all] = [this.running_mean.size, moments.shape[moments.dims - 1]];
      const means = standardized(sliceLast(moments, 0, channels), this.running_mean, this.std());
      return all === channels ? means : concatLast(means, sliceLast(moments, channels, all - channels));
    });
  }

  /** The inverse, of latents. */
  denormalize(x: Tensor): Tensor {
    return scope(() => scaled(x, this.std(), this.running_mean));
  }
}
