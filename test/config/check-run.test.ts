import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { checkRunConfig } from "../../lib/config/check-run.js";
import { type FlowRunConfig, loadConfig, type QuickstartConfig, type VaeRunConfig } from "../../lib/config/index.js";
import { FlowTrainer, VaeTrainer } from "../../lib/training/index.js";
import { failure } from "../support/failure.js";

const tiny = async () => (await loadConfig(join(__dirname, "..", "support", "tiny.yaml"))) as QuickstartConfig;
// biome-ignore lint/suspicious/noExplicitAny: wrong values are what is tried
type Wrong = any;

describe("checkRunConfig", () => {
  it("takes what files give", async () => {
    const { vae, flow } = await tiny();
    expect(() => checkRunConfig(vae, "test")).not.toThrow();
    expect(() => checkRunConfig(flow, "test")).not.toThrow();
    expect(() => checkRunConfig(JSON.parse(JSON.stringify(flow)), "test")).not.toThrow();
  });

  it.each<[string, (config: Wrong) => void, string]>([
    [
      "a text for a number",
      (c) => {
        c.training.learning_rate = "0.001";
      },
      'config.training.learning_rate: found "0.001" (text), expected a number',
    ],
    [
      "NaN",
      (c) => {
        c.training.learning_rate = Number.NaN;
      },
      "config.training.learning_rate: found NaN, expected a finite number",
    ],
    [
      "a fraction of steps",
      (c) => {
        c.training.steps = 1.5;
      },
      "config.training.steps: found 1.5",
    ],
    [
      "a batch of nothing",
      (c) => {
        c.training.batch_size = 0;
      },
      "config.training.batch_size: found 0, expected at least 1",
    ],
    [
      "another optimizer",
      (c) => {
        c.training.optimizer.name = "adan";
      },
      "expected one of adam, adamw; did you mean adam",
    ],
    [
      "a missing section",
      (c) => {
        delete c.data;
      },
      "config.data: missing, expected a section of keys",
    ],
    [
      "a missing kind",
      (c) => {
        delete c.kind;
      },
      "config.kind",
    ],
    [
      "frames that the VAE can't take",
      (c) => {
        c.data.frames = 4;
      },
      "config.data.frames: frames 4: needs 2k+1",
    ],
    [
      "a width that the VAE can't take",
      (c) => {
        c.data.width = 17;
      },
      "config.data.width: width 17: needs a multiple of 8",
    ],
    [
      "channels that the VAE hasn't",
      (c) => {
        c.data.num_channels = 3;
      },
      "config.vae.in_channels: found 1, but data.num_channels is 3",
    ],
    [
      "an encoder that shrinks more than the decoder grows",
      (c) => {
        c.vae.encoder_blocks.push(["compress_all", 1]);
      },
      "config.vae.decoder_blocks: the encoder divides frames by 4",
    ],
  ])("refuses %s in a VAE's run", async (_, change, message) => {
    const { vae } = structuredClone(await tiny());
    change(vae);
    const error = await failure(() => VaeTrainer.create({ config: vae as VaeRunConfig }));
    expect(error.code).toBe("config");
    expect(error.message).toContain(`[vae] `);
    expect(error.message).toContain(message);
  });

  it.each<[string, (config: Wrong) => void, string]>([
    [
      "heads that don't fit",
      (c) => {
        c.text_encoder.heads = 3;
      },
      "config.text_encoder.width: found 16, needs a multiple of heads 3",
    ],
    [
      "steps below the first one",
      (c) => {
        c.sampling.initial_timestep = 9;
      },
      "config.sampling.initial_timestep: found 9",
    ],
    [
      "guidance below 1",
      (c) => {
        c.sampling.guidance = 0;
      },
      "config.sampling.guidance: found 0, expected at least 1",
    ],
    [
      "sampled frames that the VAE can't give",
      (c) => {
        c.sampling.frames = 6;
      },
      "config.sampling.frames: frames 6: needs 2k+1",
    ],
    [
      "channels other than the latents'",
      (c) => {
        c.transformer.input_channels = 5;
      },
      "config.transformer",
    ],
    [
      "an unknown parameterization",
      (c) => {
        c.diffusion.parameterization = "v";
      },
      "only rectified_flow is supported",
    ],
  ])("refuses %s in a transformer's run", async (_, change, message) => {
    const { flow } = structuredClone(await tiny());
    change(flow);
    const error = await failure(() => FlowTrainer.create({ config: flow as FlowRunConfig }));
    expect(error.code).toBe("config");
    expect(error.message).toContain(`[flow] `);
    expect(error.message).toContain(message);
  });

  it.each([[null], [undefined], [7], [{}], [[]]])("refuses %j", async (config) => {
    for (const create of [VaeTrainer.create, FlowTrainer.create]) {
      expect(await failure(() => create({ config: config as Wrong }))).toMatchObject({ code: "config" });
    }
  });
});
