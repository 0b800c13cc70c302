import { Command, InvalidArgumentError, Option } from "commander";
import { type ConvertOptions, convert } from "../pipelines/convert.js";
import { collect, weightedLora } from "./options.js";
import { standardOutput } from "./output.js";

interface ConvertFlags {
  checkpoint: string;
  out: string;
  to?: ConvertOptions["to"];
  dtype?: ConvertOptions["dtype"];
  maxShardSize?: number;
  lora?: string[];
  config?: string;
  force?: boolean;
  json?: boolean;
}

export function convertCommand(): Command {
  return new Command("convert")
    .description("write a model's checkpoint in another form: PyTorch's as safetensors, official models as diffusers'")
    .requiredOption(
      "--checkpoint <path>",
      "a .pt or safetensors file, a checkpoint's, run's or diffusers folder, a LoRA's file or folder",
    )
    .requiredOption("--out <path>", "the safetensors file to write, or a folder where the result has several")
    .addOption(
      new Option("--to <form>", "of official models and their LoRAs: the form to write").choices([
        "official",
        "comfyui",
        "diffusers",
        "ltx-native",
      ]),
    )
    .addOption(
      new Option("--dtype <name>", "element type of the floats, instead of the file's").choices([
        "f32",
        "bf16",
        "f16",
        "fp8",
      ]),
    )
    .option("--max-shard-size <size>", "with --to: weights in a file, such as 5GB; more go to several files", bytes)
    .option("--lora <path[:weight]>", "with --to: merge a LoRA (repeatable)", collect)
    .option("--config <file>", "YAML file of the model, to be stored in the file")
    .option("--force", "replace existing files")
    .option("--json", "events as JSON lines on standard output")
    .action(async (flags: ConvertFlags, command: Command) => {
      command.setOptionValue("exitCode", await runConvert(flags));
    });
}

const UNITS: Record<string, number> = { "": 1, KB: 1e3, MB: 1e6, GB: 1e9 };

/** `5GB`, `500MB`, or a number of bytes. */
function bytes(text: string): number {
  const [, value, unit] = /^(\d+(?:\.\d+)?)\s*([KMG]B)?$/i.exec(text.trim()) ?? [];
  const size = Number(value) * UNITS[(unit ?? "").toUpperCase()];
  if (!(size > 0)) throw new InvalidArgumentError(`expected a size such as 5GB or 500MB, got "${text}".`);
  return size;
}

async function runConvert({ checkpoint, out, lora, json, ...options }: ConvertFlags): Promise<number> {
  const output = standardOutput(json === true);
  const { to, dtype, maxShardSize, config, force } = options;
  const loras = lora && (await Promise.all(lora.map(weightedLora)));
  const result = await convert(checkpoint, out, { to, dtype, maxShardSize, loras, config, force });
  const { tensors, bytes: written, notices } = result;
  for (const notice of notices) {
    if (json) output.out(JSON.stringify({ type: "notice", message: notice }));
    else output.err(notice);
  }
  output.out(
    json
      ? JSON.stringify({ type: "converted", ...result })
      : `${out}: ${tensors} tensors, ${(written / 1e6).toFixed(1)} MB, read back`,
  );
  return 0;
}
