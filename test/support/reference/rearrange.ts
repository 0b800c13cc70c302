import { type Arr, arr, at, generate } from "../arrays.js";

type Order = "time_height_width" | "time_width_height";

/** The channel that holds offset (t, h, w) of a patch of channel c. */
function patchChannel(c: number, [t, h, w]: number[], [pt, ph, pw]: readonly number[], order: Order): number {
  return order === "time_height_width" ? ((c * pt + t) * ph + h) * pw + w : ((c * pt + t) * pw + w) * ph + h;
}

export function depthToSpace(x: Arr, stride: readonly number[], order: Order, drop: boolean, repeat: number): Arr {
  const [b, f, h, w, c] = x.shape;
  const [pt, ph, pw] = stride;
  const narrow = c / (pt * ph * pw);
  return generate([b, f * pt - (drop ? 1 : 0), h * ph, w * pw, narrow * repeat], (n, t, y, z, channel) => {
    const frame = t + (drop ? 1 : 0);
    const inner = patchChannel(channel % narrow, [frame % pt, y % ph, z % pw], stride, order);
    return at(x, n, Math.floor(frame / pt), Math.floor(y / ph), Math.floor(z / pw), inner);
  });
}

export function spaceToDepth(x: Arr, stride: readonly number[], order: Order): Arr {
  const [b, f, h, w, c] = x.shape;
  const [pt, ph, pw] = stride;
  const y = arr([b, f / pt, h / ph, w / pw, c * pt * ph * pw]);
  for (let n = 0; n < b; n++) {
    for (let t = 0; t < f; t++) {
      for (let row = 0; row < h; row++) {
        for (let column = 0; column < w; column++) {
          for (let channel = 0; channel < c; channel++) {
            const inner = patchChannel(channel, [t % pt, row % ph, column % pw], stride, order);
            const cell = [n, Math.floor(t / pt), Math.floor(row / ph), Math.floor(column / pw), inner];
            y.data[cell.reduce((offset, i, d) => offset * y.shape[d] + i, 0)] = at(x, n, t, row, column, channel);
          }
        }
      }
    }
  }
  return y;
}

export const transpose = (x: Arr): Arr => generate([x.shape[0], x.shape[2], x.shape[1]], (b, i, j) => at(x, b, j, i));

export function sliceLast(x: Arr, start: number, count: number): Arr {
  const columns = x.shape[x.shape.length - 1];
  const shape = [...x.shape.slice(0, -1), count];
  const y = arr(shape);
  for (let i = 0; i < y.data.length; i++) y.data[i] = x.data[Math.floor(i / count) * columns + start + (i % count)];
  return y;
}

/** The columns of a, then those of b. */
export function concatLast(a: Arr, b: Arr): Arr {
  const [left, right] = [a.shape[a.shape.length - 1], b.shape[b.shape.length - 1]];
  const y = arr([...a.shape.slice(0, -1), left + right]);
  for (let i = 0; i < y.data.length; i++) {
    const row = Math.floor(i / (left + right));
    const column = i % (left + right);
    y.data[i] = column < left ? a.data[row * left + column] : b.data[row * right + column - left];
  }
  return y;
}

export function gatherRows(table: Arr, index: Arr): Arr {
  const width = table.data.length / table.shape[0];
  const y = arr([...index.shape, ...table.shape.slice(1)]);
  for (let i = 0; i < y.data.length; i++) {
    y.data[i] = table.data[index.data[Math.floor(i / width)] * width + (i % width)];
  }
  return y;
}
