import { describe, expect, it } from "vitest";
import { eulerSteps, holdFrames, withHeldFrames } from "../../lib/diffusion/index.js";
import { axpby, normal } from "../../lib/ops/index.js";
import { device, noGrad, scope, type Tensor } from "../../lib/tensor/index.js";

const cpu = device("cpu");
const key = (purpose: number) => ({ seed: 3, step: 0, purpose });
const values = async (x: Tensor) => [...((await x.read()) as Float32Array)];

describe("held frames", () => {
  it("keep to the straight line from noise to data, while the others follow the model", async () => {
    const [batch, frames, held, size] = [2, 4, 2, 2 * 3 * 5];
    const start = normal([batch, frames, 2, 3, 5], key(1), { device: cpu });
    const known = normal([batch, held, 2, 3, 5], key(2), { device: cpu });
    const [noise, data] = [await values(start), await values(known)];
    const hold = holdFrames(start, known);
    // A model that sees the held frames: v = -x/2.
    const velocity = withHeldFrames((x) => axpby(-0.5, x, 0, x), hold);
    const free = [...noise];
    for await (const { time, latents } of eulerSteps({ velocity, start, steps: 4 })) {
      const found = await values(latents);
      for (let i = 0; i < found.length; i++) {
        free[i] *= 1 - 0.5 / 4;
        const frame = Math.floor(i / size) % frames;
        const sample = Math.floor(i / size / frames);
        const x0 = data[(sample * held + frame) * size + (i % size)];
        expect(found[i]).toBeCloseTo(frame < held ? time * x0 + (1 - time) * noise[i] : free[i], 5);
      }
      if (time === 1) latents.dispose();
    }
    for (const x of [start, known, hold.target, hold.free]) x.dispose();
  });

  it("may be all or just one, but must fit", () => {
    noGrad(() =>
      scope(() => {
        const start = normal([1, 3, 1, 1, 2], key(1), { device: cpu });
        holdFrames(start, normal([1, 3, 1, 1, 2], key(2), { device: cpu }));
        holdFrames(start, normal([1, 1, 1, 1, 2], key(2), { device: cpu }));
        for (const shape of [
          [1, 4, 1, 1, 2],
          [2, 1, 1, 1, 2],
          [1, 1, 1, 1, 3],
        ])
          expect(() => holdFrames(start, normal(shape, key(2), { device: cpu }))).toThrow(
            `[held frames] [${shape}] is not the beginning of a state [1,3,1,1,2]`,
          );
      }),
    );
  });
});
