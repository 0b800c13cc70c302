import { checkOptions, finite, integer, show } from "../arguments.js";
import { check } from "../errors.js";
import { checkOperands, empty, launch, record, type Shape, type Tensor, type TensorOptions } from "../tensor/index.js";

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
  checkOptions("random", key, ["seed", "step", "purpose"]);
  const valid = (v: number, limit: number) => Number.isSafeInteger(v) && v >= 0 && v < limit;
  check(valid(key.seed, 2 ** 53) && valid(key.step, 2 ** 32) && valid(key.purpose, 2 ** 32), "invalid_argument", () => {
    return `[random] seed ${show(key.seed)} (below 2^53), step ${show(key.step)} and purpose ${show(key.purpose)} (below 2^32) must be non-negative integers`;
  });
  return [key.seed, key.step, key.purpose];
}

function drawn(op: string, shape: Shape, key: RandomKey, options: TensorOptions): Tensor {
  const words = keyed(key);
  const y = empty(shape, options);
  launch(op, [y], words);
  return y;
}

/** Standard normal values. */
export function normal(shape: Shape, key: RandomKey, options: TensorOptions = {}): Tensor {
  return drawn("normal", shape, key, options);
}

/** Uniform values in [0, 1). */
export function uniform(shape: Shape, key: RandomKey, options: TensorOptions = {}): Tensor {
  return drawn("uniform", shape, key, options);
}

/**
 * Timestep features: t (N) f32 to (N, dim) = [cos(t·f), sin(t·f)], f_i = maxPeriod^(-i / (dim/2)).
 */
export function sinusoid(t: Tensor, dim: number, maxPeriod = 10000): Tensor {
  checkOperands("sinusoid", { t });
  integer("sinusoid", "dim", dim, 0);
  check(
    dim % 2 === 0 && t.dtype === "f32",
    "invalid_argument",
    () => `[sinusoid] needs f32 times and an even width, got ${t.dtype}, ${dim}`,
  );
  finite("sinusoid", "maxPeriod", maxPeriod, Number.MIN_VALUE);
  const y = empty([t.size, dim], { device: t.device });
  launch("sinusoid", [t, y], [maxPeriod]);
  return record("sinusoid", y, [t], [t], (grad) => {
    const dt = empty(t.shape, { device: t.device });
    launch("sinusoid_backward", [t, grad, dt], [maxPeriod]);
    return [dt];
  });
}
