/** A stream of binary PPM images, as ffmpeg writes it: each says its own size, so that nobody need ask before. */
import { check } from "../../errors.js";
import type { Animation } from "../images.js";

/** What makes ffmpeg write it, whatever it reads. */
export const PPM = ["-pix_fmt", "rgb24", "-f", "image2pipe", "-c:v", "ppm"];

const HEADER = /^P6\s+(\d+)\s+(\d+)\s+255\s/;
/** Longer than any header that ffmpeg writes. */
const HEADER_BYTES = 64;

export class PpmFrames {
  /** Whole frames so far, RGB. */
  readonly done: Uint8Array[] = [];
  private size = { height: 0, width: 0 };
  private head = Buffer.alloc(0);
  private current: Uint8Array | null = null;
  private filled = 0;

  /** Takes the next bytes of the stream. @throws LtxError `file_format` unless they are frames of one size */
  push(chunk: Buffer): void {
    for (let rest = chunk; rest.length > 0; ) rest = this.current ? this.fill(this.current, rest) : this.begin(rest);
  }

  private begin(chunk: Buffer): Buffer {
    const before = this.head.length;
    this.head = Buffer.concat([this.head, chunk.subarray(0, HEADER_BYTES)]);
    const found = HEADER.exec(this.head.toString("latin1"));
    if (!found) {
      check(this.head.length < HEADER_BYTES, "file_format", () => "[media] ffmpeg's frames are not in PPM");
      return chunk.subarray(HEADER_BYTES);
    }
    const [header, width, height] = [found[0], Number(found[1]), Number(found[2])];
    const same = this.done.length === 0 || (this.size.height === height && this.size.width === width);
    check(same, "file_format", () => {
      return `[media] the video changes its size, from ${this.size.width}x${this.size.height} to ${width}x${height}`;
    });
    this.size = { height, width };
    this.current = new Uint8Array(height * width * 3);
    this.filled = 0;
    this.head = Buffer.alloc(0);
    return chunk.subarray(header.length - before);
  }

  private fill(frame: Uint8Array, chunk: Buffer): Buffer {
    const part = chunk.subarray(0, frame.length - this.filled);
    frame.set(part, this.filled);
    this.filled += part.length;
    if (this.filled === frame.length) {
      this.done.push(frame);
      this.current = null;
    }
    return chunk.subarray(part.length);
  }

  /** All frames in one array; they are let go here. */
  animation(): Animation {
    const { height, width } = this.size;
    const data = new Uint8Array(this.done.length * height * width * 3);
    const frames = this.done.length;
    for (const [i, frame] of this.done.splice(0).entries()) data.set(frame, i * frame.length);
    return { data, frames, height, width, channels: 3 };
  }
}
