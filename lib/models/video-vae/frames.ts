import { check } from "../../errors.js";
import { concatLast, reshape, sliceLast } from "../../ops/index.js";
import { scope, type Tensor } from "../../tensor/index.js";

/**
 * A video (B,F,H,W,C) with `count` frames: its first ones, or the whole video end to end as often as it takes (reference
 * CausalVideoAutoencoder.encode); x itself where the count is right.
 * @throws {LtxError} `shape_mismatch` when there is no frame to repeat, `invalid_argument` for an impossible count.
 */
export function fitFrames(x: Tensor, count: number): Tensor {
  const [batch, frames, height, width, channels] = x.shape;
  check(x.dims === 5 && frames > 0, "shape_mismatch", () => {
    return `[video vae] expects a video (B,F,H,W,C) of one frame or more, got [${x.shape}]`;
  });
  check(Number.isInteger(count) && count > 0, "invalid_argument", () => {
    return `[video vae] a number of frames must be a positive whole number, got ${count}`;
  });
  if (count === frames) return x;
  return scope(() => {
    const frame = height * width * channels;
    const clip = reshape(x, [batch, frames * frame]);
    let long = clip;
    while (long.shape[1] < count * frame) long = concatLast(long, clip);
    return reshape(sliceLast(long, 0, count * frame), [batch, count, height, width, channels]);
  });
}
