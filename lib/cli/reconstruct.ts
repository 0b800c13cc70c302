import { Command } from "commander";
import { reconstructHeldOut, sideBySide } from "../pipelines/index.js";
import { whole } from "./options.js";
import { standardOutput, writePictures } from "./output.js";

interface ReconstructFlags {
  checkpoint: string;
  config?: string;
  numSamples: number;
  seed?: number;
  device: string;
  out: string;
  json?: boolean;
}

export function reconstructCommand(): Command {
  return new Command("reconstruct")
    .description("send clips of held-out digits through a trained VAE and compare")
    .requiredOption(
      "--checkpoint <path>",
      "a run's folder, a checkpoint's folder, or a model's safetensors or .pt file",
    )
    .option("--config <file>", "YAML file of the model, for checkpoints that carry none (PyTorch's)")
    .option("--num-samples <n>", "clips", whole(1), 8)
    .option("--seed <n>", "seed of the clips; the training data's unless given", whole(0))
    .option("--device <name>", "auto or cpu", "auto")
    .option("--out <dir>", "folder for the pictures", "reconstructions")
    .option("--json", "events as JSON lines on standard output")
    .action(async (flags: ReconstructFlags, command: Command) => {
      command.setOptionValue("exitCode", await runReconstruct(flags));
    });
}

async function runReconstruct(flags: ReconstructFlags): Promise<number> {
  const output = standardOutput(flags.json === true);
  const { checkpoint, config, numSamples: clips, seed, device } = flags;
  const result = await reconstructHeldOut(checkpoint, { config, clips, seed, device });
  const { psnr } = result;
  await writePictures(output, flags.out, "reconstructions", sideBySide(result), 4);
  output.out(
    output.json ? JSON.stringify({ type: "metrics", psnr }) : `PSNR ${psnr.toFixed(2)} dB over ${clips} held-out clips`,
  );
  return 0;
}
