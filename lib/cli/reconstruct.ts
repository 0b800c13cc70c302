import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { Command } from "commander";
import { reconstructHeldOut, Video } from "../pipelines/index.js";
import { whole } from "./options.js";
import { standardOutput } from "./output.js";

interface ReconstructFlags {
  checkpoint: string;
  numSamples: number;
  seed?: number;
  device: string;
  out: string;
  json?: boolean;
}

export function reconstructCommand(): Command {
  return new Command("reconstruct")
    .description("send clips of held-out digits through a trained VAE and compare")
    .requiredOption("--checkpoint <path>", "a run's folder, a checkpoint's folder, or a model's safetensors file")
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
  const { checkpoint, numSamples: clips, seed, device } = flags;
  const { originals, reconstructions, psnr } = await reconstructHeldOut(checkpoint, { clips, seed, device });
  const { frames, height, width, channels, prompts } = originals;
  const pairs = originals.clips.flatMap((clip, i) => [clip, reconstructions.clips[i]]);
  const names = prompts.flatMap((prompt) => [prompt, `${prompt} (VAE)`]);
  const video = new Video(pairs, frames, height, width, channels, names);
  await mkdir(flags.out, { recursive: true });
  const scale = Math.max(1, Math.round(128 / Math.max(height, width)));
  for (const type of ["gif", "png"]) {
    const path = join(flags.out, `reconstructions.${type}`);
    await video.save(path, { scale, columns: 4 });
    output.out(output.json ? JSON.stringify({ type: "picture", what: "reconstructions", path }) : path);
  }
  output.out(output.json ? JSON.stringify({ type: "metrics", psnr }) : `PSNR ${psnr.toFixed(2)} dB over ${clips} held-out clips`);
  return 0;
}
