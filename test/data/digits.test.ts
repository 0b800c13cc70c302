import { describe, expect, it } from "vitest";
import { loadDigits } from "../../lib/data/digits.js";

describe("loadDigits", () => {
  it("holds the 10,000 digits of the mnist package, a sixth of each label for testing", () => {
    const train = loadDigits("train").images.map((images) => images.length);
    const test = loadDigits("test").images.map((images) => images.length);
    expect(train.map((count, label) => count + test[label])).toEqual([
      1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978,
    ]);
    expect(test).toEqual(train.map((count, label) => Math.floor((count + test[label]) / 6)));
  });

  it("gives the original bytes", async () => {
    const { createRequire } = await import("node:module");
    const { data } = createRequire(__filename)("mnist/src/digits/7.json") as { data: number[] };
    const original = (i: number) => Uint8Array.from(data.slice(i * 784, (i + 1) * 784), (v) => Math.round(v * 255));
    const { side, images } = loadDigits("train");
    expect(side).toBe(28);
    expect(images[7][0]).toEqual(original(0));
    expect(images[7][5]).toEqual(original(6));
    expect(loadDigits("test").images[7][1]).toEqual(original(11));
  });

  it("reads the file once", () => {
    expect(loadDigits("test").images).toBe(loadDigits("test").images);
  });

  it("shares no image between the splits", () => {
    const seen = new Set(
      loadDigits("train")
        .images.flat()
        .map((image) => Buffer.from(image).toString("latin1")),
    );
    const shared = loadDigits("test")
      .images.flat()
      .filter((image) => seen.has(Buffer.from(image).toString("latin1")));
    expect(shared).toHaveLength(0);
  });
});
