import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { MovingMnist } from "../../lib/data/index.js";
import { PhiloxRandom } from "../../lib/data/philox.js";
import { DigitClassifier, likeliestDigits } from "../../lib/models/digit-classifier.js";
import { Initializer } from "../../lib/nn/index.js";
import { affine } from "../../lib/ops/index.js";
import { device, noGrad, scope, Tensor } from "../../lib/tensor/index.js";
import { keptDigitClassifier, trainDigitClassifier } from "../../lib/training/digit-classifier-trainer.js";
import { testFolder } from "../support/tiny.js";

const target = device();
const folder = testFolder();
const small = { digits: 1, digit_size: 14, height: 16, width: 16 };

async function logOdds(classifier: DigitClassifier, clip: Uint8Array, frames: number): Promise<Float32Array> {
  const z = scope(() =>
    noGrad(() => classifier.forward(affine(Tensor.from(clip, [1, frames, 16, 16, 1], { device: target }), 1 / 255))),
  );
  const values = (await z.read()) as Float32Array;
  z.dispose();
  return values;
}

const state = async (classifier: DigitClassifier) =>
  [...(await classifier.stateDict())].map(([, { data }]) => [...data]);

describe("likeliestDigits", () => {
  const random = new PhiloxRandom(1);
  const draw = (digits: number) => Array.from({ length: 10 * digits }, () => random.uniform(-5, 5));

  it("is the argmax for one digit", () => {
    for (let i = 0; i < 20; i++) {
      const z = draw(1);
      expect(likeliestDigits(z, 1)).toEqual([z.indexOf(Math.max(...z))]);
    }
  });

  for (const digits of [2, 3]) {
    it(`finds the best of all multisets of ${digits}`, () => {
      for (let i = 0; i < 10; i++) {
        const z = draw(digits);
        const score = (found: number[]) =>
          Array.from({ length: 10 }, (_, d) => {
            const count = found.filter((x) => x === d).length;
            return z.slice(d * digits, d * digits + count).reduce((sum, v) => sum + v, 0);
          }).reduce((sum, v) => sum + v, 0);
        const all = Array.from({ length: 10 ** digits }, (_, n) => [...String(n).padStart(digits, "0")].map(Number));
        const found = likeliestDigits(z, digits);
        expect(found).toHaveLength(digits);
        expect(found).toEqual([...found].sort());
        expect(score(found)).toBeCloseTo(Math.max(...all.map(score)), 10);
      }
    });
  }

  it("takes a digit twice when its second log-odds say so", () => {
    const z = new Array(20).fill(-4);
    [z[14], z[15], z[6]] = [5, 2, 1];
    expect(likeliestDigits(z, 2)).toEqual([7, 7]);
    z[15] = 0;
    expect(likeliestDigits(z, 2)).toEqual([3, 7]);
  });
});

describe("DigitClassifier", () => {
  it("answers for each frame by itself, at any size", async () => {
    const classifier = new DigitClassifier({ digits: 2, digitSize: 28 }, new Initializer(target, 1)).train(false);
    const shape = (...s: number[]) =>
      scope(() =>
        noGrad(
          () =>
            classifier.forward(Tensor.from(new Float32Array(s.reduce((a, b) => a * b)), s, { device: target })).shape,
        ),
      );
    expect(shape(2, 3, 64, 64, 1)).toEqual([6, 20]);
    expect(shape(1, 1, 20, 36, 1)).toEqual([1, 20]);
    classifier.dispose();
    const clip = new MovingMnist({ frames: 3, height: 16, width: 16, digits: 1, digitSize: 14, seed: 1 }).clip(0).video;
    const one = new DigitClassifier({ digits: 1, digitSize: 14 }, new Initializer(target, 1)).train(false);
    const together = await logOdds(one, clip, 3);
    for (const f of [0, 1, 2]) {
      const alone = await logOdds(one, clip.subarray(f * 256, (f + 1) * 256), 1);
      for (let k = 0; k < 10; k++) expect(together[f * 10 + k]).toBeCloseTo(alone[k], 4);
    }
    one.dispose();
  });

  it("refuses clips without digits", () => {
    expect(() => new DigitClassifier({ digits: 0, digitSize: 14 }, new Initializer(target))).toThrow(
      "whole number from 1, got 0",
    );
  });
});

describe("training", () => {
  it("learns to read, deterministically", async () => {
    const live = async () => {
      await target.synchronize();
      return target.memory().live;
    };
    const before = await live();
    const steps: number[] = [];
    const classifier = await trainDigitClassifier(small, {
      device: target,
      steps: 150,
      seed: 1,
      onStep: (done) => steps.push(done),
    });
    expect(steps).toEqual(Array.from({ length: 150 }, (_, i) => i + 1));
    const held = new MovingMnist({
      split: "test",
      frames: 3,
      height: 16,
      width: 16,
      digits: 1,
      digitSize: 14,
      seed: 5,
    });
    let right = 0;
    for (let i = 0; i < 100; i++) {
      const { video, labels } = held.clip(i);
      const z = await logOdds(classifier, video, 3);
      const sum = Array.from({ length: 10 }, (_, k) => z[k] + z[10 + k] + z[20 + k]);
      if (likeliestDigits(sum, 1)[0] === labels[0]) right++;
    }
    // Chance is 10; the seed gives far more than this.
    expect(right).toBeGreaterThan(70);
    const twins = [1, 1, 2].map((seed) => trainDigitClassifier(small, { device: target, steps: 3, seed }));
    const [a, b, c] = await Promise.all(twins);
    const states = await Promise.all([a, b, c].map(state));
    expect(states[1]).toEqual(states[0]);
    expect(states[2]).not.toEqual(states[0]);
    for (const each of [classifier, a, b, c]) each.dispose();
    expect(await live()).toBe(before);
  });

  it("keeps one for each kind of clip, and replaces a damaged one", async () => {
    const options = { device: target, steps: 2 };
    const first = await keptDigitClassifier(folder, small, options);
    const [name] = readdirSync(folder);
    expect(name).toMatch(/^digit-classifier-[0-9a-f]{12}\.safetensors$/);
    const path = join(folder, name);
    const written = statSync(path).mtimeMs;
    let trained = 0;
    const again = await keptDigitClassifier(folder, small, { ...options, onStep: () => trained++ });
    expect({ trained, written: statSync(path).mtimeMs }).toEqual({ trained: 0, written });
    expect(await state(again)).toEqual(await state(first));
    expect(again.training).toBe(false);
    const bytes = readFileSync(path);
    writeFileSync(path, bytes.subarray(0, 1000));
    const repaired = await keptDigitClassifier(folder, small, { ...options, onStep: () => trained++ });
    expect(trained).toBe(2);
    expect(readFileSync(path)).toEqual(bytes);
    const other = await keptDigitClassifier(folder, { ...small, digit_size: 12 }, options);
    expect(readdirSync(folder)).toHaveLength(2);
    // A folder that is not there keeps nothing, and that is no fault.
    const homeless = await keptDigitClassifier(join(folder, "none"), small, options);
    for (const each of [first, again, repaired, other, homeless]) each.dispose();
  });

  it("stops at the signal", async () => {
    const stop = new AbortController();
    const training = trainDigitClassifier(small, {
      device: target,
      steps: 1000,
      signal: stop.signal,
      onStep: () => stop.abort(),
    });
    await expect(training).rejects.toMatchObject({ code: "aborted" });
  });
});
