import { check } from "../errors.js";
import { empty, launch, record, type Shape, type Tensor, type TensorOptions } from "../tensor/index.js";

/**
 * Names a stream of random numbers: the values are a pure function of these three and the element's index, the same on
 * every device (Philox 4×32-10).
 */
export interface RandomKey {
  seed: number;
  step: number;
  purpose: number;
}

function keyed(key: RandomKey): number[] {
  const valid = (v: number, limit: number) => Number.isSafeInteger(v) && v >= 0 && v < limit;
  check(valid(key.seed, 2 ** 53) && valid(key.step, 2 ** 32) && valid(key.purpose, 2 ** 32), "invalid_argument", () => {
    return `[random] seed ${key.seed} (below 2^53), step ${key.step} and purpose ${key.purpose} (below 2^32) must be non-negative integers`;
  });
  return [key.seed, key.step, key.purpose];
}

/** Standard normal values. */
export function normal(shape: Shape, key: RandomKey, options: TensorOptions = {}): Tensor {
  const y = empty(shape, options);
  launch("normal", [y], keyed(key));
  return y;
}

/** Uniform values in [0, 1). */
export function uniform(shape: Shape, key: RandomKey, options: TensorOptions = {}): Tensor {
  const y = empty(shape, options);
  launch("uniform", [y], keyed(key));
  return y;
}

/**
 * Timestep features: t (N) f32 to (N, dim) = [cos(t·f), sin(t·f)], f_i = maxPeriod^(-i / (dim/2)).
 */
export function sinusoid(t: Tensor, dim: number, maxPeriod = 10000): Tensor {
  check(
    dim % 2 === 0 && t.dtype === "f32",
    "invalid_argument",
    () => `[sinusoid] needs f32 times and an even width, got ${t.dtype}, ${dim}`,
  );
  const y = empty([t.size, dim], { device: t.device });
  launch("sinusoid", [t, y], [maxPeriod]);
  return record("sinusoid", y, [t], [t], (grad) => {
    const dt = empty(t.shape, { device: t.device });
    launch("sinusoid_backward", [t, grad, dt], [maxPeriod]);
    return [dt];
  });
}
