/** Decoding in tiles: the same video from less memory. */
import { afterEach, describe, expect, it, vi } from "vitest";
import { parseOfficialVae } from "../../lib/config/index.js";
import { CausalVideoAutoencoder, planDecode, type TilePlan } from "../../lib/models/index.js";
import { Initializer } from "../../lib/nn/index.js";
import { normal, uniform } from "../../lib/ops/index.js";
import { device, noGrad, type Shape } from "../../lib/tensor/index.js";
import { relativeError } from "../golden/support/check.js";
import { RELEASES } from "../support/official-vae.js";

const vaes: CausalVideoAutoencoder[] = [];
afterEach(() => {
  for (const vae of vaes.splice(0)) vae.dispose();
});
function vaeOf(config: object, computeDtype: "f32" | "bf16" = "f32") {
  const vae = new CausalVideoAutoencoder(parseOfficialVae(config, "test"), new Initializer(device(), 5), {
    computeDtype,
  });
  for (const [name, p] of vae.namedParameters()) {
    if (name.includes("per_channel_scale")) p.write(new Float32Array(p.size).fill(0.5));
  }
  vaes.push(vae.requiresGrad(false));
  return vae;
}
const key = (purpose: number) => ({ seed: 1, step: 0, purpose });

/** The video, and the most memory that decoding it took. */
async function decode(vae: CausalVideoAutoencoder, shape: Shape, tiling: TilePlan | "off" | "auto") {
  const latents = normal(shape, key(0));
  const time = vae.timestepConditioning ? uniform([shape[0]], key(1)) : null;
  const before = device().memory().live;
  device().resetPeak();
  const video = noGrad(() => vae.decode(latents, time, { noise: key(2), tiling }));
  const values = Float32Array.from(await video.read());
  const taken = device().memory().peak - before;
  for (const t of [latents, time, video]) t?.dispose();
  return [values, taken] as const;
}

const plan = (from: number, ...parts: [number, number, number]): TilePlan => ({ from, parts, bytes: 0, work: 1 });

/** One layer a level, so that tiles see little of each other and some of them nothing of an edge. */
const thin = {
  ...RELEASES["0.9.5"],
  decoder_blocks: RELEASES["0.9.5"].decoder_blocks.map(([name, params]) =>
    name === "res_x" ? ["res_x", { num_layers: 1, inject_noise: true }] : [name, params],
  ),
};
const layouts: [name: string, config: object][] = [
  ["0.9.0", RELEASES["0.9.0"]],
  ["0.9.1, with noise", RELEASES["0.9.1"]],
  ["0.9.5", RELEASES["0.9.5"]],
  ["causal, with noise", { ...thin, causal_decoder: true }],
  ["layer norm, reflected edges", { ...thin, norm_layer: "layer_norm", spatial_padding_mode: "reflect" }],
  [
    "time and space apart",
    {
      ...RELEASES["0.9.0"],
      blocks: undefined,
      encoder_blocks: [
        ["compress_space", 1],
        ["compress_time", 1],
      ],
      decoder_blocks: [
        ["res_x", 1],
        ["compress_space", 1],
        ["res_x_y", 1],
        ["compress_time", 1],
      ],
    },
  ],
];

describe("a tiled decoding", () => {
  it.each(layouts)("of %s gives the whole video, wherever it begins and however it is cut", async (_, config) => {
    const vae = vaeOf(config);
    const shape = [2, 3, 3, 4, 8];
    const [whole] = await decode(vae, shape, "off");
    const last = vae.decoder.up_blocks.length;
    for (const from of Array.from({ length: last + 1 }, (_, i) => i)) {
      const parts: [number, number, number] = from % 2 ? [3, 1, 2] : [1, 3, 2];
      const [tiled] = await decode(vae, shape, plan(from, ...parts));
      expect(relativeError(tiled, whole), `from ${from} in ${parts}`).toBeLessThan(2e-6);
    }
  });

  it("of a long, thin decoder has tiles without any edge", async () => {
    const vae = vaeOf(thin);
    const [whole] = await decode(vae, [1, 9, 8, 2, 8], "off");
    const [tiled] = await decode(vae, [1, 9, 8, 2, 8], plan(5, 12, 8, 1));
    expect(relativeError(tiled, whole)).toBeLessThan(2e-6);
  });

  it("in bf16 differs by no more than roundings", async () => {
    const vae = vaeOf(RELEASES["0.9.5"], "bf16");
    const [whole] = await decode(vae, [1, 3, 3, 4, 8], "off");
    const [tiled] = await decode(vae, [1, 3, 3, 4, 8], plan(5, 2, 2, 2));
    expect(relativeError(tiled, whole)).toBeLessThan(1e-3);
  });

  it("leaves nothing behind", async () => {
    const vae = vaeOf(RELEASES["0.9.1"]);
    const before = device().memory().live;
    await decode(vae, [2, 2, 2, 2, 8], plan(3, 2, 2, 2));
    await device().synchronize();
    expect(device().memory().live).toBe(before);
  });

  it("cannot follow another decoder's plan", async () => {
    const vae = vaeOf(RELEASES["0.9.5"]);
    await expect(decode(vae, [1, 1, 1, 1, 8], plan(9, 2, 1, 1))).rejects.toThrow(/a plan from block 9 .* this decoder/);
  });
});

