/** Trains the classifier that reads digits in generated clips, and keeps it in a file. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import type { DataConfig } from "../config/index.js";
import { MovingMnist } from "../data/index.js";
import { PhiloxRandom } from "../data/philox.js";
import { LtxError } from "../errors.js";
import { moduleEntries, readTensors } from "../formats/checkpoint.js";
import { makeFolder } from "../formats/paths.js";
import { writeSafetensors } from "../formats/safetensors.js";
import { DIGIT_CLASSES, DigitClassifier } from "../models/digit-classifier.js";
import { Initializer } from "../nn/index.js";
import { mean, mixRows, mul, normal, softplus } from "../ops/index.js";
import { Adam, scheduleFactor } from "../optim/index.js";
import { backward, type Device, owning, scope, Tensor } from "../tensor/index.js";
import { Purpose } from "./purposes.js";

export interface DigitClassifierTraining {
  device: Device;
  /** Updates; 1000 for each digit of a clip unless given. */
  steps?: number;
  seed?: number;
  signal?: AbortSignal;
  onStep?: (done: number, total: number) => void;
}

/** What of a data section the classifier depends on. */
type DrawnDigits = Pick<DataConfig, "digits" | "digit_size" | "height" | "width">;

const BATCH = 64;
const STEPS_PER_DIGIT = 1000;
const LEARNING_RATE = 2e-3;
const WARMUP = 40;
/** The queue's length in steps. */
const SYNC_EVERY = 4;
/** Seeds of the digits and of their disturbances, apart from those that models train with. */
const DATA_SEED = 2 ** 48;
const DISTURBANCE_STREAM = 0x44495354;
/** Of the frames' deformation, in radians (the slant as a slope) and as a part of their size. */
const MAX_TURN = 0.2;
const MAX_SCALE = 0.12;
/** Counted up whenever a change makes kept classifiers worthless. */
const RECIPE = 1;

/**
 * Trains on frames of moving training digits, blurred, dimmed and noisy by random amounts, so that somewhat soft
 * generated frames are read too. Deterministic by seed on one device and thread count.
 * @throws LtxError `aborted` when the signal stops it
 */
export async function trainDigitClassifier(
  data: DrawnDigits,
  options: DigitClassifierTraining,
): Promise<DigitClassifier> {
  const { device, steps = STEPS_PER_DIGIT * data.digits, seed = 0, signal, onStep } = options;
  const schedule = { kind: "cosine", warmup: Math.min(WARMUP, steps - 1), total: steps, finalFraction: 0.02 } as const;
  const source = trainingFrames(data, seed, steps);
  return owning(async (own) => {
    const classifier = own(createClassifier(data, device, seed));
    const optimizer = own(new Adam(classifier.parameters(), { lr: LEARNING_RATE, maxGradNorm: 1 }));
    for (let step = 0; step < steps; step++) {
      if (signal?.aborted) throw new LtxError("aborted", "[digit classifier] stopped by the caller");
      const { pixels, signs, noise } = batchOf(source, step, seed);
      const queue = () => {
        const shape = [BATCH, 1, data.height, data.width, 1];
        const clean = Tensor.from(pixels, shape, { device });
        const grain = normal(shape, { seed, step, purpose: Purpose.classifierNoise }, { device });
        const logits = classifier.forward(mixRows(clean, grain, null, Tensor.from(noise, [BATCH], { device })));
        // Binary cross-entropy: log(1 + e^-z) where the statement is true, log(1 + e^z) where it is not.
        backward(mean(softplus(mul(logits, Tensor.from(signs, logits.shape, { device })))));
        optimizer.step(LEARNING_RATE * scheduleFactor(schedule, step));
      };
      device.step(() => scope(queue));
      // One update writes all parameters.
      if ((step + 1) % SYNC_EVERY === 0 || step + 1 === steps) await classifier.parameters()[0].ready();
      onStep?.(step + 1, steps);
    }
    optimizer.dispose();
    return classifier.train(false).requiresGrad(false);
  });
}

/**
 * The classifier for a data section that `folder` keeps, or one trained now and kept there. A kept file that cannot be
 * read is replaced; a folder that cannot be written keeps none.
 */
