import { describe, expect, it } from "vitest";
import { floorSeconds, leastBytes } from "../../bench/floor.js";
import { countFlops, opFlops, totalFlops } from "../../bench/flops.js";
import { median } from "../../bench/measure.js";
import type { SampleSetup, Setup } from "../../bench/protocol.js";
import { SUITES, setups } from "../../bench/setups.js";
import { createTask } from "../../bench/tasks.js";
import { Conv3d, Initializer, Linear } from "../../lib/nn/index.js";
import { device, noGrad, scope } from "../../lib/tensor/index.js";

const tiny = (only: string[] = []) =>
  setups({ suite: "tiny", device: "cpu", only, dtype: ["f32"], batch: [], config: [] });

describe("the floor of a step", () => {
  it("is operations at the highest rate and then bytes at the highest bandwidth", () => {
    const ceilings = { bandwidth: 100, flops: { f32: 50, bf16: 200 } };
    expect(floorSeconds(1000, 300, "f32", ceilings)).toBe(20 + 3);
    expect(floorSeconds(1000, 300, "bf16", ceilings)).toBe(5 + 3);
    expect(floorSeconds(1000, 300, "bf16", { ...ceilings, flops: { f32: 50 } })).toBeNull();
    expect(floorSeconds(1000, 300, "f32", { ...ceilings, bandwidth: null })).toBeNull();
  });

  it("moves parameters, gradients and moments once in training, weights alone else", () => {
    expect(leastBytes(10, true, "f32")).toBe(280);
    expect(leastBytes(10, true, "bf16")).toBe(280);
    expect(leastBytes(10, false, "f32")).toBe(40);
    expect(leastBytes(10, false, "bf16")).toBe(20);
  });
});

describe("floating-point operations", () => {
  it("are those of the products, by hand", async () => {
    const init = new Initializer(device());
    const linear = new Linear(5, 7, init);
    const conv = new Conv3d(2, 3, [3, 3, 3], init, { padTime: [2, 0], padSpace: [1, 1] });
    const flops = await countFlops(async () => {
      noGrad(() =>
        scope(() => {
          linear.forward(init.constant([4, 5], 1));
          conv.forward(init.constant([1, 6, 8, 9, 2], 1));
        }),
      );
    });
    expect(flops.linear).toBe(2 * 4 * 5 * 7);
    expect(flops.conv3d).toBe(2 * (6 * 8 * 9) * 27 * 2 * 3);
    expect(flops.attention).toBe(0);
    expect(totalFlops(flops)).toBe(flops.linear + flops.conv3d);
    const before = { ...flops };
    scope(() => linear.forward(init.constant([4, 5], 1)));
    expect(flops).toEqual(before);
  });

  it("belong to the ops that do them", () => {
    const flops = { linear: 10, conv3d: 100, attention: 1000 };
    expect(opFlops("linear", flops)).toBe(10);
    expect(opFlops("linear_backward_weight", flops)).toBe(10);
    expect(opFlops("conv3d_backward_input", flops)).toBe(100);
    expect(opFlops("attention_backward", flops)).toBe(2500);
    expect(opFlops("norm_act", flops)).toBeUndefined();
  });

  it("of a step are those of its forward pass, guidance and all steps included", async () => {
    const [one] = (await tiny(["sample"])) as SampleSetup[];
    const count = async (guidance: number, steps: number) => {
      const config = { ...one.config, decoder: null, guidance, steps, initial_timestep: 0 };
      const task = createTask({ ...one, config }, device());
      return totalFlops(await countFlops(async () => (await task.forward()).dispose()));
    };
    const single = await count(1, 1);
    expect(single).toBeGreaterThan(0);
    expect(await count(1, 3)).toBe(3 * single);
    expect(await count(2, 3)).toBe(6 * single);
  });
});

describe("the middle value", () => {
  it("is that of an odd number of values, and halfway between two of an even number", () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(median([7])).toBe(7);
  });
});

describe("the suites", () => {
  const plain = ({ name, dtype, batch }: Setup) => `${name} ${dtype} ${batch}`;

  it("measure on the CPU what its results speak of", async () => {
    const choice = { suite: "cpu", device: "cpu", only: [], dtype: ["bf16"], batch: [], config: [] } as const;
    expect((await setups(choice)).map(plain)).toEqual([
      ...["vae-step bf16 1", "vae-step bf16 4", "vae-encode bf16 1", "vae-encode bf16 4"],
      ...[
        "vae-decode bf16 1",
        "vae-decode bf16 4",
        "flow-step bf16 32",
        "flow-step bf16 128",
        "flow-step-padded bf16 32",
        "sample bf16 8",
      ],
    ]);
  });

  it("have the official decoder where they don't measure that of the configuration", async () => {
    const choice = {
      suite: "gpu",
      device: "cpu",
      only: ["vae-decode"],
      dtype: ["bf16"],
      batch: [],
      config: [],
    } as const;
    const [decode, ...rest] = await setups(choice);
    expect(rest).toEqual([]);
    expect(decode.config.shape).toEqual([16, 16, 24, 128]);
    const [seed] = await setups({ ...choice, suite: "cpu" });
    expect(seed.config.shape).toEqual([4, 2, 2, 128]);
  });

  it("refuse what they don't have", async () => {
    const choice = {
      suite: "cpu",
      device: "cpu",
      only: ["ltx-forward"],
      dtype: ["f32"],
      batch: [],
      config: [],
    } as const;
    await expect(setups(choice)).rejects.toThrow(/ltx-forward.*vae-step/);
  });

  it("run every step that they name", async () => {
    const all = await tiny();
    expect([...new Set(all.map(({ name }) => name))].sort()).toEqual(Object.keys(SUITES.tiny).sort());
    for (const setup of all) {
      const { step, parameters, trains } = createTask(setup, device());
      const result = await step();
      const values = (await result.read()) as Float32Array;
      expect(values.every(Number.isFinite)).toBe(true);
      expect(result.shape[0] === setup.batch).toBe(!trains || setup.batch === 1);
      expect(parameters.length).toBeGreaterThan(0);
      result.dispose();
    }
  });
});
