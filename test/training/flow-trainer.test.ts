/** What the reference's flow training got wrong or left out, and what it does right and must stay so. */
import { join } from "node:path";
import { beforeAll, describe, expect, it, vi } from "vitest";
import { type FlowRunConfig, loadConfig } from "../../lib/config/index.js";
import { FlowTrainer, TextToVideo, type TrainEvent, train } from "../../lib/index.js";
import { findModelFile } from "../../lib/pipelines/index.js";
import { collect, testFolder, tinyFlowYaml, tinyVae, writeYaml } from "../support/tiny.js";
import { trainTinyVae } from "../support/tiny-models.js";
import { writeTinyT5 } from "../support/tiny-t5.js";

const folder = testFolder();
let vae: string;
beforeAll(async () => {
  vae = await trainTinyVae(folder);
});

// biome-ignore lint/suspicious/noExplicitAny: a YAML file that tests change at will.
type Change = (file: any) => void;

async function configOf(change: Change = () => {}): Promise<FlowRunConfig> {
  const file = writeYaml(
    folder,
    "flow.yaml",
    tinyFlowYaml((yaml) => {
      Object.assign(yaml.training, { validate_every: 1000, ema_decay: 0 });
      yaml.data.size = 16;
      change(yaml);
    }),
  );
  return (await loadConfig(file)) as FlowRunConfig;
}

const losses = (events: readonly TrainEvent[]) =>
  events.flatMap((event) => (event.type === "step" ? [event.loss] : []));

describe("the latents' scale", () => {
  it("is stored, and restored for sampling and for training that goes on", async () => {
    const checkpoints = join(folder, "scale");
    const trainer = await FlowTrainer.create({ config: await configOf(), vae });
    expect(trainer.model.latentScale).toBe(1);
    await collect(trainer.run({ steps: 1, checkpoints }));
    const { latentScale } = trainer.model;
    expect(latentScale).toBeGreaterThan(0);
    expect(latentScale).not.toBe(1);
    trainer.dispose();

    const path = join(checkpoints, "step-00000001");
    const pipeline = await TextToVideo.load(path);
    expect(pipeline.model.latentScale).toBe(latentScale);
    pipeline.dispose();

    // Other clips would give another scale; the stored one stays.
    const other = await configOf((yaml) => {
      yaml.data.seed = 5;
    });
    const next = await FlowTrainer.create({ config: other });
    await next.resume(path, 1);
    await collect(next.run({ steps: 2 }));
    expect(next.model.latentScale).toBe(latentScale);
    next.dispose();
    const fresh = await FlowTrainer.create({ config: other, vae });
    await collect(fresh.run({ steps: 1 }));
    expect(fresh.model.latentScale).not.toBe(latentScale);
    fresh.dispose();
  });
});

describe("the decoder", () => {
  it.each([
    [10, 1],
    [10, 4],
    [4, 0],
    [30, 2],
  ])("is told the noise that is left after %i steps without the last %i", async (steps, left) => {
    const config = await configOf((yaml) => {
      Object.assign(yaml.diffusion.sampling, { initial_timestep: left, steps: 1000 });
    });
    const trainer = await FlowTrainer.create({ config, vae });
    trainer.model.latentScale = 2;
    const pipeline = new TextToVideo(trainer.model, trainer.device);
    const times: number[] = [];
    const decoder = trainer.model.vae;
    if (!decoder) throw new Error("the tiny model has a VAE");
    const decode = decoder.decode.bind(decoder);
    vi.spyOn(decoder, "decode").mockImplementation((z, timestep, options) => {
      timestep?.read().then((values) => times.push(...values));
      return decode(z, timestep, options);
    });
    await pipeline.generate({ prompts: ["1", "2"], steps });
    // The state t·x0 + (1 - t)·noise, divided by t and by the scale.
    const t = (steps - left) / steps;
    const noise = Math.fround(Math.max((1 - t) / t / 2, config.sampling.decode_timestep));
    for (const time of times) expect(time).toBeCloseTo(noise, 6);
    expect(times).toHaveLength(2);
    trainer.dispose();
  });
});

describe("prompt dropout", () => {
  const seen = async (probability: number) => {
    const config = await configOf((yaml) => {
      Object.assign(yaml.training, { prompt_dropout: probability, batch_size: 8, steps: 24, save_every: 1000 });
    });
    const trainer = await FlowTrainer.create({ config, vae });
    const prepare = vi.spyOn(trainer.model.text, "prepare");
    await collect(trainer.run({ steps: 23 }));
    trainer.dispose();
    // What follows the batches is the validation's, of which nothing is dropped.
    return prepare.mock.calls.flatMap(([prompts]) => [...prompts]).slice(0, 8 * 23);
  };

  it("empties the given share of prompts, each time the same ones", async () => {
    const prompts = await seen(0.2);
    const share = prompts.filter((prompt) => prompt === "").length / prompts.length;
    expect(share).toBeGreaterThan(0.1);
    expect(share).toBeLessThan(0.3);
    expect(await seen(0.2)).toEqual(prompts);
  });

  it("empties none or all at the ends", async () => {
    const none = await seen(0);
    expect(none).not.toContain("");
    // Both wordings of a digit are seen.
    expect(none.some((prompt) => /^\d$/.test(prompt)) && none.some((prompt) => /^[a-z]+$/.test(prompt))).toBe(true);
    expect(new Set(await seen(1))).toEqual(new Set([""]));
  });
});

describe("models that the reference cannot train", () => {
  it("read the text directly, without caption_channels", async () => {
    const path = await writeTinyT5(join(folder, "t5"));
    const config = await configOf((yaml) => {
      yaml.diffusion.context_preprocessing = [{ target: "t5", params: { version: "tiny", path, max_length: 6 } }];
      const network = yaml.diffusion.score_network.params;
      Object.assign(network, { caption_channels: "None", cross_attention_dim: 16, attention_head_dim: 8 });
    });
    const trainer = await FlowTrainer.create({ config, vae });
    expect(losses(await collect(trainer.run({ steps: 2 }))).every(Number.isFinite)).toBe(true);
    trainer.dispose();
  });

  it("have latents without variances", async () => {
    const out = join(folder, "plain-vae");
    const change: Change = ({ vae: { vae_config: vaeConfig, training } }) => {
      vaeConfig.params.latent_log_var = "none";
      training.steps = 4;
      training.lr_schedule.warmup_steps = 1;
    };
    await collect(train({ out, config: tinyVae(change) }));
    const config = await configOf((yaml) => {
      yaml.diffusion.latent_encoder.params.latent_log_var = "none";
    });
    const trainer = await FlowTrainer.create({ config, vae: await findModelFile(out, "vae") });
    const [first, second] = losses(await collect(trainer.run({ steps: 2 })));
    expect([first, second].every(Number.isFinite)).toBe(true);
    const video = await trainer.sample(["1"]);
    expect(video).toMatchObject({ frames: 5, height: 16, width: 16 });
    trainer.dispose();
  });
});
