import { check } from "../errors.js";
import { add, full, mul, reshape, sliceFirst, sub, zeros } from "../ops/index.js";
import { launch, noGrad, scope, type Tensor } from "../tensor/index.js";

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

/** The velocity with that of the held frames replaced by x0 - noise: they keep to t·x0 + (1 - t)·noise at every time t. */
export const heldVelocity = (velocity: Tensor, { target, free }: HeldFrames): Tensor =>
  scope(() => add(mul(velocity, free), target));

/** `state` with the held frames of `before`. */
export const keepHeld = (state: Tensor, before: Tensor, { free }: HeldFrames): Tensor =>
  scope(() => add(before, mul(sub(state, before), free)));
