import { afterAll, describe, expect, it } from "vitest";
import {
  DepthToSpaceUpsample,
  ResnetBlock3D,
  SpaceToDepthDownsample,
  UNetMidBlock3D,
} from "../../lib/models/video-vae/index.js";
import { Initializer, type Module } from "../../lib/nn/index.js";
import { normal } from "../../lib/ops/index.js";
import { device, noGrad, scope, type Tensor } from "../../lib/tensor/index.js";
import { at, draw, generate } from "../support/arrays.js";
import { checkOp, input } from "../support/gradcheck.js";

const init = new Initializer(device(), 2);
const modules: Module[] = [];
const frozen = <M extends Module>(module: M): M => {
  modules.push(module.requiresGrad(false));
  return module;
};
const zero = (module: Module) => {
  for (const p of module.parameters()) p.write(new Float32Array(p.size));
};
afterAll(() => {
  for (const module of modules) module.dispose();
});

describe("SpaceToDepthDownsample", () => {
  it("folds after doubling the first frame, and averages neighbouring channels", async () => {
    const block = frozen(new SpaceToDepthDownsample(4, 8, init, { stride: [2, 2, 2] }));
    zero(block); // leaves the shortcut
    await checkOp({
      operands: { x: input(draw([2, 3, 2, 4, 4], 1)) },
      run: ({ x }) => block.forward(x),
      // 32 folded channels (c, t, y, x) become 8: the mean over y and x for each c and t.
      reference: ({ x }) =>
        generate([2, 2, 1, 2, 8], (b, f, h, w, o) => {
          const [c, t] = [Math.floor(o / 2), o % 2];
          const frame = Math.max(2 * f + t - 1, 0);
          const pixel = (dy: number, dx: number) => at(x, b, frame, 2 * h + dy, 2 * w + dx, c);
          return (pixel(0, 0) + pixel(0, 1) + pixel(1, 0) + pixel(1, 1)) / 4;
        }),
    });
  });

  it("keeps frames where only space folds", async () => {
    const block = frozen(new SpaceToDepthDownsample(1, 4, init, { stride: [1, 2, 2] }));
    zero(block);
    await checkOp({
      operands: { x: input(draw([1, 2, 2, 4, 1], 2)) },
      run: ({ x }) => block.forward(x),
      reference: ({ x }) =>
        generate([1, 2, 1, 2, 4], (b, f, h, w, o) => at(x, b, f, 2 * h + Math.floor(o / 2), 2 * w + (o % 2), 0)),
    });
  });
});

describe("attn_res_x", () => {
  const options = { norm: "pixel_norm", attentionHeadDim: 4 } as const;
  const x = () => normal([1, 2, 2, 3, 8], { seed: 1, step: 0, purpose: 0 });

  it("adds attention that sees every position of its own clip", async () => {
    const block = frozen(new UNetMidBlock3D(8, 1, init, options));
    zero(block.res_blocks[0]); // leaves the attention
    const run = async (change: number) => {
      const values = await x().read();
      for (let c = 0; c < 8; c++) values[values.length - 1 - c] += change; // the last position
      const source = x();
      source.write(values as Float32Array);
      return (await noGrad(() => scope(() => block.forward(source))).read()).slice(0, 8); // the first position
    };
    expect(await run(1)).not.toEqual(await run(0));
  });

  it("is a residual: without values nothing is added", async () => {
    const block = frozen(new UNetMidBlock3D(8, 2, init, options));
    zero(block);
    expect(block.attention_blocks).toHaveLength(2);
    const source = x();
    expect(await noGrad(() => block.forward(source)).read()).toEqual(await source.read());
  });
});

describe("without gradients", () => {
  /** Bytes at the peak of a forward pass beyond its input, in units of the input's. */
  const peakOf = (module: Module & { forward(x: Tensor): Tensor }): number => {
    const x = normal([1, 5, 16, 16, 32], { seed: 1, step: 0, purpose: 0 });
    const before = device().memory().live;
    device().resetPeak();
    scope(() => noGrad(() => void frozen(module).forward(x)));
    const peak = device().memory().peak - before;
    x.dispose();
    return peak / (4 * x.size);
  };

  it("a residual block holds what it reads and what it writes", () => {
    expect(peakOf(new ResnetBlock3D(32, 32, init, { norm: "pixel_norm" }))).toBeLessThan(2.1);
    expect(peakOf(new ResnetBlock3D(32, 32, init, { norm: "group_norm", groups: 4 }))).toBeLessThan(2.1);
  });

  it("an upsampling block holds no more than three outputs", () => {
    const output = (9 * 32 * 32) / (5 * 16 * 16); // channels stay: factor 8 in space and time
    const block = new DepthToSpaceUpsample(32, init, { stride: [2, 2, 2], residual: true });
    expect(peakOf(block)).toBeLessThan(3.05 * output);
  });
});
