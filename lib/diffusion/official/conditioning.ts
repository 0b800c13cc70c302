/**
 * What a video is to show, in the state that the sampler works on: tokens (B, L, C), each with a strength from 0 (free) to
 * 1 (given). Media at the beginning take the place of noise; media further on become tokens of their own in front of the
 * video's, at the same positions, or take the place of noise where they go on for long.
 */
import { check } from "../../errors.js";
import { axpby, concatLast, reshape, sliceFirst, sliceLast } from "../../ops/index.js";
import { launch, type Shape, type Tensor } from "../../tensor/index.js";
import { mixTokens } from "./step.js";

/** Encoded media: latents (1 or B, f, h, w, C) f32, normalised, of the state's height and width. */
export interface EncodedMedia {
  latents: Tensor;
  /** The pixel frame at which they begin. */
  frameNumber: number;
  /** From 0 to 1. */
  strength: number;
}

/** A run of tokens on a grid of their own. */
export interface TokenGroup {
  /** Frames, height and width. */
  grid: readonly [number, number, number];
  /** The pixel frame at which it begins. */
  frameNumber: number;
}

/** Where a sequence further on begins to take the place of noise: its first latent frames are extra tokens. */
const PREFIX_FRAMES = 2;

/** What the sampler starts from. */
export interface ConditionedState {
  /** (B, L, C), extra tokens first. */
  tokens: Tensor;
  /** The strength of each token; null where nothing is given. */
  strengths: Float32Array | null;
  /** The tokens' grids in their order; the last one is the video. */
  groups: readonly TokenGroup[];
}

/** Builds a {@link ConditionedState} item by item; the tensors it makes belong to the current scope. */
export class Conditioning {
  private readonly strengths: Float32Array;
  private readonly extras: { tokens: Tensor; strength: number; group: TokenGroup }[] = [];
  private used = false;

  /**
   * @param latents the start without media (B, f, h, w, C) f32, which is changed in place
   * @param timeFactor pixel frames of one latent frame after the first
   */
  constructor(
    private readonly latents: Tensor,
    private readonly timeFactor: number,
  ) {
    const [, frames, height, width] = latents.shape;
    this.strengths = new Float32Array(frames * height * width);
  }

  /**
   * Adds media; items act in the order in which they are added.
   * @param draw standard normal values of a shape
   * @throws {LtxError} `shape_mismatch`, `invalid_argument`
   */
  add({ latents: media, frameNumber, strength }: EncodedMedia, draw: (shape: Shape) => Tensor): void {
    this.used = true;
    const [batch, frames, ...rest] = this.latents.shape;
    const [samples, length, ...own] = media.shape;
    const begin = frameNumber / this.timeFactor;
    const fits = own.join() === rest.join() && (samples === batch || samples === 1);
    check(fits && length >= 1 && Math.ceil(begin) + length <= frames, "shape_mismatch", () => {
      return `[conditioning] latents [${media.shape}] from pixel frame ${frameNumber} do not fit the video's [${this.latents.shape}]`;
    });
    if (frameNumber === 0) return this.replace(media, 0, 0, length, strength);
    if (length === 1) return this.append(media, frameNumber, strength, draw);
    check(Number.isInteger(begin), "invalid_argument", () => {
      return `[conditioning] a sequence must begin at a multiple of ${this.timeFactor} frames, got frame ${frameNumber}`;
    });
    if (length > PREFIX_FRAMES) {
      this.replace(media, PREFIX_FRAMES, begin + PREFIX_FRAMES, length - PREFIX_FRAMES, strength);
    }
    this.append(frameRange(media, 0, PREFIX_FRAMES), frameNumber, strength, draw);
  }

