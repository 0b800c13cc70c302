import { integer, object } from "../arguments.js";
import { check } from "../errors.js";
import { BatchNorm, Conv3d, type Initializer, Linear, Module } from "../nn/index.js";
import { meanSamples, reshape, silu, transpose } from "../ops/index.js";
import { scope, type Tensor } from "../tensor/index.js";

export const DIGIT_CLASSES = 10;

export interface DigitClassifierOptions {
  /** Digits that a clip shows. */
  digits: number;
  /** Pixels of a digit's side: larger ones are looked at more coarsely. */
  digitSize: number;
}

/** A convolution of single frames with its norm and SiLU. */
class Stage extends Module {
  conv: Conv3d;
  norm: BatchNorm;

  constructor(inputs: number, outputs: number, stride: number, init: Initializer) {
    super();
    this.conv = new Conv3d(inputs, outputs, [1, 3, 3], init, {
      stride: [1, stride, stride],
      padSpace: [1, 1],
      bias: false,
    });
    this.norm = new BatchNorm(outputs, init);
  }

  forward(x: Tensor): Tensor {
    return scope(() => silu(this.norm.forward(this.conv.forward(x))));
  }
}

/** Width and stride of each convolution; features are averaged over the frame behind the last. */
const STAGES = [
  { width: 16, stride: 1 },
  { width: 32, stride: 2 },
  { width: 32, stride: 1 },
  { width: 64, stride: 2 },
  { width: 64, stride: 1 },
  { width: 96, stride: 2 },
];
const HIDDEN = 128;
/** Digits of at least so many pixels lose nothing when the first convolution halves the frame. */
const COARSE_FROM = 24;

/**
 * Reads which digits a frame shows, wherever they are and in whatever order. For each of the ten classes it answers with
 * the log-odds of "at least 1", …, "at least `digits` of them": a sigmoid each, trained by binary cross-entropy.
 */
export class DigitClassifier extends Module {
  stages: Stage[];
  hidden: Linear;
  output: Linear;
  private _digits: number;

  /** @throws {LtxError} `invalid_argument` unless `digits` is a whole number from 1. */
  constructor(options: DigitClassifierOptions, init: Initializer) {
    super();
    const { digits, digitSize } = options;
    check(Number.isSafeInteger(digits) && digits >= 1, "invalid_argument", () => {
      return `[digit classifier] digits must be a whole number from 1, got ${digits}`;
    });
    this.stages = STAGES.map(({ width, stride }, i) => {
      const inputs = i === 0 ? 1 : STAGES[i - 1].width;
      return new Stage(inputs, width, i === 0 && digitSize >= COARSE_FROM ? 2 : stride, init);
    });
    this.hidden = new Linear(STAGES[STAGES.length - 1].width, HIDDEN, init);
    this.output = new Linear(HIDDEN, DIGIT_CLASSES * digits, init);
    this._digits = digits;
  }

  get digits(): number {
    return this._digits;
  }

  /** Grey frames (B,F,H,W,1) f32 in [0,1] to log-odds (B·F, 10·digits) f32, the thresholds of a class side by side. */
  forward(frames: Tensor): Tensor {
    return scope(() => {
      let x = frames;
      for (const stage of this.stages) x = stage.forward(x);
      const [batch, count, height, width, channels] = x.shape;
      const places = transpose(reshape(x, [batch * count, height * width, channels]));
      const pooled = meanSamples(reshape(places, [batch * count * channels, height * width]));
      return this.output.forward(this.hidden.forward(reshape(pooled, [batch * count, channels]), "silu"));
    });
  }
}

/** More digits than fit into any picture. */
const MAX_DIGITS = 100;

/**
 * The `digits` digits, ascending, that one frame's log-odds (10·digits) make the most likely; of several frames give the
 * sum. A class that is there n times adds its first n log-odds: up to a constant that is the log-likelihood.
 */
export function likeliestDigits(logOdds: ArrayLike<number>, digits: number): number[] {
  object("digits", "logOdds", logOdds);
  integer("digits", "digits", digits, 0, MAX_DIGITS);
  // best[n]: the highest sum with n digits of the classes so far, and the digits themselves.
  let best: ({ score: number; found: number[] } | undefined)[] = [{ score: 0, found: [] }];
  for (let digit = 0; digit < DIGIT_CLASSES; digit++) {
    const next: typeof best = [];
    for (let total = 0; total <= digits; total++) {
      let gained = 0;
      for (let count = 0; count <= total; count++) {
        if (count > 0) gained += logOdds[digit * digits + count - 1];
        const before = best[total - count];
        if (!before || before.score + gained <= (next[total]?.score ?? -Infinity)) continue;
        next[total] = { score: before.score + gained, found: [...before.found, ...Array(count).fill(digit)] };
      }
    }
    best = next;
  }
  return best[digits]?.found ?? [];
}
