/** What a failure in the middle leaves behind: nothing, and a trainer that goes on as if it had not been. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type DataSource, MovingMnist } from "../../lib/data/index.js";
import { VideoVae } from "../../lib/models/index.js";
import { LtxVideoTransformer } from "../../lib/models/transformer/index.js";
import { Conv3d, Initializer } from "../../lib/nn/index.js";
import { Adam, Ema } from "../../lib/optim/index.js";
import { device } from "../../lib/tensor/index.js";
import { FlowTrainer, type TrainEvent, VaeTrainer } from "../../lib/training/index.js";
import { failure } from "../support/failure.js";
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

/** Runs `build` again and again with a little more memory each time, until it succeeds; @returns how often it failed. */
async function withGrowingMemory<T extends { dispose(): void }>(build: () => T | Promise<T>): Promise<number> {
  const { limit } = device().memory();
  const whole = await build();
  const needed = (await liveBytes()) - before;
  whole.dispose();
  let failures = 0;
  try {
    for (let part = 1; part < 16; part++) {
      await device().synchronize();
      device().setMemoryLimit(before + Math.floor((part / 16) * needed));
      const made = await Promise.resolve()
        .then(build)
        .catch((error) => {
          expect(error).toMatchObject({ code: "out_of_memory" });
          failures++;
          return null;
        });
      made?.dispose();
      expect(await liveBytes()).toBe(before);
    }
  } finally {
    device().setMemoryLimit(limit);
  }
  return failures;
}

const adversarial = () =>
  tinyVae((file) => {
    Object.assign(file.vae.vae_config.params.loss_config.params, {
      adversarial_weight: 1,
      adversarial_start: 0,
      wavelet_loss_weight: 0,
      disc_num_layers: 1,
      use_3d: false,
      use_reconstruction_gan: true,
      disc_in_channels: 1,
    });
    Object.assign(file.vae.training, { ema_decay: 0.9, gradient_accumulation_steps: 2 });
  });

describe("running out of memory in a constructor leaves nothing", () => {
  const vae = tinyVae();
  const builders: Record<string, () => { dispose(): void } | Promise<{ dispose(): void }>> = {
    "a layer": () => new Conv3d(8, 64, [3, 3, 3], new Initializer(device(), 1)),
    "a VAE": () => new VideoVae(vae.vae),
    "a transformer": () => new LtxVideoTransformer(tinyFlow().transformer, new Initializer(device(), 1)),
    "a VAE's trainer with an average and a discriminator": () => VaeTrainer.create({ config: adversarial() }),
    "a transformer's trainer": () => FlowTrainer.create({ config: tinyFlow() }),
  };
  for (const [name, build] of Object.entries(builders)) {
    it(`of ${name}`, async () => {
      expect(await withGrowingMemory(build)).toBeGreaterThan(10);
    });
  }

  it("of an optimizer and an average", async () => {
    const model = new VideoVae(vae.vae);
    const own = await liveBytes();
    for (const build of [() => new Adam(model.parameters(), { lr: 1 }), () => new Ema(model.parameters(), 0.9)]) {
      const { limit } = device().memory();
      device().setMemoryLimit(own + 60_000);
      expect(await failure(build)).toMatchObject({ code: "out_of_memory" });
      device().setMemoryLimit(limit);
      expect(await liveBytes()).toBe(own);
    }
    model.dispose();
  });
});

it("a configuration that only the decoder refuses leaves no encoder", async () => {
  const { vae } = tinyVae();
  const wrong = {
    ...vae,
    decoder_blocks: [
      ["res_x", 1],
      ["no_such_block", 1],
    ],
  } as unknown as typeof vae;
  expect(await failure(() => new VideoVae(wrong))).toMatchObject({ message: expect.stringContaining("no_such_block") });
});

