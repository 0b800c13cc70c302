import { Command, Option } from "commander";
import { type ConvertOptions, convert } from "../pipelines/convert.js";
import { standardOutput } from "./output.js";

interface ConvertFlags {
  checkpoint: string;
  out: string;
  dtype?: ConvertOptions["dtype"];
  config?: string;
  force?: boolean;
  json?: boolean;
}

export function convertCommand(): Command {
  return new Command("convert")
    .description("write a model's checkpoint, PyTorch's too, as one safetensors file")
    .requiredOption("--checkpoint <path>", "a .pt or safetensors file, a checkpoint's folder, or a run's folder")
    .requiredOption("--out <file>", "the safetensors file to write")
    .addOption(
      new Option("--dtype <name>", "element type of the floats, instead of the file's").choices(["f32", "bf16", "f16"]),
    )
    .option("--config <file>", "YAML file of the model, to be stored in the file")
    .option("--force", "replace an existing file")
    .option("--json", "events as JSON lines on standard output")
    .action(async (flags: ConvertFlags, command: Command) => {
      command.setOptionValue("exitCode", await runConvert(flags));
    });
}

async function runConvert({ checkpoint, out, dtype, config, force, json }: ConvertFlags): Promise<number> {
  const output = standardOutput(json === true);
  const result = await convert(checkpoint, out, { dtype, config, force });
  const { tensors, bytes } = result;
  output.out(
    json
      ? JSON.stringify({ type: "converted", ...result })
      : `${out}: ${tensors} tensors, ${(bytes / 1e6).toFixed(1)} MB, read back`,
  );
  return 0;
}
