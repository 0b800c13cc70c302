/** What a decoded video is handed out as. */
import { check, stopIfAborted } from "../../errors.js";
import { resizeBilinear } from "../../formats/media/clip.js";
import { Turns } from "../../formats/turns.js";
import { reshape, sliceFirst } from "../../ops/index.js";
import { noGrad, Tensor } from "../../tensor/index.js";
import { Video } from "../video.js";
import type { Request } from "./request.js";

/** What a pipeline gives: clips of bytes, pixels (B, F, H, W, 3) f32 from 0 to 1, or normalised latents (B, f, h, w, C). */
export type OutputType = "video" | "tensor" | "latent";

/** @throws {LtxError} `invalid_argument` */
export function checkOutputType(outputType: OutputType): void {
  check(["video", "tensor", "latent"].includes(outputType), "invalid_argument", () => {
    return `[generate] outputType ${JSON.stringify(outputType)}: needs "video", "tensor" or "latent"`;
  });
}

/** Values between looks at the clock. */
const PIECE = 2 ** 16;

/**
 * Pixels (B, F, H, W, 3) around [-1, 1] as a video of the wanted size, or as a tensor of it, the caller's. They are read
 * frame by frame: a long video is large enough once.
 * @throws {LtxError} `aborted`, also when the signal comes with the last frame
 */
export async function handOut(
  pixels: Tensor,
  wanted: Pick<Request, "height" | "width" | "prompts" | "frameRate">,
  outputType: Exclude<OutputType, "latent">,
  signal?: AbortSignal,
): Promise<Video | Tensor> {
  const { height, width, prompts, frameRate } = wanted;
  const [batch, frames, ownHeight, ownWidth, channels] = pixels.shape;
  const size = height * width * channels;
  const asBytes = outputType === "video";
  const all = new (asBytes ? Uint8Array : Float32Array)(batch * frames * size);
  const turns = new Turns("[generate] handing out frames", signal);
  const rows = noGrad(() => reshape(pixels, [batch * frames, ownHeight, ownWidth, channels]));
  try {
    for (let i = 0; i < batch * frames; i++) {
      stopIfAborted(signal);
      const row = noGrad(() => sliceFirst(rows, i, 1));
      const data = await (row.read() as Promise<Float32Array>).finally(() => row.dispose());
      for (let from = 0; from < data.length; from += PIECE) {
        const end = Math.min(from + PIECE, data.length);
        for (let k = from; k < end; k++) data[k] = Math.min(1, Math.max(0, data[k] * 0.5 + 0.5));
        if (turns.due) await turns.next();
      }
      const own = { data, frames: 1, height: ownHeight, width: ownWidth, channels };
      const { data: frame } = await resizeBilinear(own, height, width, turns);
      if (!asBytes) all.set(frame, i * size);
      // Cut off, not rounded, as officially.
      for (let from = 0; asBytes && from < size; from += PIECE) {
        const end = Math.min(from + PIECE, size);
        for (let k = from; k < end; k++) all[i * size + k] = Math.trunc(frame[k] * 255);
        if (turns.due) await turns.next();
      }
    }
  } finally {
    rows.dispose();
  }
  stopIfAborted(signal);
  if (!asBytes) return Tensor.from(all, [batch, frames, height, width, channels], { device: pixels.device });
  const clips = Array.from({ length: batch }, (_, i) => {
    return (all as Uint8Array).subarray(i * frames * size, (i + 1) * frames * size);
  });
  return new Video(clips, frames, height, width, channels, prompts ?? [], frameRate);
}