/** Clips that can't be read from when `broken` holds. */
function breakable(config = tinyVae()): { data: DataSource; broken: { at: number | null } } {
  const { frames, height, width, digits, digit_size: digitSize } = config.data;
  const source = new MovingMnist({ frames, height, width, digits, digitSize, size: 48, seed: 1 });
  const broken: { at: number | null } = { at: null };
  let reads = 0;
  const clip = (index: number) => {
    if (broken.at !== null && reads++ === broken.at) throw new Error("the disk is gone");
    return source.clip(index);
  };
  return { data: { length: 48, frames, height, width, channels: 1, clip }, broken };
}

const gradients = (trainer: VaeTrainer) =>
  [...trainer.vae.parameters(), ...trainer.loss.parameters()].filter(({ grad }) => grad !== null).length;

const losses = (events: readonly TrainEvent[]) =>
  events.flatMap((e) => (e.type === "step" ? [[e.step, e.loss, e.gradientNorm]] : []));

describe("a step that fails", () => {
  const steps = { steps: 6 };

  it("in its second micro-batch leaves no gradients, and the step repeated is the one that would have been", async () => {
    const config = adversarial();
    const whole = await VaeTrainer.create({ config });
    const expected = losses(await collect(whole.run(steps)));
    const state = await whole.loss.stateDict();
    whole.dispose();

    const trainer = await VaeTrainer.create({ config });
    const found: TrainEvent[] = [];
    // The fourth step's second micro-batch.
    const inner = trainer as unknown as { accumulate(...args: unknown[]): unknown };
    const accumulate = inner.accumulate.bind(trainer);
    let calls = 0;
    inner.accumulate = (...args) => {
      const terms = accumulate(...args);
      if (++calls === 8) throw new Error("out of luck");
      return terms;
    };
    const run = async () => {
      for await (const event of trainer.run(steps)) found.push(event);
    };
    await expect(run()).rejects.toThrow("out of luck");
    expect(gradients(trainer)).toBe(0);
    expect(trainer.step).toBe(3);
    await run();
    expect(losses(found)).toEqual(expected);
    expect(await trainer.loss.stateDict()).toEqual(state);
    trainer.dispose();
  });

  it("for want of a clip tells and keeps the steps before it", async () => {
    const { data, broken } = breakable();
    const trainer = await VaeTrainer.create({ config: tinyVae(), data });
    broken.at = 10; // two clips a step: the sixth step's first
    const found: TrainEvent[] = [];
    const checkpoints = join(folder, "kept");
    const run = async () => {
      for await (const event of trainer.run({ checkpoints })) found.push(event);
    };
    await expect(run()).rejects.toThrow("the disk is gone");
    expect(found.filter(({ type }) => type === "step")).toHaveLength(5);
    expect(found[found.length - 1]).toMatchObject({ type: "checkpoint", step: 5 });
    expect(readdirSync(checkpoints).sort()).toEqual(["step-00000004", "step-00000005"]);
    expect(gradients(trainer)).toBe(0);
    trainer.dispose();
  });

  it("writes no checkpoint of a loss that is not a number", async () => {
    const trainer = await VaeTrainer.create({ config: tinyVae() });
    const [first] = trainer.vae.parameters();
    first.write(new Float32Array(first.size).fill(Number.NaN));
    const checkpoints = join(folder, "nan");
    await expect(collect(trainer.run({ checkpoints }))).rejects.toMatchObject({ code: "non_finite" });
    expect(() => readdirSync(checkpoints)).toThrow("ENOENT");
    trainer.dispose();
  });
});

it("a validation that fails gives the parameters their own values back", async () => {
  const config = tinyVae((file) => {
    Object.assign(file.vae.training, { ema_decay: 0.9, validate_every: 3, steps: 9 });
  });
  const whole = await VaeTrainer.create({ config });
  await collect(whole.run({ steps: 3 }));
  const expected = await whole.vae.stateDict();
  whole.dispose();

  const { data: testData, broken } = breakable();
  const trainer = await VaeTrainer.create({ config, testData });
  broken.at = 40; // of the 48 clips that are decoded in pairs
  await expect(collect(trainer.run({ steps: 9 }))).rejects.toThrow("the disk is gone");
  expect(trainer.step).toBe(3);
  expect(await trainer.vae.stateDict()).toEqual(expected);
  trainer.dispose();
});

