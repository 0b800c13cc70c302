import { check } from "../errors.js";
import { axpby, sliceFirst } from "../ops/index.js";
import { empty, launch, scope, type Tensor } from "../tensor/index.js";
import type { Velocity } from "./rectified-flow.js";

/** Samples of several tensors (B_i, …) of one shape and dtype behind one another. No gradient flows back. */
export function joinSamples(parts: readonly Tensor[]): Tensor {
  check(parts.length > 0, "invalid_argument", () => "[join] expects one tensor or more, got none");
  const [{ shape, dtype, device }] = parts;
  const batch = parts.reduce((n, part) => n + part.shape[0], 0);
  check(
    parts.every((p) => p.shape.slice(1).join() === shape.slice(1).join() && p.dtype === dtype),
    "shape_mismatch",
    () => {
      return `[join] samples differ: ${parts.join(", ")}`;
    },
  );
  return scope(() => {
    const joined = empty([batch, ...shape.slice(1)], { dtype, device });
    let start = 0;
    for (const part of parts) {
      launch("cast", [part, sliceFirst(joined, start, part.shape[0])], [1, 0]);
      start += part.shape[0];
    }
    return joined;
  });
}

/**
 * Classifier-free guidance, vu + weight·(vc - vu), from one forward pass over twice the batch: of the 2B samples that
 * `velocity` then gets, the first B are to be answered with their prompts, the last B with the empty one. A weight of
 * null or 1 is no guidance: `velocity` itself, with B samples.
 * @throws {LtxError} `invalid_argument` for a weight that is no finite number.
 */
export function guided(velocity: Velocity, weight: number | null = null): Velocity {
  if (weight === null || weight === 1) return velocity;
  check(Number.isFinite(weight), "invalid_argument", () => `[guidance] expects a finite number or null, got ${weight}`);
  return (x, t) =>
    scope(() => {
      const batch = x.shape[0];
      const v = velocity(joinSamples([x, x]), joinSamples([t, t]));
      return axpby(weight, sliceFirst(v, 0, batch), 1 - weight, sliceFirst(v, batch, batch));
    });
}
