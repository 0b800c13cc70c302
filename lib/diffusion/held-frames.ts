import { check } from "../errors.js";
import { add, full, mul, reshape, sliceFirst, zeros } from "../ops/index.js";
import { launch, noGrad, scope, type Tensor } from "../tensor/index.js";
import type { Velocity } from "./rectified-flow.js";

/** Frames of a state that sampling may not choose. Both are of the state's shape (B, f, …) f32 and the caller's to free. */
export interface HeldFrames {
  /** Their way from noise to data, x0 - noise, and 0 in all other frames. */
  target: Tensor;
  /** 0 in them, 1 in all other frames. */
  free: Tensor;
}

/**
 * Holds the first k frames of a state (B, f, …) to `known` (B, k, …) f32, the data that they are to become. `start` is
 * the noise that sampling starts from.
 * @throws {LtxError} `shape_mismatch` when `known` is not the beginning of a state of start's shape.
 */
export function holdFrames(start: Tensor, known: Tensor): HeldFrames {
  const [batch, frames, ...rest] = start.shape;
  const held = known.shape[1];
  const fits = known.shape[0] === batch && held <= frames && known.shape.slice(2).join() === rest.join();
  check(fits, "shape_mismatch", () => {
    return `[held frames] [${known.shape}] is not the beginning of a state [${start.shape}]`;
  });
  return noGrad(() =>
    scope(() => {
      const target = zeros(start.shape, { device: start.device });
      const free = full(start.shape, 1, { device: start.device });
      const first = (x: Tensor, sample: number) =>
        sliceFirst(reshape(x, [x.shape[0] * x.shape[1], ...rest]), sample * x.shape[1], held);
      for (let sample = 0; sample < batch; sample++) {
        launch("axpby", [first(known, sample), first(start, sample), first(target, sample)], [1, -1]);
        launch("fill", [first(free, sample)], [0]);
      }
      return { target, free };
    }),
  );
}

/**
 * The velocity with that of the held frames replaced by x0 - noise. Euler steps along it keep them at t·x0 + (1 - t)·noise
 * at every time t, which is what setting them anew before each step would do (Lugmayr et al., "RePaint", CVPR 2022,
 * without its resampling): the other frames are denoised beside them and grow out of them.
 */
export function withHeldFrames(velocity: Velocity, { target, free }: HeldFrames): Velocity {
  return (x, t) => scope(() => add(mul(velocity(x, t), free), target));
}
