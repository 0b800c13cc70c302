/**
 * Rectified flow: data and noise are joined by straight lines, x_t = t·x0 + (1 - t)·noise with t = 1 at the data, and the
 * model learns the velocity x0 - noise along them.
 */
import { LtxError } from "../errors.js";
import { affine, mean, mixRows, normal, pairLoss, type RandomKey, sigmoid, sub, uniform } from "../ops/index.js";
import { type Device, scope, type Tensor } from "../tensor/index.js";

/**
 * Where training times fall: the logistic of a standard normal; evenly in [0, 1); or evenly in [{@link MIN_TIME}, 1),
 * which are the times that the sampler asks for.
 */
export type TimeDistribution = "logit-normal" | "uniform" | "uniform-clipped";

/** The model time of pure noise in sampling, and the least one of `uniform-clipped`. */
export const MIN_TIME = 1e-3;

/** The velocity (B, …) at state x (B, …) and time t (B) f32. */
export type Velocity = (x: Tensor, t: Tensor) => Tensor;

/**
 * Training times (batch) f32, a pure function of the key.
 * @throws {LtxError} `invalid_argument` for an unknown distribution.
 */
export function sampleTimes(
  batch: number,
  distribution: TimeDistribution,
  key: RandomKey,
  options: { device?: Device } = {},
): Tensor {
  return scope(() => {
    switch (distribution) {
      case "logit-normal":
        return sigmoid(normal([batch], key, options));
      case "uniform":
        return uniform([batch], key, options);
      case "uniform-clipped":
        return affine(uniform([batch], key, options), 1 - MIN_TIME, MIN_TIME);
      default:
        throw new LtxError(
          "invalid_argument",
          `[rectified flow] unknown time distribution ${JSON.stringify(distribution)}: expected logit-normal, uniform or uniform-clipped`,
        );
    }
  });
}

/** x_t (B, …) of x0, noise (B, …) and t (B) f32. No gradient flows to t. */
export function addNoise(x0: Tensor, noise: Tensor, t: Tensor): Tensor {
  return scope(() => mixRows(x0, noise, t, affine(t, -1, 1)));
}

/** What the model should answer on the line from noise to x0: x0 - noise. */
export const velocityTarget = (x0: Tensor, noise: Tensor): Tensor => sub(x0, noise);

/** The squared error, averaged over each sample's values: (B) f32. */
export function velocityError(velocity: Tensor, target: Tensor): Tensor {
  return pairLoss("l2", velocity, target, target.size ? target.shape[0] / target.size : 0);
}

export interface FlowLossOptions {
  distribution: TimeDistribution;
  timeKey: RandomKey;
  noiseKey: RandomKey;
}

/**
 * The training loss (1) f32 of x0 (B, …) at times and noises that are pure functions of their keys: the mean over samples
 * of {@link velocityError}.
 */
export function flowLoss(velocity: Velocity, x0: Tensor, options: FlowLossOptions): Tensor {
  const { device } = x0;
  return scope(() => {
    const t = sampleTimes(x0.shape[0], options.distribution, options.timeKey, { device });
    return flowLossAt(velocity, x0, t, normal(x0.shape, options.noiseKey, { device }));
  });
}

/** {@link flowLoss} at given times t (B) f32 and noise (B, …). */
export function flowLossAt(velocity: Velocity, x0: Tensor, t: Tensor, noise: Tensor): Tensor {
  return scope(() => mean(velocityError(velocity(addNoise(x0, noise, t), t), velocityTarget(x0, noise))));
}
