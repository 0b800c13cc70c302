import { type Command, InvalidArgumentError } from "commander";
import { check } from "../errors.js";
import { exists } from "../formats/paths.js";

/** A whole number of at least `least`. */
export function whole(least: number) {
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isSafeInteger(value) || value < least) {
      throw new InvalidArgumentError(`expected a whole number of at least ${least}, got "${text}".`);
    }
    return value;
  };
}

/** A number of at least `least`. */
export function number(least: number) {
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || value < least) {
      throw new InvalidArgumentError(`expected a number of at least ${least}, got "${text}".`);
    }
    return value;
  };
}

/** Collects an option that may be given several times. */
export const collect = (text: string, before: string[] = []): string[] => [...before, text];

const WEIGHTED = /^(.+):([^:/]*)$/;
const NUMBER = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i;
/** What can only have been meant as a number. */
const LIKE_A_NUMBER = /^(?:[-+.\de]*|[-+]?(?:nan|inf(?:inity)?))$/i;

/**
 * A LoRA's path and, behind its last colon, the weight that it is added with: `a.safetensors:0.8`, else 1. What is there
 * under the whole text is that.
 * @throws LtxError `invalid_argument` when what follows the colon is not a number
 */
export async function weightedLora(text: string): Promise<{ path: string; weight: number }> {
  const [, path, weight] = WEIGHTED.exec(text) ?? [];
  if (path === undefined || (await exists(text))) return { path: text, weight: 1 };
  if (NUMBER.test(weight) && Number.isFinite(Number(weight))) return { path, weight: Number(weight) };
  check(!LIKE_A_NUMBER.test(weight) && !(await exists(path)), "invalid_argument", () => {
    return `[lora] --lora ${text}: the weight ${JSON.stringify(weight)} is not a number: expected a file, or file:weight as in a.safetensors:0.8`;
  });
  return { path: text, weight: 1 };
}

/** What every command takes that works with a trained model. */
export interface ModelFlags {
  checkpoint: string;
  config?: string;
  device: string;
  json?: boolean;
}

/** Adds the options of {@link ModelFlags}. */
export function modelOptions(command: Command): Command {
  return command
    .requiredOption(
      "--checkpoint <path>",
      "a run's folder, a checkpoint's folder, or a model's safetensors or .pt file",
    )
    .option("--config <file>", "YAML file of the model, for checkpoints that carry none (PyTorch's)")
    .option("--device <name>", "auto, cpu, cuda or cuda:N", "auto")
    .option("--json", "events as JSON lines on standard output");
}

/** What commands take besides that draw videos. */
export interface DrawFlags extends ModelFlags {
  textEncoder?: string;
  steps?: number;
  guidance?: number;
  seed?: number;
}

/** Adds the options of {@link DrawFlags}; `seed` says what the seed is of. */
export function drawOptions(command: Command, seed: string): Command {
  return modelOptions(command)
    .option("--text-encoder <dir>", "folder of the pretrained text encoder, when it has moved")
    .option("--steps <n>", "sampling steps", whole(1))
    .option("--guidance <g>", "classifier-free guidance, 1 for none", number(0))
    .option("--seed <n>", seed, whole(0));
}

/** What `--resample` does, of commands that draw new frames beside given ones. */
export const RESAMPLE = "times each step is made where frames are given: more follow them better (default: 4)";
