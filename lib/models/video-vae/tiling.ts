/** Decoding by the plan of {@link planDecode}. */
import { check } from "../../errors.js";
import { cast, concatLast, detach, type RandomKey, reshape, sliceFirst, sliceLast } from "../../ops/index.js";
import { alias, empty, launch, noGrad, type Shape, scope, sizeOf, type Tensor } from "../../tensor/index.js";
import { through } from "./blocks.js";
import type { Decoder } from "./decoder.js";
import { NoisePlanes, NoiseWindow, type Range } from "./noise.js";
import { cut, type Part, type TilePlan } from "./tile-plan.js";

/** A tile's parts of the frames, the rows and the columns. */
type Tile = readonly [frames: Part, rows: Part, columns: Part];

/**
 * What `decoder.forward` gives of latents (B,f,h,w,C), in f32 and without gradients: sample by sample, tile by tile, to
 * within the rounding of kernels that run on other sizes.
 * @param noise for decoders that inject noise
 * @throws {LtxError} `invalid_argument` for a plan that isn't this decoder's
 */
export function decodeTiled(
  decoder: Decoder,
  latents: Tensor,
  timestep: Tensor | null,
  noise: readonly Tensor[] | RandomKey | null,
  plan: TilePlan,
): Tensor {
  check(plan.from <= decoder.up_blocks.length && plan.parts.every((n) => n >= 1), "invalid_argument", () => {
    return `[video vae] a plan from block ${plan.from} in ${plan.parts} parts is not one of this decoder`;
  });
  const z = detach(latents);
  const [batch, ...grid] = z.shape;
  const [frames, rows, columns] = ([0, 1, 2] as const).map((axis) =>
    cut(decoder.config, axis, grid[axis], plan.from, plan.parts[axis]),
  );
  const size = [frames, rows, columns].map((parts) => parts[parts.length - 1].core[1]);
  return noGrad(() =>
    scope(() => {
      const video = empty([batch, ...size, decoder.config.out_channels], { device: z.device });
      const line = sizeOf(video.shape.slice(3));
      for (let sample = 0; sample < batch; sample++) {
        scope(() => {
          const tile = tiles(decoder, one(z, sample), timestep && one(timestep, sample), noise, plan.from);
          for (const [f, r] of frames.flatMap((f) => rows.map((r) => [f, r] as const))) {
            scope(() => {
              const band = columns.map((c) => tile([f, r, c])).reduce(beside);
              const [, count, ...rest] = band.shape;
              const plane = sizeOf(rest);
              for (let i = 0; i < count; i++) {
                // A band's part of one frame lies in one piece in the video.
                const offset = ((sample * size[0] + f.core[0] + i) * size[1] + r.core[0]) * line;
                launch("cast", [alias(band, [plane], i * plane), alias(video, [plane], offset)], [1, 0]);
              }
            });
          }
        });
      }
      return video;
    }),
  );
}

const one = (x: Tensor, sample: number): Tensor => sliceFirst(x, sample, 1);

/** The function that decodes one tile of a sample; what all tiles have in common is computed at once. */
function tiles(
  decoder: Decoder,
  z: Tensor,
  timestep: Tensor | null,
  noise: readonly Tensor[] | RandomKey | null,
  from: number,
): (tile: Tile) => Tensor {
  const planes = noise && new NoisePlanes(noise);
  const context = decoder.context(z, timestep, planes);
  const head = decoder.blocks(decoder.begin(z), 0, from, context);
  const [, , height, width] = head.shape;
  return ([frames, rows, columns]) =>
    scope(() => {
      const own = planes && new NoiseWindow(planes, [height, width], rows.input, columns.input);
      const input = crop(head, [frames.input, rows.input, columns.input]);
      const tile = { ...context, noise: own };
      const y = decoder.end(decoder.blocks(input, from, decoder.up_blocks.length, tile), tile);
      const kept = [frames, rows, columns].map(({ core, offset }): Range => [core[0] - offset, core[1] - offset]);
      return crop(cast(y, "f32"), kept);
    });
}

/** The positions [from, to) of a single sample (1,F,H,W,C) along its frames, rows and columns. */
function crop(x: Tensor, [frames, rows, columns]: readonly Range[]): Tensor {
  const [, , height, width, channels] = x.shape;
  const count = frames[1] - frames[0];
  let y = sliceFirst(reshape(x, x.shape.slice(1)), frames[0], count);
  y = columnsOf(y, [count, height * width * channels], rows, width * channels);
  y = columnsOf(y, [count * (rows[1] - rows[0]), width * channels], columns, channels);
  return reshape(y, [1, count, rows[1] - rows[0], columns[1] - columns[0], channels]);
}

/** Runs [from, to) of `size` columns each; x itself under another shape where these are all. */
function columnsOf(x: Tensor, shape: Shape, [from, to]: Range, size: number): Tensor {
  const matrix = reshape(x, shape);
  return (to - from) * size === shape[1] ? matrix : sliceLast(matrix, from * size, (to - from) * size);
}

/** Two tiles of the same frames and rows beside each other; they are freed. */
function beside(left: Tensor, right: Tensor): Tensor {
  const [batch, frames, rows, width, channels] = left.shape;
  const lines = (x: Tensor) => reshape(x, [batch * frames * rows, x.shape[3] * channels]);
  const joined = through(left, (left) => through(right, (right) => concatLast(lines(left), lines(right))));
  return reshape(joined, [batch, frames, rows, width + right.shape[3], channels]);
}
