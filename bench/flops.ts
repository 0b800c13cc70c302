import { Attention } from "../lib/models/transformer/index.js";
import { Conv3d, Linear } from "../lib/nn/index.js";
import type { Tensor } from "../lib/tensor/index.js";

/** Lets `visit` see each forward call of a class from now on; @returns what ends it. */
function spy<T extends object>(prototype: T, visit: (self: T, args: Tensor[], y: Tensor) => void): () => void {
  const target = prototype as { forward(...args: never[]): Tensor };
  const { forward } = target;
  target.forward = function (this: T, ...args: never[]) {
    const y = forward.apply(this, args);
    visit(this, args, y);
    return y;
  } as typeof forward;
  return () => {
    target.forward = forward;
  };
}

/**
 * Floating-point operations of the matrix products, convolutions and attention scores in `body`, a forward pass and what
 * it is part of: 2 for each multiplication with its addition. A training step has about three times as many.
 */
export async function countFlops(body: () => Promise<unknown>): Promise<number> {
  let flops = 0;
  const ends = [
    spy(Linear.prototype, (layer, [x]) => {
      flops += 2 * x.size * layer.weight.shape[0];
    }),
    spy(Conv3d.prototype, (layer, _, y) => {
      flops += (2 * y.size * layer.weight.size) / layer.weight.shape[0];
    }),
    spy(Attention.prototype, (_, [x, context]) => {
      flops += 4 * x.size * context.shape[1];
    }),
  ];
  await body();
  for (const end of ends) end();
  return flops;
}
