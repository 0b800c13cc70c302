/** Its numbers are held against the official code's by the golden fixtures. */
import { afterAll, describe, expect, it } from "vitest";
import type { UpsamplerConfig } from "../../lib/config/index.js";
import { LatentUpsampler } from "../../lib/models/index.js";
import { Initializer } from "../../lib/nn/index.js";
import { normal, sliceFirst, sum } from "../../lib/ops/index.js";
import { backward, device, noGrad, scope } from "../../lib/tensor/index.js";
import { relativeError } from "../golden/support/check.js";

const made: LatentUpsampler[] = [];
afterAll(() => {
  for (const model of made) model.dispose();
});
function upsampler(changes: Partial<UpsamplerConfig> = {}) {
  const least = { in_channels: 4, mid_channels: 32, num_blocks_per_stage: 1, dims: 3 } as const;
  const config = { ...least, spatial_upsample: true, temporal_upsample: false, ...changes };
  const model = new LatentUpsampler(config, new Initializer(device(), 3));
  made.push(model);
  return model;
}
const draw = (...shape: number[]) => normal(shape, { seed: 1, step: 0, purpose: 0 });

describe("a latent upsampler", () => {
  it.each([
    ["height and width", {}, [2, 3, 8, 10, 4]],
    ["height and width, frame by frame", { dims: 2 }, [2, 3, 8, 10, 4]],
    ["frames", { spatial_upsample: false, temporal_upsample: true }, [2, 5, 4, 5, 4]],
    ["both", { temporal_upsample: true }, [2, 5, 8, 10, 4]],
  ] as [string, Partial<UpsamplerConfig>, number[]][])("doubles %s", (_, changes, shape) => {
    const model = upsampler(changes);
    const y = scope(() => {
      const y = model.forward(draw(2, 3, 4, 5, 4));
      backward(sum(y));
      return y;
    });
    expect(y.shape).toEqual(shape);
    expect(model.initial_conv.weight.grad?.shape).toEqual(model.initial_conv.weight.shape);
    y.dispose();
  });

  it("sees one frame at a time with dims 2", async () => {
    const model = upsampler({ dims: 2 });
    const [all, second] = noGrad(() =>
      scope(() => {
        const x = draw(2, 1, 4, 4, 4);
        return [model.forward(x), model.forward(sliceFirst(x, 1, 1))];
      }),
    );
    const values = await all.read();
    expect(relativeError(values.slice(values.length / 2), await second.read())).toBeLessThan(1e-6);
    for (const t of [all, second]) t.dispose();
  });

  it("refuses latents of another width", () => {
    expect(() => scope(() => upsampler().forward(draw(1, 1, 2, 2, 3)))).toThrow(
      /latents \(B,f,h,w,4\), got \[1,1,2,2,3\]/,
    );
  });
});
