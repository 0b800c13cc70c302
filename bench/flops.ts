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

/** Floating-point operations by kind of layer: 2 for each multiplication with its addition. */
export interface Flops {
  linear: number;
  conv3d: number;
  attention: number;
}

export const totalFlops = ({ linear, conv3d, attention }: Flops): number => linear + conv3d + attention;

/** Of the matrix products, convolutions and attention in `body`, a forward pass. */
export async function countFlops(body: () => Promise<unknown>): Promise<Flops> {
  const flops = { linear: 0, conv3d: 0, attention: 0 };
  const ends = [
    spy(Linear.prototype, (layer, [x]) => {
      flops.linear += 2 * x.size * layer.weight.shape[0];
    }),
    spy(Conv3d.prototype, (layer, _, y) => {
      flops.conv3d += (2 * y.size * layer.weight.size) / layer.weight.shape[0];
    }),
    spy(Attention.prototype, (_, [x, context]) => {
      flops.attention += 4 * x.size * context.shape[1];
    }),
  ];
  try {
    await body();
  } finally {
    for (const end of ends) end();
  }
  return flops;
}

/** How often the backward op of a kind does the work of its forward op; attention's computes its scores once more. */
const BACKWARD = { attention: 2.5, linear: 1, conv3d: 1 } as const;

/**
 * Of all calls of the op `name` in a step whose forward pass has `flops`; undefined for ops that only move bytes. In
 * training it is an upper bound: the first layers need no gradient of their input.
 */
export function opFlops(name: string, flops: Flops): number | undefined {
  for (const kind of ["linear", "conv3d", "attention"] as const) {
    if (name === kind) return flops[kind];
    if (name.startsWith(`${kind}_backward`)) return BACKWARD[kind] * flops[kind];
  }
  return undefined;
}
