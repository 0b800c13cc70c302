/** The flags of the official command, and its configuration's keys as flags, for the commands that take a release. */

import { type Command, InvalidArgumentError, Option } from "commander";
import { LtxError } from "../errors.js";
import { DEFAULT_RELEASE } from "../pipelines/release/files.js";
import { DEFAULTS } from "../pipelines/release/request.js";
import { number, whole } from "./options.js";

/** Keys of a release's YAML file that a flag of the same name replaces, and what their values look like. */
const OVERRIDES: Record<string, [value: string, meaning: string]> = {
  "checkpoint-path": ["<file>", "the transformer's and VAE's checkpoint"],
  "vae-path": ["<file>", "the VAE's file, where the checkpoint has the transformer alone"],
  "spatial-upscaler-model-path": ["<file>", "the latent upscaler of a multi-scale release"],
  "text-encoder-model-name-or-path": ["<dir>", "folder of the T5 encoder and its tokenizer"],
  "pipeline-type": ["<name>", "base or multi-scale"],
  precision: ["<name>", "bfloat16, mixed_precision, float8_e4m3fn or float32"],
  sampler: ["<name>", "from_checkpoint, uniform or linear-quadratic"],
  "num-inference-steps": ["<n>", "denoising steps"],
  timesteps: ["<list>", "the steps' times themselves, falling from 1: [1, 0.75, 0.5]"],
  "skip-initial-inference-steps": ["<n>", "steps left out at the beginning"],
  "skip-final-inference-steps": ["<n>", "steps left out at the end"],
  "guidance-scale": ["<number>", "classifier-free guidance, 1 for none"],
  "stg-scale": ["<number>", "spatiotemporal guidance, 0 for none"],
  "rescaling-scale": ["<number>", "how much excess contrast is taken back, 1 for none"],
  "guidance-timesteps": ["<list>", "times from which on the entries of guidance lists hold"],
  "skip-block-list": ["<list>", "blocks that STG perturbs: [19]"],
  "stg-mode": ["<name>", "attention_values, attention_skip, residual or transformer_block"],
  "cfg-star-rescale": ["<bool>", "CFG*"],
  "decode-timestep": ["<t>", "the time that the decoder is told of"],
  "decode-noise-scale": ["<s>", "noise that it gets for that"],
  "stochastic-sampling": ["<bool>", "new noise at each step"],
  "tone-map-compression-ratio": ["<r>", "compresses the latents' extremes, 0 to 1"],
  "downscale-factor": ["<f>", "size of the first pass"],
  "first-pass": ["<keys>", "keys of the first pass: '{num_inference_steps: 20}'"],
  "second-pass": ["<keys>", "keys of the second pass"],
};

export interface ReleaseFlags {
  pipelineConfig: string;
  height: number;
  width: number;
  numFrames: number;
  device: string;
  offloadToCpu?: boolean;
  json?: boolean;
}

/** Adds what every command takes that works with a release. */
export function releaseOptions(command: Command): Command {
  command
    .option("--pipeline-config <file>", "YAML file of a release, or the name of one that is shipped", DEFAULT_RELEASE)
    .option("--height <pixels>", "height of the video", whole(1), DEFAULTS.height)
    .option("--width <pixels>", "width of the video", whole(1), DEFAULTS.width)
    .option("--num-frames <n>", "frames of the video", whole(1), DEFAULTS.numFrames)
    .option("--device <name>", "auto, cpu, cuda or cuda:N", "auto")
    .addOption(
      new Option("--offload-to-cpu [bool]", "text encoder, transformer and VAE take turns on the device").argParser(
        flag,
      ),
    )
    .addOption(new Option("--offload", "the same").hideHelp())
    .option("--json", "events as JSON lines on standard output");
  for (const [name, [value, meaning]] of Object.entries(OVERRIDES)) {
    command.addOption(new Option(`--${name} ${value}`, meaning).helpGroup("Instead of the file's keys:"));
  }
  return command;
}

/** Whether models take turns. */
export const offloaded = (flags: object): boolean => {
  const { offloadToCpu, offload } = flags as { offloadToCpu?: boolean; offload?: boolean };
  return offloadToCpu === true || offload === true;
};

/** `--flag`, `--flag true` and `--flag false`, as the official parser has them. */
function flag(text: string): boolean {
  const word = text.toLowerCase();
  if (["true", "t", "yes", "1"].includes(word)) return true;
  if (["false", "f", "no", "0"].includes(word)) return false;
  throw new InvalidArgumentError(`expected true or false, got "${text}".`);
}

/** The values of the YAML keys among the flags. @throws LtxError `invalid_argument` for one that is no YAML */
export async function overridesOf(flags: object): Promise<Record<string, unknown>> {
  const given = flags as Record<string, unknown>;
  const result: Record<string, unknown> = {};
  for (const name of Object.keys(OVERRIDES)) {
    const text = given[name.replace(/-(\w)/g, (_, letter) => letter.toUpperCase())];
    if (typeof text !== "string") continue;
    const isName = ["<file>", "<dir>", "<name>"].includes(OVERRIDES[name][0]);
    const { parse } = await import("yaml");
    try {
      result[name.replaceAll("-", "_")] = isName ? text : parse(text);
    } catch (cause) {
      const [reason] = (cause as Error).message.split("\n");
      throw new LtxError("invalid_argument", `--${name} ${text}: ${reason} Put lists in quotes: --${name} "[1, 0.5]"`, {
        cause,
      });
    }
  }
  return result;
}

/** Numbers one after the other: `--conditioning-strengths 0.5 1`. */
export function numbers(parse: (text: string) => number = number(0)) {
  return (text: string, before: number[] | undefined): number[] => [...(before ?? []), parse(text)];
}

/** Flags under the official names, with underscores, as those with hyphens. */
export const hyphenated = (argv: readonly string[]): string[] =>
  argv.map((word) =>
    word.replace(/^--[a-z0-9_]+(?==|$)/, (name) => name.slice(0, 2) + name.slice(2).replaceAll("_", "-")),
  );