describe("a plan", () => {
  // In proportion to a release: the blocks take much more than the pixels.
  const wide = {
    ...RELEASES["0.9.5"],
    decoder_base_channels: 32,
    decoder_blocks: RELEASES["0.9.5"].decoder_blocks.map((block) =>
      block[0] === "res_x" ? ["res_x", { num_layers: 1 }] : block,
    ),
  };
  const shape = [1, 4, 6, 8, 8];

  it.each(["f32", "bf16"] as const)("knows what decoding takes in %s", async (dtype) => {
    const vae = vaeOf(wide, dtype);
    const whole = vae.planDecode(shape, Number.POSITIVE_INFINITY);
    expect(whole.parts).toEqual([1, 1, 1]);
    const smaller = vae.planDecode(shape, 0.6 * whole.bytes);
    expect(smaller.parts).not.toEqual([1, 1, 1]);
    for (const chosen of [whole, smaller]) {
      const [, taken] = await decode(vae, shape, chosen);
      expect(taken / chosen.bytes).toBeLessThan(1.02);
      expect(taken / chosen.bytes).toBeGreaterThan(0.85);
    }
  });

  it("is the whole where that fits, and otherwise the least work within the budget", () => {
    const { config } = vaeOf(wide).decoder;
    const budgets = [1, 0.8, 0.6, 0.5, 0.4];
    const { bytes } = planDecode(config, shape, Number.POSITIVE_INFINITY, 4);
    const plans = budgets.map((share) => planDecode(config, shape, share * bytes, 4));
    expect(plans[0]).toMatchObject({ parts: [1, 1, 1], work: 1 });
    for (const [i, { bytes: needed, work }] of plans.entries()) {
      expect(needed).toBeLessThanOrEqual(budgets[i] * bytes);
      expect(work).toBeGreaterThanOrEqual(i === 0 ? 1 : plans[i - 1].work);
    }
  });

  it("tiles nothing before a block that sees everything", () => {
    const attention = vaeOf({
      ...wide,
      decoder_blocks: wide.decoder_blocks.map((block, i) =>
        i === 2 ? ["attn_res_x", { num_layers: 1, attention_head_dim: 32 }] : block,
      ),
    });
    const { bytes } = attention.planDecode(shape, Number.POSITIVE_INFINITY);
    expect(attention.planDecode(shape, 0.8 * bytes).from).toBeGreaterThan(4);
  });

  it("is an error that says what to do when nothing fits", () => {
    const { config } = vaeOf(wide).decoder;
    expect(() => planDecode(config, shape, 1e6, 4)).toThrow(
      /decoding 1 of 25x96x128 needs .* [MG]iB even in tiles, .* [KM]iB are free: lower num_frames, height or width/,
    );
    const group = { ...config, norm_layer: "group_norm" } as const; // every block sees everything
    const { bytes } = planDecode(group, shape, Number.POSITIVE_INFINITY, 4);
    expect(() => planDecode(group, shape, 0.9 * bytes, 4)).toThrow(/even in tiles/);
  });

  it("is made by itself where the device has too little room", async () => {
    const vae = vaeOf(wide);
    const [whole, all] = await decode(vae, shape, "auto");
    const room = vi.spyOn(device(), "available").mockReturnValue(0.8 * all);
    const [tiled, taken] = await decode(vae, shape, "auto");
    room.mockRestore();
    expect(relativeError(tiled, whole)).toBeLessThan(2e-6);
    expect(taken).toBeLessThan(0.75 * all);
  });
});
