/** Frames for tests. */
import type { Animation } from "../../lib/formats/images.js";

/** Slow waves of colour, which a codec keeps well. */
export function waves(frames: number, height: number, width: number): Animation {
  const data = new Uint8Array(frames * height * width * 3);
  for (let i = 0; i < data.length; i++) {
    const [c, x] = [i % 3, Math.floor(i / 3) % width];
    const [y, f] = [Math.floor(i / 3 / width) % height, Math.floor(i / 3 / width / height)];
    data[i] = Math.round(128 + 100 * Math.sin((x + 2 * f) / 9 + c) * Math.cos(y / 7));
  }
  return { data, frames, height, width, channels: 3 };
}

/** Frames of one byte each. */
export const flat = (frames: number, height: number, width: number, byte: number): Animation => ({
  data: new Uint8Array(frames * height * width * 3).fill(byte),
  frames,
  height,
  width,
  channels: 3,
});

/** Mean absolute difference in grey levels. */
export const distance = (a: Uint8Array, b: Uint8Array): number =>
  a.reduce((sum, value, i) => sum + Math.abs(value - b[i]), 0) / a.length;
