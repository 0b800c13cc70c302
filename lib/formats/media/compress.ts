/** Pictures as a video codec leaves them, which is what the models saw in training. */
import type { Animation } from "../images.js";
import { crop, framesOf } from "./clip.js";
import { ffmpeg } from "./ffmpeg.js";
import { PpmFrames } from "./ppm.js";

/** The official pipeline's constant rate factor. */
export const CONDITIONING_CRF = 29;
const AT_ONCE = 4;

/**
 * Sends every frame by itself through H.264 and back; sides become even by cutting off the last row or column.
 * @throws LtxError `unavailable` without ffmpeg, `aborted`
 */
export async function compressFrames(
  clip: Animation,
  { crf = CONDITIONING_CRF, signal }: { crf?: number; signal?: AbortSignal } = {},
): Promise<Animation> {
  const [height, width] = [clip.height - (clip.height % 2), clip.width - (clip.width % 2)];
  const even = crop(clip, { left: 0, top: 0, height, width });
  const result = new Uint8Array(even.data.length);
  const frames = framesOf(even);
  const size = even.data.length / even.frames;
  let next = 0;
  const worker = async () => {
    for (let i = next++; i < frames.length; i = next++) {
      result.set(await compressFrame(frames[i], { height, width, crf, signal }), i * size);
    }
  };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, frames.length) }, worker));
  return { ...even, data: result };
}

async function compressFrame(
  frame: Uint8Array,
  { height, width, crf, signal }: { height: number; width: number; crf: number; signal?: AbortSignal },
): Promise<Uint8Array> {
  const what = "compressing a conditioning frame";
  const encoded: Buffer[] = [];
  const raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", `${width}x${height}`, "-i", "pipe:0"];
  const codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", String(crf), "-pix_fmt", "yuv420p"];
  await ffmpeg([...raw, "-threads", "1", ...codec, "-f", "h264", "pipe:1"], {
    what,
    input: [frame],
    onOutput: (chunk) => encoded.push(chunk),
    signal,
  });
  const frames = new PpmFrames();
  await ffmpeg(["-f", "h264", "-i", "pipe:0", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"], {
    what,
    input: encoded,
    onOutput: (chunk) => frames.push(chunk),
    signal,
  });
  return frames.animation().data;
}
