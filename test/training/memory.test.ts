/** Live bytes on the device: the same at any step, and nothing once all is disposed of. */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { device } from "../../lib/tensor/index.js";
import { FlowTrainer, type TrainEvent, VaeTrainer } from "../../lib/training/index.js";
import { liveBytes } from "../support/gradcheck.js";
import { collect, testFolder, tinyFlow, tinyVae } from "../support/tiny.js";
import { trainTinyVae } from "../support/tiny-models.js";

const folder = testFolder();
let before: number;
beforeEach(async () => {
  before = await liveBytes();
});
afterEach(async () => {
  expect(await liveBytes()).toBe(before);
});

/** Live bytes after each of these steps. */
async function liveAt(trainer: VaeTrainer | FlowTrainer, at: readonly number[]): Promise<number[]> {
  const found: number[] = [];
  for (const steps of at) {
    await collect(trainer.run({ steps }));
    found.push(await liveBytes());
  }
  return found;
}

// Held-out scores are drawn at step 8 and then every 8: validation is part of what must leave nothing.
const long = (file: { vae: { training: object }; flow: { training: object } }) => {
  Object.assign(file.vae.training, { steps: 100 });
  Object.assign(file.flow.training, { steps: 100 });
};

describe("live bytes", () => {
  it("stay the same from step 10 to 60 of a VAE", async () => {
    const trainer = await VaeTrainer.create({ config: tinyVae(long) });
    const [early, later] = await liveAt(trainer, [10, 60]);
    expect(early).toBeGreaterThan(before);
    expect(later).toBe(early);
    trainer.dispose();
  });

  it("stay the same from step 10 to 60 of a transformer", async () => {
    const trainer = await FlowTrainer.create({ config: tinyFlow(long), vae: await trainTinyVae(folder) });
    const [early, later] = await liveAt(trainer, [10, 60]);
    expect(later).toBe(early);
    trainer.dispose();
  });

  it("with accumulated gradients too", async () => {
    const trainer = await VaeTrainer.create({
      config: tinyVae((file) => {
        file.vae.training.gradient_accumulation_steps = 3;
        file.vae.training.ema_decay = 0.9;
      }),
    });
    const [early, later] = await liveAt(trainer, [4, 9]);
    expect(later).toBe(early);
    trainer.dispose();
  });
});

describe("peak bytes of a step", () => {
  /** Beyond what lies between two steps, after which no gradient is left. */
  async function peakAt(gradient_checkpointing: boolean, batch_size: number): Promise<number> {
    const trainer = await VaeTrainer.create({
      config: tinyVae((file) => {
        Object.assign(file.vae.vae_config.params, {
          encoder_blocks: [
            ["res_x", 12],
            ["compress_all", 1],
          ],
          decoder_blocks: [
            ["compress_all", 1],
            ["res_x", 12],
          ],
        });
        Object.assign(file.vae.training, { gradient_checkpointing, batch_size });
      }),
    });
    await collect(trainer.run({ steps: 1 }));
    const between = await liveBytes();
    device().resetPeak();
    await collect(trainer.run({ steps: 2 }));
    expect(device().memory()).toMatchObject({ live: between, groups: { gradients: 0 } });
    const peak = device().memory().peak - between;
    trainer.dispose();
    return peak;
  }

  it("grow by the same for each clip, and by less than half with checkpoints", async () => {
    const growth = [];
    for (const checkpointing of [false, true]) {
      const peaks = [];
      for (const batch of [16, 32, 48]) peaks.push(await peakAt(checkpointing, batch));
      const [first, second] = [peaks[1] - peaks[0], peaks[2] - peaks[1]];
      expect(second / first).toBeCloseTo(1, 1);
      growth.push(first);
    }
    expect(growth[1]).toBeLessThan(0.5 * growth[0]);
  });
});

describe("nothing stays behind", () => {
  it("when a run is left in the middle of a step", async () => {
    const trainer = await VaeTrainer.create({ config: tinyVae() });
    for await (const event of trainer.run()) if (event.type === "step" && event.step === 3) break;
    trainer.dispose();
  });

  it("when the signal stops the encoding of the latents", async () => {
    const trainer = await FlowTrainer.create({ config: tinyFlow(), vae: await trainTinyVae(folder) });
    const stop = new AbortController();
    const seen: TrainEvent[] = [];
    for await (const event of trainer.run({ signal: stop.signal })) {
      seen.push(event);
      if (event.type === "prepare") stop.abort();
    }
    expect(seen.map(({ type }) => type)).toEqual(["start", "prepare", "end"]);
    expect(seen[2]).toMatchObject({ reason: "aborted", step: 0 });
    trainer.dispose();
  });

  it("when a trainer cannot be made", async () => {
    const vae = await trainTinyVae(folder);
    const wide = tinyFlow((file) => {
      file.vae.vae_config.params.base_channels = 16;
    });
    await expect(FlowTrainer.create({ config: wide, vae })).rejects.toMatchObject({ code: "checkpoint" });
    const unsupported = tinyVae((file) => {
      file.vae.vae_config.params.loss_config.params.perceptual_weight = 1;
    });
    await expect(
      VaeTrainer.create({ config: unsupported }).then((trainer) => trainer.dispose()),
    ).resolves.toBeUndefined();
  });

  it("when the loss is not a number; the parameters stay finite", async () => {
    const config = tinyVae();
    const trainer = await VaeTrainer.create({ config });
    await collect(trainer.run({ steps: 2 }));
    const weights = trainer.vae.parameters();
    const kept = (await weights[0].read()) as Float32Array;
    weights[weights.length - 1].write(new Float32Array(weights[weights.length - 1].size).fill(Number.NaN));
    await expect(collect(trainer.run({ steps: 5 }))).rejects.toMatchObject({
      code: "non_finite",
      message: expect.stringContaining("[vae] step 3: the loss is NaN"),
    });
    // Adam leaves out an update whose gradient is not finite.
    expect(await weights[0].read()).toEqual(kept);
    trainer.dispose();
  });
});
