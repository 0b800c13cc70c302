/** Videos drawn at once in one process: what fails in one is that one's. */
import { beforeAll, describe, expect, it } from "vitest";
import { device, type LtxVideoOptions, LtxVideoPipeline, type NoiseSource, ops, Tensor } from "../../../lib/index.js";
import { testFolder } from "../../support/tiny.js";
import { TINY_TIMES, tinyCheckpoint, tinyTextEncoder } from "../../support/tiny-official.js";

const folder = testFolder();
let pipeline: LtxVideoPipeline;
beforeAll(async () => {
  const textEncoder = await tinyTextEncoder(folder);
  pipeline = await LtxVideoPipeline.load({ checkpoint: tinyCheckpoint, textEncoder, precision: "float32" });
});

const size = { height: 32, width: 64, numFrames: 9, frameRate: 25 };
const options: LtxVideoOptions = { prompt: "three", ...size, timesteps: TINY_TIMES, guidanceScale: 3, seed: 1 };
const draw = async (more: Partial<LtxVideoOptions> = {}) => {
  const { clips } = await pipeline.generate({ ...options, ...more });
  return clips.map((clip) => Buffer.from(clip).toString("base64"));
};
const failure = { code: "native", message: expect.stringMatching(/^\[gather_rows\] index 9 at position 0 /) };

/** Numbers that could not be made. */
const broken = (shape: readonly number[]) =>
  ops.reshape(ops.gatherRows(ops.full([3, shape.reduce((a, b) => a * b, 1)], 1), Tensor.from(Int32Array.of(9), [1])), [
    ...shape,
  ]);

describe("videos drawn at once", () => {
  it("fail alone, wherever in the drawing, and the others are as if drawn alone", async () => {
    const expected = [await draw(), await draw({ seed: 2 })];
    const noise: NoiseSource = { draw: (_, shape) => broken(shape), planes: () => ({ seed: 1, step: 0, purpose: 8 }) };
    const before = device().memory().live;
    const results = await Promise.allSettled([
      draw({ noise }),
      draw(),
      draw({ decodeTimestep: 0.05, decodeNoiseScale: 0.025, noise }),
      draw({ seed: 2 }),
    ]);
    expect(results.map(({ status }) => status)).toEqual(["rejected", "fulfilled", "rejected", "fulfilled"]);
    for (const i of [0, 2]) expect((results[i] as PromiseRejectedResult).reason).toMatchObject(failure);
    expect([1, 3].map((i) => (results[i] as PromiseFulfilledResult<string[]>).value)).toEqual(expected);
    expect(device().memory().live).toBe(before);
    expect(await draw()).toEqual(expected[0]);
  });

  it("are right beside a user whose kernels fail all the time", async () => {
    const expected = await draw();
    let drawing = true;
    const trouble = async () => {
      let failures = 0;
      for (; drawing || failures === 0; failures++) {
        const bad = broken([4]);
        await expect(bad.read()).rejects.toMatchObject(failure);
        bad.dispose();
      }
      return failures;
    };
    const other = trouble();
    const video = await draw().finally(() => {
      drawing = false;
    });
    expect(video).toEqual(expected);
    expect(await other).toBeGreaterThan(1);
  });
});