export async function keptDigitClassifier(
  folder: string,
  data: DrawnDigits,
  options: DigitClassifierTraining,
): Promise<DigitClassifier> {
  const { digits, digit_size, height, width } = data;
  const recipe = JSON.stringify({
    RECIPE,
    digits,
    digit_size,
    height,
    width,
    steps: options.steps ?? null,
  });
  const path = join(
    folder,
    `digit-classifier-${createHash("sha256").update(recipe).digest("hex").slice(0, 12)}.safetensors`,
  );
  const read = await readTensors(path).catch((error) => {
    if (error instanceof LtxError) return null;
    throw error;
  });
  if (read?.metadata.recipe === recipe) {
    const kept = createClassifier(data, options.device);
    try {
      kept.loadStateDict(read.tensors);
      return kept.train(false).requiresGrad(false);
    } catch (error) {
      kept.dispose();
      if (!(error instanceof LtxError && error.code === "checkpoint")) throw error;
    }
  }
  const classifier = await trainDigitClassifier(data, options);
  try {
    await makeFolder(folder).catch(() => {}); // writing tells
    await writeSafetensors(path, moduleEntries(classifier, ""), {
      format: "ltx-native",
      kind: "digit-classifier",
      recipe,
    });
  } catch (error) {
    if (!(error instanceof LtxError && error.code === "io")) {
      classifier.dispose();
      throw error;
    }
  }
  return classifier;
}

function createClassifier(data: DrawnDigits, device: Device, seed = 0): DigitClassifier {
  const { digits, digit_size: digitSize } = data;
  return new DigitClassifier({ digits, digitSize }, new Initializer(device, seed));
}

/** Each clip one frame: a moving digit is everywhere equally often. */
function trainingFrames(data: DrawnDigits, seed: number, steps: number): MovingMnist {
  const { digits, digit_size: digitSize, height, width } = data;
  return new MovingMnist({ seed: DATA_SEED + seed, frames: 1, height, width, digits, digitSize, size: steps * BATCH });
}

interface Batch {
  /** (BATCH, H, W) in [0, 1]. */
  pixels: Float32Array;
  /** (BATCH, 10·digits): -1 where the class is there at least so often, else 1. */
  signs: Float32Array;
  /** (BATCH): the amplitude of the noise. */
  noise: Float32Array;
}

function batchOf(source: MovingMnist, step: number, seed: number): Batch {
  const { height, width } = source;
  const area = height * width;
  const pixels = new Float32Array(BATCH * area);
  const noise = new Float32Array(BATCH);
  const signs: number[] = [];
  const random = new PhiloxRandom(seed, DISTURBANCE_STREAM, step);
  for (let i = 0; i < BATCH; i++) {
    const { video, labels } = source.clip(step * BATCH + i);
    const blur = Math.max(0, random.uniform(-1, 1));
    const gain = random.uniform(0.7, 1) / 255;
    noise[i] = random.uniform(0, 0.1);
    const frame = deformed(video, height, width, random);
    const soft = blurred(frame, height, width);
    for (let k = 0; k < area; k++) pixels[i * area + k] = gain * (frame[k] + blur * (soft[k] - frame[k]));
    for (let digit = 0; digit < DIGIT_CLASSES; digit++) {
      const count = labels.filter((label) => label === digit).length;
      for (let threshold = 1; threshold <= labels.length; threshold++) signs.push(count >= threshold ? -1 : 1);
    }
  }
  return { pixels, signs: Float32Array.from(signs), noise };
}

/** The frame scaled, rotated and slanted a little about its centre, so that a few thousand digits stand for all hands. */
function deformed(frame: Uint8Array, height: number, width: number, random: PhiloxRandom): Float32Array {
  const angle = random.uniform(-MAX_TURN, MAX_TURN);
  const slant = random.uniform(-MAX_TURN, MAX_TURN);
  const [tall, wide] = [random.uniform(1 - MAX_SCALE, 1 + MAX_SCALE), random.uniform(1 - MAX_SCALE, 1 + MAX_SCALE)];
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  const [cy, cx] = [(height - 1) / 2, (width - 1) / 2];
  const at = (y: number, x: number) => (y >= 0 && x >= 0 && y < height && x < width ? frame[y * width + x] : 0);
  const result = new Float32Array(height * width);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const [dy, dx] = [tall * (row - cy), wide * (column - cx) + slant * (row - cy)];
      const [y, x] = [cy + cos * dy - sin * dx, cx + sin * dy + cos * dx];
      const [top, left] = [Math.floor(y), Math.floor(x)];
      const [fy, fx] = [y - top, x - left];
      const upper = (1 - fx) * at(top, left) + fx * at(top, left + 1);
      const lower = (1 - fx) * at(top + 1, left) + fx * at(top + 1, left + 1);
      result[row * width + column] = (1 - fy) * upper + fy * lower;
    }
  }
  return result;
}

/** The frame under a 3x3 binomial filter; its border stays. */
function blurred(frame: Float32Array, height: number, width: number): Float32Array {
  const result = Float32Array.from(frame);
  for (let y = 1; y + 1 < height; y++) {
    for (let x = 1; x + 1 < width; x++) {
      const i = y * width + x;
      const row = (k: number) => frame[k - 1] + 2 * frame[k] + frame[k + 1];
      result[i] = (row(i - width) + 2 * row(i) + row(i + width)) / 16;
    }
  }
  return result;
}
