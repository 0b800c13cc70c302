import { choice, number } from "../arguments.js";
import { check } from "../errors.js";
import { checkFloats, empty, launch, record, type Shape, type Tensor } from "../tensor/index.js";
import { Loss, type LossKind, Reduce } from "./enums.js";

const perSample = (x: Tensor, samples: number): Shape => [samples, samples ? x.size / samples : 0];

function reduced(kind: keyof typeof Reduce, x: Tensor, samples: number, scale: number, shape: Shape): Tensor {
  const y = empty(shape, { device: x.device });
  const flat = perSample(x, samples);
  const scalars = [Reduce[kind], scale];
  launch(
    "reduce",
    [
      [x, flat],
      [y, [samples]],
    ],
    scalars,
  );
  return record(kind, y, [x], kind === "sum" ? [] : [x], (grad) => {
    const dx = empty(x.shape, { dtype: x.dtype, device: x.device });
    // The sum's backward reads only the shape of x, so its own output stands in.
    const source = kind === "sum" ? dx : x;
    launch(
      "reduce_backward",
      [
        [source, flat],
        [grad, [samples]],
        [dx, flat],
      ],
      scalars,
    );
    return [dx];
  });
}

/** The sum of all values, f32 (1). */
export function sum(x: Tensor): Tensor {
  checkFloats("sum", { x });
  return reduced("sum", x, 1, 1, [1]);
}

/** The mean of all values, f32 (1). */
export function mean(x: Tensor): Tensor {
  checkFloats("mean", { x });
  return reduced("sum", x, 1, x.size ? 1 / x.size : 0, [1]);
}

/** The sum over each sample: x (B, …) to (B) f32. */
export function sumSamples(x: Tensor): Tensor {
  const samples = samplesOf("sum_samples", x);
  return reduced("sum", x, samples, 1, [samples]);
}

/** The mean over each sample: x (B, …) to (B) f32. */
export function meanSamples(x: Tensor): Tensor {
  const samples = samplesOf("mean_samples", x);
  return reduced("sum", x, samples, x.size ? samples / x.size : 0, [samples]);
}

/** The sum of squares of all values, f32 (1). */
export function sumSquares(x: Tensor): Tensor {
  checkFloats("sum_squares", { x });
  return reduced("sum_squares", x, 1, 1, [1]);
}

function samplesOf(op: string, x: Tensor): number {
  checkFloats(op, { x });
  check(x.dims > 0, "shape_mismatch", () => `[${op}] expects (B,…), got [${x.shape}]`);
  return x.shape[0];
}

/**
 * scale · Σ |a - b| (l1) or scale · Σ (a - b)² (l2) over each sample: a, b (B, …) to (B) f32.
 */
export function pairLoss(kind: LossKind, a: Tensor, b: Tensor, scale = 1): Tensor {
  const code = choice("pair_loss", "kind", kind, Loss);
  const samples = samplesOf("pair_loss", a);
  checkFloats("pair_loss", { a, b });
  number("pair_loss", "scale", scale);
  check(
    a.size === b.size,
    "shape_mismatch",
    () => `[pair_loss] operands differ in shape: [${a.shape}] and [${b.shape}]`,
  );
  const flat = perSample(a, samples);
  const scalars = [code, scale];
  const y = empty([samples], { device: a.device });
  launch("pair_loss", [[a, flat], [b, flat], y], scalars);
  const toward = (from: Tensor, to: Tensor, grad: Tensor): Tensor => {
    const d = empty(from.shape, { dtype: from.dtype, device: from.device });
    launch("pair_loss_backward", [[from, flat], [to, flat], grad, [d, flat]], scalars);
    return d;
  };
  // Both losses are symmetric, so the gradient of b is that of a with the roles exchanged.
  return record("pair_loss", y, [a, b], [a, b], (grad, needs) => [
    needs[0] ? toward(a, b, grad) : null,
    needs[1] ? toward(b, a, grad) : null,
  ]);
}
