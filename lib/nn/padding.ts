import { check } from "../errors.js";
import { concatLast, reshape, sliceLast } from "../ops/index.js";
import { scope, sizeOf, type Tensor } from "../tensor/index.js";

/** Repeats the first slice of a dimension `front` times before it and the last one `back` times behind it; a copy. */
export function replicateEdges(x: Tensor, axis: number, front: number, back: number): Tensor {
  const length = x.shape[axis];
  check(length > 0, "shape_mismatch", () => `[padding] dimension ${axis} of [${x.shape}] has nothing to repeat`);
  if (front + back === 0) return x;
  return scope(() => {
    const slice = sizeOf(x.shape.slice(axis + 1));
    const rows = reshape(x, [sizeOf(x.shape.slice(0, axis)), length * slice]);
    const [first, last] = [sliceLast(rows, 0, slice), sliceLast(rows, (length - 1) * slice, slice)];
    let y = rows;
    for (let i = 0; i < front; i++) y = concatLast(first, y);
    for (let i = 0; i < back; i++) y = concatLast(y, last);
    return reshape(
      y,
      x.shape.map((size, i) => (i === axis ? size + front + back : size)),
    );
  });
}
