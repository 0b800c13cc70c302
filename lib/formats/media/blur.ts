/**
 * The blur of conditioning frames: a 3x3 Gaussian of sigma 1, in f32 from 0 to 1. At the edges the picture is mirrored
 * about its outermost pixels.
 */
import type { Picture } from "../images.js";
import { Turns } from "../turns.js";

/** Gaussian of sigma 1 on three pixels. */
const SIDE = Math.exp(-0.5) / (1 + 2 * Math.exp(-0.5));
const MIDDLE = 1 - 2 * SIDE;

/** What bytes are from 0 to 1. */
const UNIT = Float32Array.from({ length: 256 }, (_, byte) => byte / 255);

/**
 * Blurs bytes row by row, so that a large picture takes no more memory than three of its rows.
 * @param take gets each row's blurred values, (width, channels), in an array that the next row reuses
 */
export async function blurRows(
  { data, height, width, channels }: Picture,
  take: (row: Float32Array, y: number) => void,
  turns: Turns,
): Promise<void> {
  const size = width * channels;
  const across = (y: number, into: Float32Array): Float32Array => {
    const start = y * size;
    for (let i = 0; i < size; i++) into[i] = UNIT[data[start + i]];
    // A single pixel is its own mirror image.
    if (width === 1) return into;
    for (let c = 0; c < channels; c++) {
      let before = into[channels + c];
      for (let i = c; i < size; i += channels) {
        const here = into[i];
        const after = i + channels < size ? into[i + channels] : before;
        into[i] = MIDDLE * here + SIDE * (before + after);
        before = here;
      }
    }
    return into;
  };
  if (height === 1) return take(across(0, new Float32Array(size)), 0);
  let [above, here, below] = [1, 0, 1].map((y) => across(y, new Float32Array(size)));
  const out = new Float32Array(size);
  for (let y = 0; y < height; y++) {
    if (y > 0) {
      [above, here, below] = [here, below, above];
      if (y + 1 < height) across(y + 1, below);
      else below.set(above);
    }
    for (let i = 0; i < size; i++) out[i] = MIDDLE * here[i] + SIDE * (above[i] + below[i]);
    take(out, y);
    if (turns.due) await turns.next();
  }
}

/** `picture` blurred, from 0 to 1: (height, width, channels). */
export async function blur(
  picture: Picture,
  turns = new Turns("[media] blurring a picture"),
): Promise<Float32Array<ArrayBuffer>> {
  const result = new Float32Array(picture.height * picture.width * picture.channels);
  await blurRows(picture, (row, y) => result.set(row, y * row.length), turns);
  return result;
}

/** `picture` blurred, as bytes: what lies between two of them becomes the lower one, as PyTorch's `byte()` does. */
export async function blurBytes(picture: Picture, turns: Turns): Promise<Picture> {
  const data = new Uint8Array(picture.height * picture.width * picture.channels);
  await blurRows(
    picture,
    (row, y) => {
      // Rounded to f32 first: 3/255 * 255 is 3 there, and a little less in f64.
      for (let i = 0, at = y * row.length; i < row.length; i++) data[at++] = Math.fround(row[i] * 255);
    },
    turns,
  );
  return { ...picture, data };
}
