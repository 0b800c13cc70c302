import { extname, join } from "node:path";
import { path as checkPath, checkShape, finite, integer, list, object, show, text } from "../arguments.js";
import { check, LtxError } from "../errors.js";
import { type AnimationOptions, enlarge, saveAnimation, savePng } from "../formats/images.js";
import { crop } from "../formats/media/clip.js";
import { VIDEO_OUTPUTS, writeVideo } from "../formats/media/write-video.js";
import { tileVideos } from "../formats/tile.js";
import { sizeOf } from "../tensor/index.js";

export interface SaveOptions extends AnimationOptions {
  /** Clips side by side; about a square unless given. */
  columns?: number;
  /** Written below each clip: the prompts unless given; false for none. One clip in a video's file has none. */
  labels?: readonly string[] | false;
  /** Videos only: constant rate factor of the encoder, 0 is lossless. */
  crf?: number;
  signal?: AbortSignal;
}

/** Pixels that the longer side of a clip gets in {@link Video.savePictures}, where it has fewer. */
const PICTURE_SIDE = 128;
const PICTURE_OUTPUTS = [".gif", ".webp", ".png"];

/** Clips that a pipeline made: uint8 (frames, height, width, channels) each, with the prompt of each. */
export class Video {
  constructor(
    readonly clips: readonly Uint8Array[],
    readonly frames: number,
    readonly height: number,
    readonly width: number,
    readonly channels: number,
    readonly prompts: readonly string[] = [],
    /** Frames per second, where the model has been told. */
    readonly fps?: number,
  ) {
    for (const [name, value] of Object.entries({ frames, height, width, channels })) integer("video", name, value, 1);
    const size = frames * height * width * channels;
    for (const clip of list("video", "clips", clips)) {
      check(clip instanceof Uint8Array && clip.length === size, "invalid_argument", () => {
        return `[video] a clip is ${show(clip)}, expected ${size} bytes (${frames}x${height}x${width}x${channels})`;
      });
    }
    for (const prompt of list("video", "prompts", prompts)) text("video", "a prompt", prompt);
    if (fps !== undefined) finite("video", "fps", fps, Number.MIN_VALUE);
  }

  /** Splits one array (B, F, H, W, C) of values in [0, 1]. */
  static fromFloats(
    values: Float32Array,
    shape: readonly number[],
    prompts: readonly string[] = [],
    fps?: number,
  ): Video {
    checkShape("video", shape);
    check(values instanceof Float32Array && values.length === sizeOf(shape), "shape_mismatch", () => {
      return `[video] values are ${show(values)}, expected a Float32Array of ${sizeOf(shape)} for [${shape}]`;
    });
    const [batch, frames, height, width, channels] = shape;
    const size = frames * height * width * channels;
    const clips = Array.from({ length: batch }, (_, i) => {
      const clip = new Uint8Array(size);
      for (let k = 0; k < size; k++) clip[k] = Math.round(Math.min(1, Math.max(0, values[i * size + k])) * 255);
      return clip;
    });
    return new Video(clips, frames, height, width, channels, prompts, fps);
  }

  /**
   * Writes the clips by extension: `.mp4`, `.mov`, `.mkv` or `.webm` through ffmpeg, `.gif` or `.webp` animated, `.png`
   * the first frame. Several clips, or clips with labels, become a grid; one clip alone is written as it is. The rate is
   * the video's own unless given, else 10 frames a second.
   * @throws LtxError `invalid_argument` for another extension, `unavailable` for a video without ffmpeg, `io`
   */
  async save(path: string, options: SaveOptions = {}): Promise<void> {
    const { columns = Math.ceil(Math.sqrt(this.clips.length)), labels, scale = 1, crf, signal, ...animation } = options;
    const type = extname(checkPath("save", "the file", path)).toLowerCase();
    const asVideo = VIDEO_OUTPUTS.includes(type);
    if (!asVideo && !PICTURE_OUTPUTS.includes(type)) {
      const known = [...VIDEO_OUTPUTS, ...PICTURE_OUTPUTS].join(", ");
      throw new LtxError("invalid_argument", `[save] cannot tell the format of ${path}: use one of ${known}`);
    }
    const { height, width, channels } = this;
    const frames = type === ".png" ? 1 : this.frames;
    const size = frames * height * width * channels;
    const tiles = this.clips.map((clip) => ({ data: clip.subarray(0, size), frames, height, width, channels }));
    const own = this.prompts.length > 0 && !(asVideo && tiles.length === 1) ? this.prompts : undefined;
    const names = labels === false ? undefined : (labels ?? own);
    const picture =
      tiles.length === 1 && !names
        ? await enlarge(tiles[0], scale)
        : await tileVideos(tiles, { columns, scale, ...(names ? { labels: [...names] } : {}) });
    const { fps = this.fps, comment } = animation;
    if (asVideo) await writeVideo(path, picture, { fps: fps ?? 10, crf, comment, signal });
    else if (type === ".png") await savePng(path, picture, { comment });
    else await saveAnimation(path, picture, { ...animation, fps });
  }

  /** One of the clips by itself. */
  clip(index: number): Video {
    integer("video", "index", index, 0, this.clips.length - 1);
    const { frames, height, width, channels, prompts, fps } = this;
    const prompt = prompts.length > 0 ? [prompts[index]] : [];
    return new Video([this.clips[index]], frames, height, width, channels, prompt, fps);
  }

  /** The part of the frames that lies in a box. */
  crop(box: { left: number; top: number; height: number; width: number }): Video {
    const { left, top, height: tall, width: wide } = object("video", "box", box);
    integer("video", "box.left", left, 0, this.width - 1);
    integer("video", "box.top", top, 0, this.height - 1);
    integer("video", "box.width", wide, 1, this.width - left);
    integer("video", "box.height", tall, 1, this.height - top);
    const { frames, height, width, channels, prompts, fps } = this;
    const clips = this.clips.map((data) => crop({ data, frames, height, width, channels }, box).data);
    return new Video(clips, frames, box.height, box.width, channels, prompts, fps);
  }

  /** The first frames of each clip, without a copy. */
  first(frames: number): Video {
    return this.range(0, frames);
  }

  /** The frames from `from` up to and without `to`, without a copy. */
  range(from: number, to: number): Video {
    integer("video", "from", from, 0, this.frames - 1);
    integer("video", "to", to, from + 1, this.frames);
    const { height, width, channels, prompts, fps } = this;
    const size = height * width * channels;
    const clips = this.clips.map((clip) => clip.subarray(from * size, to * size));
    return new Video(clips, to - from, height, width, channels, prompts, fps);
  }

  /**
   * Writes `name.gif` and `name.png` into a folder, small clips enlarged.
   * @returns their paths
   */
  async savePictures(folder: string, name: string, columns?: number): Promise<string[]> {
    const paths = ["gif", "png"].map((type) => join(folder, `${name}.${type}`));
    for (const path of paths) await this.save(path, { scale: this.pictureScale, columns });
    return paths;
  }

  /** The whole factor by which small clips are enlarged in pictures. */
  get pictureScale(): number {
    return Math.max(1, Math.round(PICTURE_SIDE / Math.max(this.height, this.width)));
  }
}