  /** Mixes `count` frames of the media, from `from` on, into the state's frames from `to` on. */
  private replace(media: Tensor, from: number, to: number, count: number, strength: number): void {
    const [batch, frames, ...rest] = this.latents.shape;
    const [samples, length] = media.shape;
    const target = reshape(this.latents, [batch * frames, ...rest]);
    const source = reshape(media, [samples * length, ...rest]);
    for (let sample = 0; sample < batch; sample++) {
      const part = sliceFirst(target, sample * frames + to, count);
      const known = sliceFirst(source, (sample % samples) * length + from, count);
      launch("axpby", [part, known, part], [1 - strength, strength]);
    }
    const perFrame = this.strengths.length / frames;
    this.strengths.fill(strength, to * perFrame, (to + count) * perFrame);
  }

  /** Mixes the media with noise into tokens of their own. */
  private append(media: Tensor, frameNumber: number, strength: number, draw: (shape: Shape) => Tensor): void {
    const batch = this.latents.shape[0];
    const [samples, frames, height, width, channels] = media.shape;
    const whole = samples === batch ? media : repeatSample(media, batch);
    const mixed = axpby(strength, whole, 1 - strength, draw(whole.shape));
    const tokens = reshape(mixed, [batch, frames * height * width, channels]);
    this.extras.push({ tokens, strength, group: { grid: [frames, height, width], frameNumber } });
  }

  finish(): ConditionedState {
    const { latents, strengths, extras, used } = this;
    const [batch, frames, height, width, channels] = latents.shape;
    const flat = (x: Tensor) => reshape(x, [batch, x.size / batch]);
    const rows = [...extras.map(({ tokens }) => tokens), latents].map(flat).reduce(concatLast);
    const given = extras.flatMap(({ tokens, strength }) => Array(tokens.shape[1]).fill(strength));
    return {
      tokens: reshape(rows, [batch, given.length + strengths.length, channels]),
      strengths: used ? Float32Array.from([...given, ...strengths]) : null,
      groups: [...extras.map(({ group }) => group), { grid: [frames, height, width], frameNumber: 0 }],
    };
  }
}

/** Frames from … from + count of (B, f, …). */
function frameRange(x: Tensor, from: number, count: number): Tensor {
  const [batch, frames, ...rest] = x.shape;
  const size = x.size / (batch * frames);
  return reshape(sliceLast(reshape(x, [batch, frames * size]), from * size, count * size), [batch, count, ...rest]);
}

/** One sample (1, …) as often as there are `batch`. */
function repeatSample(x: Tensor, batch: number): Tensor {
  let row = reshape(x, [1, x.size]);
  for (let i = 1; i < batch; i++) row = concatLast(row, reshape(x, [1, x.size]));
  return reshape(row, [batch, ...x.shape.slice(1)]);
}

/** The video's latents (B, f, h, w, C) among the tokens (B, L, C) of a state. */
export function videoLatents(tokens: Tensor, groups: readonly TokenGroup[]): Tensor {
  const [batch, length, channels] = tokens.shape;
  check(groups.length > 0, "invalid_argument", () => "[conditioning] expects one group of tokens or more, got none");
  const { grid } = groups[groups.length - 1];
  const count = grid[0] * grid[1] * grid[2];
  const rows = reshape(tokens, [batch, length * channels]);
  return reshape(sliceLast(rows, (length - count) * channels, count * channels), [batch, ...grid, channels]);
}

/** Strengths above this are 1. */
const GIVEN = 1 - 1e-6;

/**
 * The state with its given tokens (strength 1) as they were at the start plus noise of the amplitude scale · t², which
 * keeps the video from standing still where it is given.
 */
export function stirGiven(
  tokens: Tensor,
  {
    start,
    strengths,
    noise,
    scale,
    time,
  }: { start: Tensor; strengths: Float32Array; noise: Tensor; scale: number; time: number },
): Tensor {
  const given = strengths.map((strength) => (strength > GIVEN ? 1 : 0));
  const reset = mixTokens(
    tokens,
    start,
    given.map((on) => 1 - on),
    given,
  );
  return mixTokens(
    reset,
    noise,
    null,
    given.map((on) => on * scale * time ** 2),
  );
}
