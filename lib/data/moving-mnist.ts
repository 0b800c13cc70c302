/**
 * Moving MNIST made on the fly: handwritten digits that drift in straight lines and bounce off the frame (the task of
 * Srivastava et al., "Unsupervised Learning of Video Representations using LSTMs", ICML 2015).
 */

import { list, number, object, show } from "../arguments.js";
import { check } from "../errors.js";
import { loadDigits, type Split } from "./digits.js";
import { checkCount, PhiloxRandom } from "./philox.js";
import { resizeSquare } from "./resize.js";
import { type Clip, checkIndex, type DataSource } from "./source.js";

export interface MovingMnistOptions {
  /** Whole number from 0 to 2^53 - 1; default 0. */
  seed?: number;
  /** Which handwritten digits to draw from; no digit is in both splits. Default "train". */
  split?: Split;
  /** Frames of a clip; default 30. */
  frames?: number;
  /** Pixels; default 64. */
  height?: number;
  /** Pixels; default 64. */
  width?: number;
  /** Digits in a clip; default 2. */
  digits?: number;
  /** Side of a digit in pixels, at most the smaller side of the frame; default 28. */
  digitSize?: number;
  /** Clips in the set; default 10000. */
  size?: number;
  /** Least speed in pixels per frame; default 1/32 of the smaller side of the frame. */
  minSpeed?: number;
  /** Greatest speed in pixels per frame; default 1/16 of the smaller side of the frame, or `minSpeed` if greater. */
  maxSpeed?: number;
}

export interface MovingMnistClip extends Clip {
  readonly channels: 1;
  readonly prompt: string;
  /** The digits of the clip, 0 to 9, in the order in which the prompt names them. */
  readonly labels: readonly number[];
}

const WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
const CLIP_STREAM: Record<Split, number> = { train: 0x4d4e4900, test: 0x4d4e4901 };
const PROMPT_STREAM = 0x4d4e4902;
const OPTIONS = "seed split frames height width digits digitSize size minSpeed maxSpeed".split(" ");

/**
 * `size` clips of moving digits. Clip i of a seed has the same bytes on every machine: its draws come from Philox keyed
 * by (seed, split, i) and its arithmetic is +, -, *, / and sqrt only, which IEEE 754 rounds one way.
 */
export class MovingMnist implements DataSource {
  readonly seed: number;
  readonly split: Split;
  readonly length: number;
  readonly frames: number;
  readonly height: number;
  readonly width: number;
  readonly channels = 1;
  readonly digits: number;
  readonly digitSize: number;
  readonly minSpeed: number;
  readonly maxSpeed: number;

  /** @throws LtxError `invalid_argument` naming the option that is wrong */
  constructor(options: MovingMnistOptions = {}) {
    object("moving-mnist", "options", options);
    const unknown = Object.keys(options).find((key) => !OPTIONS.includes(key));
    check(
      unknown === undefined,
      "invalid_argument",
      () => `[moving-mnist] unknown option "${unknown}"; the options are ${OPTIONS.join(", ")}`,
    );
    const { seed = 0, split = "train", frames = 30, height = 64, width = 64 } = options;
    const { digits = 2, digitSize = 28, size = 10000 } = options;
    checkCount("moving-mnist", "seed", seed);
    check(
      split === "train" || split === "test",
      "invalid_argument",
      () => `[moving-mnist] split must be "train" or "test", got ${show(split)}`,
    );
    for (const [name, value] of Object.entries({ frames, height, width, digits, digitSize, size })) {
      check(
        Number.isSafeInteger(value) && value >= 1,
        "invalid_argument",
        () => `[moving-mnist] ${name} must be a positive whole number, got ${show(value)}`,
      );
    }
    const shorter = Math.min(height, width);
    check(
      digitSize <= shorter,
      "invalid_argument",
      () =>
        `[moving-mnist] digitSize ${digitSize} does not fit a frame of ${width}x${height}; ` +
        `use at most ${shorter}, or a larger frame`,
    );
    for (const name of ["minSpeed", "maxSpeed"] as const) {
      if (options[name] !== undefined) number("moving-mnist", name, options[name]);
    }
    const minSpeed = options.minSpeed ?? Math.min(shorter / 32, options.maxSpeed ?? Infinity);
    const maxSpeed = options.maxSpeed ?? Math.max(shorter / 16, minSpeed);
    check(
      minSpeed >= 0 && minSpeed <= maxSpeed && maxSpeed < Infinity,
      "invalid_argument",
      () =>
        `[moving-mnist] speeds need 0 <= minSpeed <= maxSpeed in pixels per frame, ` +
        `got minSpeed ${minSpeed} and maxSpeed ${maxSpeed}`,
    );

    this.seed = seed;
    this.split = split;
    this.length = size;
    this.frames = frames;
    this.height = height;
    this.width = width;
    this.digits = digits;
    this.digitSize = digitSize;
    this.minSpeed = minSpeed;
    this.maxSpeed = maxSpeed;
  }

  /** All that the pixels depend on. */
  get fingerprint(): string {
    const { seed, split, length, frames, height, width, digits, digitSize, minSpeed, maxSpeed } = this;
    const drawn = { seed, split, length, frames, height, width, digits, digitSize, minSpeed, maxSpeed };
    return `moving-mnist ${JSON.stringify(drawn)}`;
  }