describe("pictures while a run goes on", () => {
  const config = tinyVae((file) => {
    Object.assign(file.vae.training, { ema_decay: 0.9, sample_every: 4 });
  });

  it("change nothing of the training", async () => {
    const whole = await VaeTrainer.create({ config });
    const expected = losses(await collect(whole.run()));
    whole.dispose();
    const trainer = await VaeTrainer.create({ config });
    const found: TrainEvent[] = [];
    const pictures: Promise<unknown>[] = [];
    for await (const event of trainer.run({ checkpoints: join(folder, "pictures") })) {
      found.push(event);
      // Nobody waits for them: they are drawn while the next steps are asked for.
      if (event.type === "step" || event.type === "checkpoint") pictures.push(trainer.reconstruct());
    }
    await Promise.all(pictures);
    expect(losses(found)).toEqual(expected);
    expect(pictures.length).toBeGreaterThan(12);
    trainer.dispose();
  });

  it("show the model as the step left it at every sample_every-th", async () => {
    const short = await VaeTrainer.create({ config });
    await collect(short.run({ steps: 4 }));
    const expected = await short.reconstruct();
    short.dispose();
    const trainer = await VaeTrainer.create({ config });
    for await (const event of trainer.run()) {
      if (event.type !== "step" || event.step !== 4) continue;
      expect((await trainer.reconstruct()).psnr).toBe(expected.psnr);
      break;
    }
    trainer.dispose();
  });
});

describe("a trainer", () => {
  it("refuses a second run while the first goes on, and takes one afterwards", async () => {
    const trainer = await VaeTrainer.create({ config: tinyVae() });
    const first = trainer.run({ steps: 2 });
    await first.next();
    await expect(collect(trainer.run({ steps: 2 }))).rejects.toMatchObject({
      code: "invalid_argument",
      message: expect.stringContaining("runs already"),
    });
    await collect(first);
    expect(losses(await collect(trainer.run({ steps: 4 })))).toHaveLength(2);
    trainer.dispose();
    await expect(collect(trainer.run())).rejects.toMatchObject({ code: "disposed" });
    await expect(trainer.reconstruct()).rejects.toMatchObject({ code: "disposed" });
  });

  it("goes on past the configured steps, over clips that were not planned for", async () => {
    const config = tinyFlow((file) => {
      Object.assign(file.flow.training, { steps: 3 });
    });
    const trainer = await FlowTrainer.create({ config, vae: await trainTinyVae(folder) });
    expect(losses(await collect(trainer.run()))).toHaveLength(3);
    const more = await collect(trainer.run({ steps: 9 }));
    expect(losses(more).map(([step]) => step)).toEqual([4, 5, 6, 7, 8, 9]);
    expect(more.filter(({ type }) => type === "prepare").length).toBeGreaterThan(0);
    trainer.dispose();
  });

  it("encodes again after its encoding was stopped", async () => {
    const trainer = await FlowTrainer.create({ config: tinyFlow(), vae: await trainTinyVae(folder) });
    const stopped = await collect(trainer.run({ signal: AbortSignal.abort() }));
    expect(stopped.map(({ type }) => type)).toEqual(["start", "end"]);
    expect(losses(await collect(trainer.run({ steps: 2 })))).toHaveLength(2);
    trainer.dispose();
  });

  it("is freed by using, as its optimizer and its average are", async () => {
    const trainer: Disposable = await VaeTrainer.create({ config: adversarial() });
    trainer[Symbol.dispose]();
    const made = new Initializer(device(), 1).constant([3], 0);
    new Adam([made], { lr: 1 })[Symbol.dispose]();
    new Ema([made], 0.5)[Symbol.dispose]();
    made.dispose();
  });
});
