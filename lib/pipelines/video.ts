import { extname, join } from "node:path";
import { LtxError } from "../errors.js";
import { type AnimationOptions, saveAnimation, savePng } from "../formats/images.js";
import { tileVideos } from "../formats/tile.js";

export interface SaveOptions extends AnimationOptions {
  /** Clips side by side; about a square unless given. */
  columns?: number;
  /** Written above each clip: the prompts unless given; false for none. */
  labels?: readonly string[] | false;
}

/** Pixels that the longer side of a clip gets in {@link Video.savePictures}, where it has fewer. */
const PICTURE_SIDE = 128;

/** Clips that a pipeline made: uint8 (frames, height, width, channels) each, with the prompt of each. */
export class Video {
  constructor(
    readonly clips: readonly Uint8Array[],
    readonly frames: number,
    readonly height: number,
    readonly width: number,
    readonly channels: number,
    readonly prompts: readonly string[] = [],
  ) {}

  /** Splits one array (B, F, H, W, C) of values in [0, 1]. */
  static fromFloats(values: Float32Array, shape: readonly number[], prompts: readonly string[] = []): Video {
    const [batch, frames, height, width, channels] = shape;
    const size = frames * height * width * channels;
    const clips = Array.from({ length: batch }, (_, i) => {
      const clip = new Uint8Array(size);
      for (let k = 0; k < size; k++) clip[k] = Math.round(Math.min(1, Math.max(0, values[i * size + k])) * 255);
      return clip;
    });
    return new Video(clips, frames, height, width, channels, prompts);
  }

  /**
   * Writes the clips as a grid, by extension: `.gif` or `.webp` animated, `.png` the first frame of each.
   * @throws LtxError `invalid_argument` for another extension, `io`
   */
  async save(path: string, options: SaveOptions = {}): Promise<void> {
    const { columns = Math.ceil(Math.sqrt(this.clips.length)), labels, scale = 1, ...animation } = options;
    const type = extname(path).toLowerCase();
    if (![".gif", ".webp", ".png"].includes(type)) {
      throw new LtxError("invalid_argument", `[save] cannot tell the format of ${path}: use .gif, .webp or .png`);
    }
    const { height, width, channels } = this;
    const frames = type === ".png" ? 1 : this.frames;
    const size = frames * height * width * channels;
    const tiles = this.clips.map((clip) => ({ data: clip.subarray(0, size), frames, height, width, channels }));
    const names = labels === false ? undefined : (labels ?? (this.prompts.length > 0 ? this.prompts : undefined));
    const grid = await tileVideos(tiles, { columns, scale, ...(names ? { labels: [...names] } : {}) });
    if (type === ".png") await savePng(path, grid);
    else await saveAnimation(path, grid, animation);
  }

  /**
   * Writes `name.gif` and `name.png` into a folder, small clips enlarged.
   * @returns their paths
   */
  async savePictures(folder: string, name: string, columns?: number): Promise<string[]> {
    const scale = Math.max(1, Math.round(PICTURE_SIDE / Math.max(this.height, this.width)));
    const paths = ["gif", "png"].map((type) => join(folder, `${name}.${type}`));
    for (const path of paths) await this.save(path, { scale, columns });
    return paths;
  }
}
