import { describe, expect, it } from "vitest";
import { MovingMnist, promptFor } from "../../lib/data/index.js";
import { DigitClassifier } from "../../lib/models/index.js";
import { Initializer } from "../../lib/nn/index.js";
import { readVideo, score } from "../../lib/pipelines/evaluate.js";
import { drawPrompts, Video } from "../../lib/pipelines/index.js";
import { device } from "../../lib/tensor/index.js";

describe("score", () => {
  it("counts clips whose digits were all recognised, in any order, and each digit as often as it is there", () => {
    const shown = [
      [7, 3],
      [3, 3],
      [0, 1],
      [9, 9],
    ];
    const found = [
      [3, 7],
      [3, 5],
      [1, 2],
      [9, 9],
    ];
    const { clips, accuracy, perDigit } = score(shown, found);
    expect({ clips, accuracy }).toEqual({ clips: 4, accuracy: 0.5 });
    const rows = perDigit.map(({ shown, recognised }) => `${recognised}/${shown}`);
    expect(rows).toEqual(["0/1", "1/1", "0/0", "2/3", "0/0", "0/0", "0/0", "1/1", "0/0", "2/2"]);
  });
});

describe("readVideo", () => {
  it("reads clips one by one, grey or RGB, as many as there are", async () => {
    const data = new MovingMnist({ frames: 2, height: 16, width: 16, digits: 2, digitSize: 10 });
    const clips = Array.from({ length: 18 }, (_, i) => data.clip(i).video);
    const classifier = new DigitClassifier({ digits: 2, digitSize: 10 }, new Initializer(device(), 3)).train(false);
    const all = await readVideo(classifier, new Video(clips, 2, 16, 16, 1));
    expect(all).toHaveLength(18);
    expect(await readVideo(classifier, new Video([clips[17]], 2, 16, 16, 1))).toEqual([all[17]]);
    const colour = clips.map((clip) => Uint8Array.from({ length: 3 * clip.length }, (_, i) => clip[Math.floor(i / 3)]));
    expect(await readVideo(classifier, new Video(colour, 2, 16, 16, 3))).toEqual(all);
    classifier.dispose();
  });
});

describe("drawPrompts", () => {
  it("names digits drawn at random by word or figure", () => {
    const drawn = drawPrompts({ digits: 2, num_classes: 10 }, 200, 4);
    expect(drawPrompts({ digits: 2, num_classes: 10 }, 200, 4)).toEqual(drawn);
    for (const [i, { labels, prompt }] of drawn.entries()) expect(prompt).toBe(promptFor(labels, 4, i));
    expect(new Set(drawn.flatMap(({ labels }) => labels)).size).toBe(10);
    const figures = drawn.flatMap(({ prompt }) => prompt.split(" and ")).filter((word) => /^\d$/.test(word)).length;
    expect(Math.abs(figures - 200)).toBeLessThan(40);
  });
});
