/** The smallest trainers, and what they make when nothing fails. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse, stringify } from "yaml";
import { type FlowRunConfig, parseConfig, type QuickstartConfig, type VaeRunConfig } from "../../lib/config/index.js";
import type { FlowTrainer, TrainEvent, VaeTrainer } from "../../lib/training/index.js";

export const tinyFile = join(__dirname, "..", "..", "test", "support", "tiny.yaml");

// biome-ignore lint/suspicious/noExplicitAny: a YAML file that callers change at will.
type Loose = any;

export function tinyYaml(change: (file: Loose) => void = () => {}): string {
  const file = parse(readFileSync(tinyFile, "utf8"));
  for (const stage of [file.vae, file.flow]) {
    Object.assign(stage.training, { steps: 4, save_every: 2, validate_every: 4, sample_every: 2 });
    stage.training.lr_schedule.warmup_steps = 1;
  }
  change(file);
  return stringify(file);
}

export const tinyConfig = (change?: (file: Loose) => void): QuickstartConfig =>
  parseConfig(tinyYaml(change), "tiny.yaml") as QuickstartConfig;

/** With all that a VAE's training can have: a discriminator, an average, accumulated gradients. */
export const tinyVae = (): VaeRunConfig =>
  tinyConfig(({ vae }) => {
    Object.assign(vae.vae_config.params.loss_config.params, {
      adversarial_weight: 1,
      adversarial_start: 0,
      wavelet_loss_weight: 0,
      disc_num_layers: 1,
      use_3d: false,
      disc_in_channels: 1,
    });
    Object.assign(vae.training, { ema_decay: 0.9, gradient_accumulation_steps: 2 });
  }).vae;

export const tinyFlow = (): FlowRunConfig => tinyConfig().flow;

export async function collect(events: AsyncIterable<TrainEvent>): Promise<TrainEvent[]> {
  const all: TrainEvent[] = [];
  for await (const event of events) all.push(event);
  return all;
}

/** All that a trainer has learned, as text that can be compared. */
export async function stateOf(trainer: VaeTrainer | FlowTrainer): Promise<string> {
  const modules =
    trainer.stage === "vae" ? [trainer.vae, trainer.loss] : [trainer.model.transformer, trainer.model.text];
  const states = [];
  for (const module of modules) {
    if (!("stateDict" in module)) continue;
    for (const [name, { data }] of await module.stateDict()) {
      states.push(`${name} ${Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64")}`);
    }
  }
  return states.join("\n");
}

/** Parameters that hold a gradient. */
export function gradientsOf(trainer: VaeTrainer | FlowTrainer): number {
  const parameters =
    trainer.stage === "vae"
      ? [...trainer.vae.parameters(), ...trainer.loss.parameters()]
      : [...trainer.model.transformer.parameters(), ...trainer.model.text.parameters()];
  return parameters.filter(({ grad }) => grad !== null).length;
}
