/** A stream of binary PPM images, as ffmpeg writes it: each says its own size, so that nobody need ask before. */
import { check } from "../../errors.js";
import type { Animation } from "../images.js";
import { room } from "./room.js";

/** What makes ffmpeg write it, whatever it reads. */
export const PPM = ["-pix_fmt", "rgb24", "-f", "image2pipe", "-c:v", "ppm"];

const HEADER = /^P6\s+(\d+)\s+(\d+)\s+255\s/;
/** Longer than any header that ffmpeg writes. */
const HEADER_BYTES = 64;
/** Bytes that there is room for at first where nobody knows how many frames there are. */
const FIRST_BYTES = 2 ** 26;

export class PpmFrames {
  /** Whole frames so far. */
  count = 0;
  private size = { height: 0, width: 0 };
  private head = Buffer.alloc(0);
  /** All frames behind one another, with room for more: memory that nothing was written to costs nothing. */
  private data = new Uint8Array(0);
  /** Bytes of the frame that is being filled; null between frames. */
  private filled: number | null = null;

  /**
   * @param name of what is read, in messages
   * @param expected about as many frames, if anyone knows
   */
  constructor(
    private readonly name = "the video",
    private readonly expected?: number,
  ) {}

  /** Takes the next bytes of the stream. @throws LtxError `file_format` unless they are frames of one size, `out_of_memory` */
  push(chunk: Buffer): void {
    for (let rest = chunk; rest.length > 0; ) rest = this.filled === null ? this.begin(rest) : this.fill(rest);
  }

  private get frameBytes(): number {
    return this.size.height * this.size.width * 3;
  }

  private begin(chunk: Buffer): Buffer {
    const before = this.head.length;
    this.head = Buffer.concat([this.head, chunk.subarray(0, HEADER_BYTES)]);
    const found = HEADER.exec(this.head.toString("latin1"));
    if (!found) {
      check(this.head.length < HEADER_BYTES, "file_format", () => "[media] ffmpeg's frames are not in PPM of 8 bits");
      return chunk.subarray(HEADER_BYTES);
    }
    const [header, width, height] = [found[0], Number(found[1]), Number(found[2])];
    check(width > 0 && height > 0, "file_format", () => `[media] ${this.name} has frames of ${width}x${height} pixels`);
    const same = this.count === 0 || (this.size.height === height && this.size.width === width);
    check(same, "file_format", () => {
      return `[media] ${this.name} changes its size, from ${this.size.width}x${this.size.height} to ${width}x${height}`;
    });
    this.size = { height, width };
    this.grow();
    this.filled = 0;
    this.head = Buffer.alloc(0);
    return chunk.subarray(header.length - before);
  }

  /** Makes room for one more frame. */
  private grow(): void {
    const { count, frameBytes, expected = Math.floor(FIRST_BYTES / frameBytes) } = this;
    if ((count + 1) * frameBytes <= this.data.length) return;
    const frames = count === 0 ? Math.max(1, expected) : 2 * count;
    const what = `${frames} frames of ${this.name} (${this.size.width}x${this.size.height})`;
    const more = room(Uint8Array, frames * frameBytes, what, "read fewer (maxFrames), or make it shorter or smaller");
    more.set(this.data.subarray(0, count * frameBytes));
    this.data = more;
  }

  private fill(chunk: Buffer): Buffer {
    const { frameBytes } = this;
    const filled = this.filled ?? 0;
    const part = chunk.subarray(0, frameBytes - filled);
    this.data.set(part, this.count * frameBytes + filled);
    this.filled = filled + part.length;
    if (this.filled === frameBytes) {
      this.count++;
      this.filled = null;
    }
    return chunk.subarray(part.length);
  }

  /** All whole frames. */
  animation(): Animation {
    const { height, width } = this.size;
    const data = this.data.subarray(0, this.count * this.frameBytes);
    return { data, frames: this.count, height, width, channels: 3 };
  }
}
