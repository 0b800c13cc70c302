import { checkOptions, choice, flag, integer, integers, listed, show } from "../arguments.js";
import { check } from "../errors.js";
import {
  alias,
  checkFloats,
  checkOperands,
  empty,
  launch,
  record,
  type Shape,
  scope,
  type Tensor,
} from "../tensor/index.js";
import { PatchOrder } from "./enums.js";

export interface DepthToSpaceOptions {
  /** (time, height, width). */
  stride: readonly [number, number, number];
  /** Which offset inside a patch is slowest behind the channel: see enums. */
  order?: keyof typeof PatchOrder;
  /** Leave the first frame out (where time is doubled). */
  dropFirst?: boolean;
  /** Repeat the resulting channels as a whole that many times. */
  repeat?: number;
}

function checkStride(op: string, stride: unknown): void {
  check(integers(stride, 3, 1), "invalid_argument", () => {
    return `[${op}] stride is ${listed(stride)}, expected 3 whole numbers of at least 1`;
  });
}

/** Whether `count` places from `start` on are among `size`. */
const within = (start: number, count: number, size: number): boolean =>
  Number.isSafeInteger(start) && Number.isSafeInteger(count) && start >= 0 && count >= 0 && start + count <= size;

const range = (start: unknown, count: unknown): string =>
  typeof start === "number" && typeof count === "number"
    ? `${start}…${start + count}`
    : `from ${show(start)} on, ${show(count)} of them,`;

/**
 * Moves channels into space and time: x (B,F,H,W,C·prod(stride)) to (B, F·t - drop, H·h, W·w, C·repeat).
 */
export function depthToSpace(x: Tensor, options: DepthToSpaceOptions): Tensor {
  checkFloats("depth_to_space", { x });
  checkOptions("depth_to_space", options, ["stride", "order", "dropFirst", "repeat"]);
  const { stride, order = "time_height_width", dropFirst = false, repeat = 1 } = options;
  checkStride("depth_to_space", stride);
  const code = choice("depth_to_space", "order", order, PatchOrder);
  flag("depth_to_space", "dropFirst", dropFirst);
  integer("depth_to_space", "repeat", repeat, 1);
  const [b, f, h, w, c] = x.shape;
  const patch = stride[0] * stride[1] * stride[2];
  check(x.dims === 5 && c % patch === 0, "shape_mismatch", () => {
    return `[depth_to_space] ${c} channels do not divide by the stride ${stride.join("·")} (input shape [${x.shape}])`;
  });
  const shape: Shape = [b, f * stride[0] - (dropFirst ? 1 : 0), h * stride[1], w * stride[2], (c / patch) * repeat];
  return move("depth_to_space", "space_to_depth", x, shape, [...stride, code, dropFirst ? 1 : 0, repeat]);
}

/** The inverse: x (B, F·t, H·h, W·w, C) to (B,F,H,W,C·prod(stride)). */
export function spaceToDepth(x: Tensor, options: Pick<DepthToSpaceOptions, "stride" | "order">): Tensor {
  checkFloats("space_to_depth", { x });
  checkOptions("space_to_depth", options, ["stride", "order"]);
  const { stride, order = "time_height_width" } = options;
  checkStride("space_to_depth", stride);
  const code = choice("space_to_depth", "order", order, PatchOrder);
  const [b, f, h, w, c] = x.shape;
  check(x.dims === 5 && f % stride[0] === 0 && h % stride[1] === 0 && w % stride[2] === 0, "shape_mismatch", () => {
    return `[space_to_depth] input [${x.shape}] does not divide by the stride (${stride})`;
  });
  const shape: Shape = [b, f / stride[0], h / stride[1], w / stride[2], c * stride[0] * stride[1] * stride[2]];
  return move("space_to_depth", "depth_to_space", x, shape, [...stride, code, 0, 1]);
}

/** (B, M, N) to (B, N, M), e.g. channels first to channels last. */
export function transpose(x: Tensor): Tensor {
  checkFloats("transpose", { x });
  const [b, m, n] = x.shape;
  check(x.dims === 3, "shape_mismatch", () => `[transpose] expects (B,M,N), got [${x.shape}]`);
  return move("transpose", "transpose", x, [b, n, m], []);
}