  /**
   * Clip `index`: uint8 (frames, height, width, 1), background 0, ink up to 255, overlapping digits by their maximum.
   * @throws LtxError `invalid_argument` when `index` is outside the set
   */
  clip(index: number): MovingMnistClip {
    checkIndex("moving-mnist", index, this.length);
    const random = new PhiloxRandom(this.seed, CLIP_STREAM[this.split], index);
    const video = new Uint8Array(this.frames * this.height * this.width);
    const labels: number[] = [];
    for (let i = 0; i < this.digits; i++) labels.push(this.#drawDigit(video, random));
    return {
      video,
      frames: this.frames,
      height: this.height,
      width: this.width,
      channels: 1,
      labels,
      prompt: promptFor(labels, this.seed, index),
    };
  }

  /**
   * The clips of `indices` one after the other: uint8 (batch, frames, height, width, 1).
   * @throws LtxError `invalid_argument` when an index is outside the set
   */
  batch(indices: readonly number[]): Uint8Array {
    const stride = this.frames * this.height * this.width;
    for (const index of list("moving-mnist", "indices", indices)) checkIndex("moving-mnist", index, this.length);
    const out = new Uint8Array(indices.length * stride);
    indices.forEach((index, i) => {
      out.set(this.clip(index).video, i * stride);
    });
    return out;
  }

  /** {@link promptFor}, where the trainers look for it. */
  promptFor(labels: readonly number[], seed = this.seed, draw = 0): string {
    return promptFor(labels, seed, draw);
  }

  /** Chooses a digit, where it starts and how it moves, draws it into every frame, and returns its label. */
  #drawDigit(video: Uint8Array, random: PhiloxRandom): number {
    const set = loadDigits(this.split);
    const label = random.int(set.images.length);
    const pool = set.images[label];
    const digit = resizeSquare(pool[random.int(pool.length)], set.side, this.digitSize);

    const rangeX = this.width - this.digitSize;
    const rangeY = this.height - this.digitSize;
    const startX = random.uniform(0, rangeX);
    const startY = random.uniform(0, rangeY);
    const [directionX, directionY] = unitVector(random);
    const speed = random.uniform(this.minSpeed, this.maxSpeed);
    for (let frame = 0; frame < this.frames; frame++) {
      const x = bounce(startX + speed * directionX * frame, rangeX);
      const y = bounce(startY + speed * directionY * frame, rangeY);
      const offset = frame * this.height * this.width;
      stamp(video.subarray(offset, offset + this.height * this.width), this.width, digit, this.digitSize, x, y);
    }
    return label;
  }
}

/**
 * The text for `labels` as the reference writes it: each digit by its English word or its character, independently with
 * probability 1/2, joined by " and " ("three and 7"). A pure function of its arguments; `draw` numbers the wordings.
 * @throws LtxError `invalid_argument` for labels outside 0 to 9 or a wrong seed or draw
 */
export function promptFor(labels: readonly number[], seed: number, draw: number): string {
  const random = new PhiloxRandom(seed, PROMPT_STREAM, draw);
  return list("moving-mnist", "labels", labels)
    .map((label) => {
      check(
        Number.isInteger(label) && label >= 0 && label < WORDS.length,
        "invalid_argument",
        () => `[moving-mnist] a label must be a whole number from 0 to 9, got ${show(label)}`,
      );
      return random.int(2) === 0 ? WORDS[label] : String(label);
    })
    .join(" and ");
}

/** A uniform direction by rejection in the unit disc: sin and cos may differ between machines, this cannot. */
function unitVector(random: PhiloxRandom): [x: number, y: number] {
  for (;;) {
    const x = random.uniform(-1, 1);
    const y = random.uniform(-1, 1);
    const square = x * x + y * y;
    if (square <= 1 && square > 1e-4) {
      const norm = Math.sqrt(square);
      return [x / norm, y / norm];
    }
  }
}

/** `position` folded into [0, range] as if the ends were mirrors. */
function bounce(position: number, range: number): number {
  if (range === 0) return 0;
  const period = 2 * range;
  const phase = ((position % period) + period) % period;
  return phase <= range ? phase : period - phase;
}

/** Draws `digit` with its corner at (x, y) between pixels, spread bilinearly, keeping the brighter value of each pixel. */
function stamp(frame: Uint8Array, width: number, digit: Uint8Array, side: number, x: number, y: number): void {
  const left = Math.floor(x);
  const top = Math.floor(y);
  const fx = x - left;
  const fy = y - top;
  const at = (row: number, column: number): number =>
    row < 0 || column < 0 || row >= side || column >= side ? 0 : digit[row * side + column];
  // A digit between pixels touches one more row and column; on whole positions those would lie outside the frame.
  const rows = fy > 0 ? side + 1 : side;
  const columns = fx > 0 ? side + 1 : side;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const upper = at(row - 1, column - 1) * fx + at(row - 1, column) * (1 - fx);
      const lower = at(row, column - 1) * fx + at(row, column) * (1 - fx);
      const value = Math.floor(upper * fy + lower * (1 - fy) + 0.5);
      const target = (top + row) * width + left + column;
      if (value > frame[target]) frame[target] = value;
    }
  }
}
