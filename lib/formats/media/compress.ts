/** Pictures as a video codec leaves them, which is what the models saw in training. */
import type { Picture } from "../images.js";
import { ffmpeg } from "./ffmpeg.js";
import { PPM, PpmFrames } from "./ppm.js";

/** The official pipeline's constant rate factor. */
export const CONDITIONING_CRF = 29;
/** H.264 has no wider or higher frames. */
export const MAX_SIDE = 16384;

/**
 * A picture in RGB sent through H.264 and back as a video of one frame a second. Its sides must be even.
 * @throws LtxError `unavailable` without ffmpeg, `file_format` without its encoder libx264, `aborted`
 */
export async function compressFrame(
  { data, height, width }: Picture,
  { crf = CONDITIONING_CRF, signal }: { crf?: number; signal?: AbortSignal } = {},
): Promise<Picture> {
  const what = "compressing a conditioning frame";
  const encoded: Buffer[] = [];
  // The rate factor is one of quality in time: at 25 frames a second, ffmpeg's default, the same one gives a worse frame.
  const raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", `${width}x${height}`, "-framerate", "1", "-i", "pipe:0"];
  const codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", String(crf), "-pix_fmt", "yuv420p"];
  await ffmpeg([...raw, "-threads", "1", ...codec, "-f", "h264", "pipe:1"], {
    what,
    input: [data],
    onOutput: (chunk) => encoded.push(chunk),
    signal,
  });
  const frames = new PpmFrames("a conditioning frame", 1);
  await ffmpeg(["-f", "h264", "-i", "pipe:0", "-frames:v", "1", ...PPM, "pipe:1"], {
    what,
    input: encoded,
    onOutput: (chunk) => frames.push(chunk),
    signal,
  });
  return { data: frames.animation().data, height, width, channels: 3 };
}