/** Columns start … start + count of the last dimension. */
export function sliceLast(x: Tensor, start: number, count: number): Tensor {
  checkFloats("slice", { x });
  const columns = x.shape[x.dims - 1];
  check(within(start, count, columns), "shape_mismatch", () => {
    return `[slice] columns ${range(start, count)} of ${columns} (input shape [${x.shape}])`;
  });
  return move("slice_last", "slice_last_backward", x, [...x.shape.slice(0, -1), count], [start]);
}

/**
 * The columns of a, then those of b: (…, Ca), (…, Cb) to (…, Ca + Cb).
 * @throws {LtxError} `shape_mismatch` when leading dimensions differ, `dtype_mismatch`.
 */
export function concatLast(a: Tensor, b: Tensor): Tensor {
  checkFloats("concat", { a, b });
  const rows = a.shape.slice(0, -1);
  check(a.dims > 0 && a.dims === b.dims && rows.join() === b.shape.slice(0, -1).join(), "shape_mismatch", () => {
    return `[concat] operands differ in more than the last dimension: [${a.shape}] and [${b.shape}]`;
  });
  check(a.dtype === b.dtype, "dtype_mismatch", () => `[concat] operands are ${a.dtype} and ${b.dtype}`);
  const [left, right] = [a.shape[a.dims - 1], b.shape[b.dims - 1]];
  const y = empty([...rows, left + right], { dtype: a.dtype, device: a.device });
  launch("concat_last", [a, b, y]);
  return record("concat", y, [a, b], [], (grad, needs) => [
    needs[0] ? sliceLast(grad, 0, left) : null,
    needs[1] ? sliceLast(grad, left, right) : null,
  ]);
}

/** Samples start … start + count of the first dimension; the same memory. No gradient flows back. */
export function sliceFirst(x: Tensor, start: number, count: number): Tensor {
  checkOperands("slice", { x });
  check(!x.tracked, "invalid_argument", () => "[slice] samples of a tracked tensor can't be taken: detach it first");
  check(within(start, count, x.shape[0]), "shape_mismatch", () => {
    return `[slice] samples ${range(start, count)} of ${x.shape[0]}`;
  });
  return alias(x, [count, ...x.shape.slice(1)], x.shape[0] ? start * (x.size / x.shape[0]) : 0);
}

/** Video at the public border: (B,C,F,H,W) to channels last (B,F,H,W,C). */
export function toChannelsLast(x: Tensor): Tensor {
  checkFloats("to_channels_last", { x });
  const [b, c, f, h, w] = x.shape;
  check(x.dims === 5, "shape_mismatch", () => `[to_channels_last] expects (B,C,F,H,W), got [${x.shape}]`);
  return scope(() => view(transpose(view(x, [b, c, f * h * w])), [b, f, h, w, c]));
}

/** Channels last (B,F,H,W,C) to the public (B,C,F,H,W). */
export function toChannelsFirst(x: Tensor): Tensor {
  checkFloats("to_channels_first", { x });
  const [b, f, h, w, c] = x.shape;
  check(x.dims === 5, "shape_mismatch", () => `[to_channels_first] expects (B,F,H,W,C), got [${x.shape}]`);
  return scope(() => view(transpose(view(x, [b, f * h * w, c])), [b, c, f, h, w]));
}

function view(x: Tensor, shape: Shape): Tensor {
  return record("view", alias(x, shape), [x], [], (grad) => [alias(grad, x.shape)]);
}

/** An index map and its adjoint, which is its backward. */
function move(op: string, adjoint: string, x: Tensor, shape: Shape, scalars: number[]): Tensor {
  const y = empty(shape, { dtype: x.dtype, device: x.device });
  launch(op, [x, y], scalars);
  return record(op, y, [x], [], (grad) => {
    const dx = empty(x.shape, { dtype: x.dtype, device: x.device });
    launch(adjoint, [grad, dx], scalars);
    return [dx];
  });
}
