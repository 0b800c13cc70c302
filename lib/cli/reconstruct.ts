import { Command } from "commander";
import { reconstructHeldOut, sideBySide } from "../pipelines/index.js";
import { interruptible } from "./interrupt.js";
import { type ModelFlags, modelOptions, whole } from "./options.js";
import { pictureFolder, standardOutput, writePictures } from "./output.js";

interface ReconstructFlags extends ModelFlags {
  numSamples: number;
  seed?: number;
  out: string;
}

export function reconstructCommand(): Command {
  const command = new Command("reconstruct");
  return modelOptions(command.description("send clips of held-out digits through a trained VAE and compare"))
    .option("--num-samples <n>", "clips", whole(1), 8)
    .option("--seed <n>", "seed of the clips; the training data's unless given", whole(0))
    .option("--out <dir>", "folder for the pictures", "reconstructions")
    .action(async (flags: ReconstructFlags, self: Command) => {
      self.setOptionValue("exitCode", await runReconstruct(flags));
    });
}

function runReconstruct(flags: ReconstructFlags): Promise<number> {
  const output = standardOutput(flags.json === true);
  const { checkpoint, config, numSamples: clips, seed, device } = flags;
  return interruptible(async (signal) => {
    await pictureFolder("reconstruct", flags.out);
    const result = await reconstructHeldOut(checkpoint, { clips, seed, config, device, signal });
    const { psnr, ssim } = result;
    await writePictures(output, flags.out, "reconstructions", sideBySide(result), { columns: 4 });
    output.out(
      output.json
        ? JSON.stringify({ type: "metrics", psnr, ssim })
        : `PSNR ${psnr.toFixed(2)} dB, SSIM ${ssim.toFixed(4)} over ${clips} held-out clips`,
    );
    return 0;
  });
}
