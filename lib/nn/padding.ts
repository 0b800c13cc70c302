import { check } from "../errors.js";
import { concatLast, reshape, sliceLast } from "../ops/index.js";
import { scope, sizeOf, type Tensor } from "../tensor/index.js";

/** What a convolution sees beyond the edges of height and width. */
export type SpatialPadding = "zeros" | "replicate" | "reflect";

/** Repeats the first slice of a dimension `front` times before it and the last one `back` times behind it; a copy. */
export function replicateEdges(x: Tensor, axis: number, front: number, back: number): Tensor {
  const length = x.shape[axis];
  check(length > 0, "shape_mismatch", () => `[padding] dimension ${axis} of [${x.shape}] has nothing to repeat`);
  return extend(x, axis, Array(front).fill(0), Array(back).fill(length - 1));
}

/** Adds a dimension's mirror images at both ends, the outermost slices being the mirrors and not repeated; a copy. */
export function reflectEdges(x: Tensor, axis: number, front: number, back: number): Tensor {
  const length = x.shape[axis];
  check(length > Math.max(front, back), "shape_mismatch", () => {
    return (
      `[padding] reflecting ${Math.max(front, back)} of dimension ${axis} of [${x.shape}] needs ` +
      `${Math.max(front, back) + 1} or more: take a larger size`
    );
  });
  const mirrored = (count: number, at: (i: number) => number) => Array.from({ length: count }, (_, i) => at(i + 1));
  return extend(
    x,
    axis,
    mirrored(front, (i) => i),
    mirrored(back, (i) => length - 1 - i),
  );
}

/** Copies of slices around a dimension: those listed in `front` before it and in `back` behind it, from inside out. */
function extend(x: Tensor, axis: number, front: readonly number[], back: readonly number[]): Tensor {
  if (front.length + back.length === 0) return x;
  return scope(() => {
    const length = x.shape[axis];
    const slice = sizeOf(x.shape.slice(axis + 1));
    const rows = reshape(x, [sizeOf(x.shape.slice(0, axis)), length * slice]);
    const at = (i: number) => sliceLast(rows, i * slice, slice);
    let y = rows;
    const step = (next: Tensor) => {
      if (y !== rows) y.dispose(); // the tape, if any, holds what it needs
      y = next;
    };
    for (const i of front) step(concatLast(at(i), y));
    for (const i of back) step(concatLast(y, at(i)));
    return reshape(
      y,
      x.shape.map((size, i) => (i === axis ? size + front.length + back.length : size)),
    );
  });
}
