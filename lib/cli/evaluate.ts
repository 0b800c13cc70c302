import { Command } from "commander";
import { type DigitScore, type Evaluation, evaluate, sideBySide } from "../pipelines/index.js";
import { interruptible } from "./interrupt.js";
import { type DrawFlags, drawOptions, whole } from "./options.js";
import { type Output, pictureFolder, showProgress, standardOutput, writePictures } from "./output.js";

interface EvaluateFlags extends DrawFlags {
  clips: number;
  samples: number;
  realClips: number;
  classifierSteps?: number;
  out?: string;
}

export function evaluateCommand(): Command {
  const command = new Command("evaluate").description(
    "measure a trained model: PSNR, SSIM and sharpness of the VAE, and whether generated clips show the prompted digits",
  );
  return drawOptions(command, "seed of clips, prompts and noise; the configuration's unless given")
    .option("--clips <n>", "held-out clips for the VAE", whole(1), 64)
    .option("--samples <n>", "clips to generate and read", whole(1), 100)
    .option("--real-clips <n>", "real held-out clips to read beside them", whole(1), 500)
    .option("--classifier-steps <n>", "updates of the classifier that reads digits (default: 1000 a digit)", whole(2))
    .option("--out <dir>", "folder for pictures; none are written without it")
    .action(async (flags: EvaluateFlags, self: Command) => {
      self.setOptionValue("exitCode", await runEvaluate(flags));
    });
}

function runEvaluate(flags: EvaluateFlags): Promise<number> {
  const output = standardOutput(flags.json === true);
  return interruptible(async (signal) => {
    if (flags.out !== undefined) await pictureFolder("evaluate", flags.out);
    const onProgress = (what: string, done: number, total: number) =>
      showProgress(output, { type: "progress", what, done, total }, what, done, total);
    const result = await evaluate(flags.checkpoint, { ...flags, signal, onProgress });
    if (flags.out !== undefined) await writeAll(output, flags.out, result);
    report(output, result);
    return 0;
  });
}

async function writeAll(output: Output, folder: string, { vae, digits }: Evaluation): Promise<void> {
  if (vae) await writePictures(output, folder, "reconstructions", sideBySide(vae), { columns: 8 });
  if (digits) await writePictures(output, folder, "samples", digits.video);
}

function report(output: Output, { vae, digits }: Evaluation): void {
  if (vae) {
    const { psnr, ssim, sharpness, originals } = vae;
    const clips = originals.clips.length;
    if (output.json) output.out(JSON.stringify({ type: "metrics", what: "vae", clips, psnr, ssim, sharpness }));
    else {
      output.out(
        `VAE on ${clips} held-out clips: PSNR ${psnr.toFixed(2)} dB, SSIM ${ssim.toFixed(4)}, sharpness ${sharpness.toFixed(3)} of the originals'`,
      );
    }
  }
  if (!digits) return;
  const { generated, real } = digits;
  if (output.json) {
    output.out(JSON.stringify({ type: "metrics", what: "digits", clips: generated.clips, generated, real }));
    return;
  }
  output.out(`digits all recognised: ${share(generated)} generated clips, ${share(real)} real ones`);
  output.out("digit   generated        real");
  for (const [digit, row] of generated.perDigit.entries()) {
    output.out(`${String(digit).padStart(5)}${cell(row)}${cell(real.perDigit[digit])}`);
  }
}

const share = ({ accuracy, clips }: DigitScore): string => `${(100 * accuracy).toFixed(1)} % of ${clips}`;

const cell = ({ shown, recognised }: DigitScore["perDigit"][number]): string =>
  `${recognised} of ${shown}`.padStart(12);
