import { describe, expect, it } from "vitest";
import { type Clip, type DataSource, loadClips, MovingMnist, openData, withFrames } from "../../lib/data/index.js";

/** Two clips of three 1×2 frames, whose bytes tell frame and column. */
const source: DataSource = {
  length: 2,
  frames: 3,
  height: 1,
  width: 2,
  channels: 1,
  clip: (index): Clip => ({
    video: Uint8Array.from([0, 1, 10, 11, 20, 21], (v) => v + 100 * index),
    frames: 3,
    height: 1,
    width: 2,
    channels: 1,
    prompt: `clip ${index}`,
  }),
};

describe("clips that are not of their source's size", () => {
  const broken = (changes: Partial<Clip>): DataSource => ({
    ...source,
    clip: (index) => ({ ...(source.clip(index) as Clip), ...changes }),
  });
  const cases: [string, Partial<Clip>][] = [
    ["too few bytes", { video: new Uint8Array(5) }],
    ["too many bytes", { video: new Uint8Array(7) }],
    ["no bytes at all", { video: new Uint8Array(0) }],
    ["other frames than they have bytes for", { frames: 4 }],
    ["height and width exchanged", { height: 2, width: 1 }],
  ];
  for (const [name, changes] of cases) {
    it(`with ${name} are refused by name`, async () => {
      const expected = { code: "shape_mismatch", message: expect.stringContaining("clip 1 is ") };
      await expect(loadClips(broken(changes), [1])).rejects.toMatchObject(expected);
      for (const frames of [2, 5]) {
        const fitted = withFrames(broken(changes), frames);
        await expect(Promise.resolve().then(() => fitted.clip(1))).rejects.toMatchObject(expected);
      }
    });
  }

  it("with numbers instead of bytes are refused", async () => {
    const video = [0, 1, 10, 11, 20, 21] as unknown as Uint8Array;
    await expect(loadClips(broken({ video }), [0])).rejects.toMatchObject({ code: "invalid_argument" });
  });

  it.each(["length", "frames", "height", "width", "channels"])("a source needs a whole number as its %s", (name) => {
    for (const value of [0, -1, 1.5, Number.NaN, undefined, "3"]) {
      expect(() => withFrames({ ...source, [name]: value }, 3)).toThrow(
        `a data source's ${name} must be a whole number`,
      );
    }
  });
});

describe("withFrames", () => {
  it("repeats short clips end to end and cuts long ones", async () => {
    const long = withFrames(source, 5);
    expect([long.frames, long.length]).toEqual([5, 2]);
    const clip = await long.clip(1);
    expect([...clip.video]).toEqual([100, 101, 110, 111, 120, 121, 100, 101, 110, 111]);
    expect(clip).toMatchObject({ frames: 5, height: 1, width: 2, prompt: "clip 1" });
    expect([...(await withFrames(source, 2).clip(0)).video]).toEqual([0, 1, 10, 11]);
    expect((await withFrames(source, 7).clip(0)).video).toHaveLength(14);
  });

  it("waits for clips that are loaded, and keeps the wordings of their prompts", async () => {
    const loaded: DataSource = {
      ...source,
      clip: async (index) => source.clip(index),
      promptFor: (labels, seed, draw) => `${labels} ${seed} ${draw}`,
    };
    const fitted = withFrames(loaded, 4);
    expect([...(await fitted.clip(0)).video]).toEqual([0, 1, 10, 11, 20, 21, 0, 1]);
    expect(fitted.promptFor?.([3], 1, 2)).toBe("3 1 2");
    expect(withFrames(source, 4).promptFor).toBeUndefined();
  });

  it("is the source itself where nothing is to be done, and asks for a number of frames", () => {
    expect(withFrames(source, 3)).toBe(source);
    expect(() => withFrames(source, 0)).toThrow("[data] a clip needs a positive whole number of frames, got 0");
  });

  it("is what a configuration's source_frames asks for", async () => {
    const options = {
      source: "moving-mnist",
      height: 32,
      width: 32,
      num_channels: 1,
      frame_processing: "clip",
      digits: 1,
      digit_size: 20,
      seed: 3,
      size: 4,
      min_speed: 1,
      max_speed: 2,
    } as const;
    const data = await openData({ ...options, frames: 5, source_frames: 3 });
    const clips = { frames: 3, height: 32, width: 32, digits: 1, digitSize: 20, seed: 3, minSpeed: 1, maxSpeed: 2 };
    const three = new MovingMnist({ ...clips, size: 4 });
    const { video } = await three.clip(2);
    const expected = [...video, ...video.subarray(0, 2 * 32 * 32)];
    expect([...(await data.clip(2)).video]).toEqual(expected);
  });
});
