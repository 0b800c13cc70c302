/** Training a VAE against a discriminator. */
import { readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { describe, expect, it } from "vitest";
import { readSafetensors } from "../../lib/formats/safetensors.js";
import { device } from "../../lib/tensor/index.js";
import { type TrainEvent, train, VaeTrainer } from "../../lib/training/index.js";
import { tinyLpips, writeState } from "../support/lpips.js";
import { collect, newestCheckpoint, testFolder, tinyVae } from "../support/tiny.js";

const folder = testFolder();

// biome-ignore lint/suspicious/noExplicitAny: a YAML file that tests change at will.
type Loose = any;

/** The tiny VAE with a discriminator of frames. */
function adversarial(changes: Record<string, unknown> = {}, also: (file: Loose) => void = () => {}) {
  return tinyVae((file) => {
    Object.assign(file.vae.vae_config.params.loss_config.params, {
      use_3d: false,
      wavelet_loss_weight: 0,
      use_reconstruction_gan: true,
      adversarial_weight: 0.5,
      disc_num_layers: 1,
      disc_start: 2,
      adversarial_start: 4,
      ...changes,
    });
    also(file);
  });
}

type Step = Extract<TrainEvent, { type: "step" }>;
const isStep = (event: TrainEvent): event is Step => event.type === "step";

async function run(config: ReturnType<typeof tinyVae>, steps?: number, out?: string): Promise<Step[]> {
  const trainer = await VaeTrainer.create({ config });
  const events = await collect(trainer.run({ steps, checkpoints: out && join(out, "checkpoints") }));
  trainer.dispose();
  return events.filter(isStep);
}

const discriminatorOf = async (trainer: VaeTrainer) => {
  const state = await trainer.loss.stateDict();
  return new Map([...state].filter(([key]) => key.startsWith("discriminator.")));
};

const weights = ["reconstruction", "kl"];
const game = ["discriminator", "logits_real", "logits_fake", "discriminator_gradient_norm"];
const generator = ["generator", "adversarial_weight"];

describe("the adversarial game", () => {
  it("joins in mid-run, each side at its step, and reports every number", async () => {
    const steps = await run(adversarial(), 6);
    const terms = steps.map((step) => Object.keys(step.terms).sort());
    for (const i of [0, 1]) expect(terms[i]).toEqual([...weights].sort());
    for (const i of [2, 3]) expect(terms[i]).toEqual([...weights, ...game].sort());
    for (const i of [4, 5]) expect(terms[i]).toEqual([...weights, ...game, ...generator].sort());
    const { loss, terms: last } = steps[5];
    const kl = 1e-6 * last.kl;
    const elements = 5 * 16 * 16;
    expect(loss).toBeCloseTo(last.reconstruction * elements + kl + last.adversarial_weight * last.generator, 3);
    expect(last.adversarial_weight).toBeGreaterThan(0);
    expect(last.discriminator_gradient_norm).toBeGreaterThan(0);
  });

  it("moves the discriminator at its own rate", async () => {
    const first = async (rate?: number) => {
      const config = adversarial({ disc_start: 0 }, (file) => {
        file.vae.training.lr_schedule = { name: "constant" };
        if (rate) file.vae.training.discriminator_learning_rate = rate;
      });
      const trainer = await VaeTrainer.create({ config });
      const key = "discriminator.main.0.weight";
      const before = (await discriminatorOf(trainer)).get(key)?.data as Float32Array;
      await collect(trainer.run({ steps: 1 }));
      const after = (await discriminatorOf(trainer)).get(key)?.data as Float32Array;
      trainer.dispose();
      // Adam's first update is the rate, up or down.
      return Math.max(...after.map((value, i) => Math.abs(value - before[i])));
    };
    const { learning_rate } = adversarial().training;
    expect(await first()).toBeCloseTo(learning_rate, 6);
    expect(await first(learning_rate / 4)).toBeCloseTo(learning_rate / 4, 6);
  });

  it("changes nothing before it starts", async () => {
    const [plain, late] = [await run(adversarial({ adversarial_weight: 0 }), 4), await run(adversarial(), 4)];
    expect(late.map(({ loss, gradientNorm }) => [loss, gradientNorm])).toEqual(
      plain.map(({ loss, gradientNorm }) => [loss, gradientNorm]),
    );
    const trainer = await VaeTrainer.create({ config: adversarial() });
    const before = await discriminatorOf(trainer);
    await collect(trainer.run({ steps: 2 }));
    expect(await discriminatorOf(trainer)).toEqual(before);
    await collect(trainer.run({ steps: 3 }));
    const after = await discriminatorOf(trainer);
    expect(after.get("discriminator.main.0.weight")).not.toEqual(before.get("discriminator.main.0.weight"));
    trainer.dispose();
  });

  it("makes no discriminator that the generator would never meet", async () => {
    const trainer = await VaeTrainer.create({ config: adversarial({ adversarial_start: 12 }) });
    expect(trainer.loss.discriminator).toBeNull();
    trainer.dispose();
  });

  for (const [name, change] of Object.entries<(file: Loose) => void>({
    "": () => {},
    " with averages and accumulated gradients": (file) => {
      Object.assign(file.vae.training, { ema_decay: 0.9, gradient_accumulation_steps: 2 });
    },
    " as the reference plays it": (file) => {
      file.compat = "reference";
    },
    " with checkpointed activations": (file) => {
      file.vae.training.gradient_checkpointing = true;
    },
  })) {
    it(`resumes to the same bits at any step${name}`, async () => {
      const config = adversarial({}, change);
      const whole = join(folder, `whole${name.replaceAll(" ", "-")}`);
      await run(config, 8, whole);
      for (const at of name ? [5] : [1, 3, 5]) {
        const halves = join(folder, `halves-${at}${name.replaceAll(" ", "-")}`);
        await run(config, at, halves);
        const trainer = await VaeTrainer.create({ config });
        await trainer.resume(join(halves, "checkpoints", `step-${String(at).padStart(8, "0")}`), at);
        await collect(trainer.run({ steps: 8, checkpoints: join(halves, "checkpoints") }));
        trainer.dispose();
        expect(newestCheckpoint(halves)).toEqual(newestCheckpoint(whole));
      }
    });
  }

  it("writes the discriminator, its buffers and its optimizer into checkpoints", async () => {
    const path = join(folder, "contents");
    await run(adversarial(), 6, path);
    const model = await readSafetensors(join(path, "checkpoints", "step-00000006", "model.safetensors"));
    const key = (name: string) => `loss.discriminator.main.${name}`;
    expect(model.tensors.get(key("3.running_var"))).toMatchObject({ dtype: "F32", shape: [128] });
    expect(model.tensors.get(key("3.num_batches_tracked"))).toMatchObject({ dtype: "I64", shape: [] });
    // Two for each turn of the discriminator from step 2 on, one for each of the generator from step 4 on.
    expect([...(await model.readF32(key("3.num_batches_tracked")))]).toEqual([4 * 2 + 2]);
    expect(model.tensors.get(key("0.weight"))?.shape).toEqual([64, 2, 4, 4]);
    const training = await readSafetensors(join(path, "checkpoints", "step-00000006", "training.safetensors"));
    expect(training.tensors.get(`adam.m.${key("5.bias")}`)?.shape).toEqual([2]);
    expect([...(await training.readF32("adam.steps.adversary"))]).toEqual([4]);
    await Promise.all([model.close(), training.close()]);
  });

  it("shares an update among micro-batches", async () => {
    const path = join(folder, "micro");
    const config = adversarial({ disc_start: 0, adversarial_start: 0 }, (file) => {
      file.vae.training.gradient_accumulation_steps = 2;
    });
    await run(config, 2, path);
    const files = await Promise.all(
      ["model", "training"].map((name) =>
        readSafetensors(join(path, "checkpoints", "step-00000002", `${name}.safetensors`)),
      ),
    );
    // Three batches pass through the discriminator for each of two micro-batches of two updates.
    expect([...(await files[0].readF32("loss.discriminator.main.3.num_batches_tracked"))]).toEqual([12]);
    expect([...(await files[1].readF32("adam.steps.adversary"))]).toEqual([2]);
    await Promise.all(files.map((file) => file.close()));
  });

  it("follows the reference under compat: one clip, a combined backward, the game from step 0 on", async () => {
    const steps = await run(
      adversarial({}, (file) => {
        file.compat = "reference";
      }),
      5,
    );
    for (const { terms } of steps) {
      expect(Object.keys(terms)).toEqual(expect.arrayContaining([...generator, ...game.slice(0, 3), "nll", "logvar"]));
      expect(Object.keys(terms)).not.toContain("discriminator_gradient_norm");
    }
    expect(steps.map(({ terms }) => terms.discriminator === 0)).toEqual([true, true, false, false, false]);
  });

  it("keeps the decoder's timestep scale, which drifts under compat", async () => {
    const after = async (compat: string) => {
      const trainer = await VaeTrainer.create({
        config: adversarial({}, (file) => void Object.assign(file, { compat })),
      });
      await collect(trainer.run({ steps: 6 }));
      const value = await trainer.vae.decoder.timestep_scale_multiplier?.item();
      trainer.dispose();
      return value;
    };
    expect(await after("native")).toBe(1000);
    expect(await after("reference")).not.toBe(1000);
  });

  it("keeps a learned log-variance where it starts under compat, and trains it else", async () => {
    const at = async (compat: string) => {
      const change = { use_nll: true, learned_logvar: true, logvar_init: 0.25 };
      const trainer = await VaeTrainer.create({
        config: adversarial(change, (file) => void Object.assign(file, { compat })),
      });
      await collect(trainer.run({ steps: 3 }));
      const value = await trainer.loss.logvar?.item();
      trainer.dispose();
      return value;
    };
    expect(await at("reference")).toBe(0.25);
    expect(await at("native")).not.toBe(0.25);
  });

  it("stops when the discriminator's gradient is not a number", async () => {
    const trainer = await VaeTrainer.create({ config: adversarial() });
    await collect(trainer.run({ steps: 2 }));
    const [weight] = trainer.loss.discriminator?.parameters() ?? [];
    weight.write(new Float32Array(weight.size).fill(Number.NaN));
    await expect(collect(trainer.run({ steps: 4 }))).rejects.toMatchObject({
      code: "non_finite",
      message: expect.stringMatching(/step 3: the loss is [\d.e-]+ .* that of the discriminator's NaN/),
    });
    trainer.dispose();
  });

  it("keeps live bytes the same at any step, and nothing at the end", async () => {
    const live = async () => {
      await device().synchronize();
      return device().memory().live;
    };
    const before = await live();
    for (const compat of ["native", "reference"]) {
      const trainer = await VaeTrainer.create({
        config: adversarial({}, (file) => void Object.assign(file, { compat })),
      });
      await collect(trainer.run({ steps: 6 }));
      const early = await live();
      await collect(trainer.run({ steps: 12 }));
      expect(await live()).toBe(early);
      trainer.dispose();
      expect(await live()).toBe(before);
    }
  });
});

describe("the perceptual loss", () => {
  it("reads its weights where the configuration says, and stays out of checkpoints", async () => {
    const { torchvision, layers } = await tinyLpips();
    const paths = ["vgg16.safetensors", "lpips.safetensors"].map((name) => join(folder, name));
    await writeState(paths[0], torchvision);
    await writeState(paths[1], layers);
    const config = adversarial({ adversarial_weight: 0, perceptual_weight: 0.5, perceptual_checkpoint: paths });
    const path = join(folder, "perceptual");
    const steps = await run(config, 2, path);
    for (const { terms } of steps) expect(terms.perceptual).toBeGreaterThan(0);
    const model = await readSafetensors(join(path, "checkpoints", "step-00000002", "model.safetensors"));
    expect([...model.tensors.keys()].filter((name) => name.startsWith("loss."))).toEqual([]);
    await model.close();
  });

  it("is noted with whole paths, so that a run is continued from any folder", async () => {
    const { torchvision, layers } = await tinyLpips();
    const path = join(folder, "whole.safetensors");
    await writeState(path, new Map([...torchvision, ...layers]));
    const out = join(folder, "whole-paths");
    const config = adversarial(
      { adversarial_weight: 0, perceptual_weight: 0.5, perceptual_checkpoint: relative(process.cwd(), path) },
      (file) => {
        file.vae.training.steps = 3;
      },
    );
    await collect(train({ out, config }));
    const { loss } = JSON.parse(readFileSync(join(out, "run.json"), "utf8")).config;
    expect(loss.perceptual_checkpoint).toEqual([path]);
  });

  it("names the file that it cannot read, and leaves nothing behind", async () => {
    await device().synchronize();
    const before = device().memory().live;
    const config = adversarial({ perceptual_weight: 0.5, perceptual_checkpoint: join(folder, "no.safetensors") });
    await expect(VaeTrainer.create({ config })).rejects.toMatchObject({
      name: "LtxError",
      message: expect.stringContaining("no.safetensors"),
    });
    await device().synchronize();
    expect(device().memory().live).toBe(before);
  });
});
