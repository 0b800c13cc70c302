import { basename, join } from "node:path";
import { Command, Option } from "commander";
import { loadConfig } from "../config/deferred.js";
import type { RunConfig } from "../config/index.js";
import { LtxError } from "../errors.js";
import { packageRoot } from "../native.js";
import { train } from "../training/index.js";
import { interruptible } from "./interrupt.js";
import { whole } from "./options.js";
import { standardOutput, TrainReport } from "./output.js";

interface TrainFlags {
  config?: string;
  steps?: number;
  batchSize?: number;
  device: string;
  out?: string;
  resume?: string;
  vae?: string;
  init?: string;
  textEncoder?: string;
  jointImageVideoTrainingStep?: number;
  seed?: number;
  force?: boolean;
  json?: boolean;
}

type Flags = TrainFlags & { joint_image_video_training_step?: number };

export function trainCommand(): Command {
  return (
    new Command("train")
      .description("train a VAE or a transformer; without --config the quickstart: both, on moving digits, in minutes")
      .option("--config <file>", "YAML file of the run")
      .option("--steps <n>", "updates of each stage, instead of the file's; with --resume, go on up to there", whole(1))
      .option("--batch-size <n>", "clips of a batch, instead of the file's", whole(1))
      .option("--device <name>", "auto, cpu, cuda or cuda:N", "auto")
      .option("--out <dir>", "folder of the run (default: runs/NAME)")
      .option("--resume <dir>", "continue the run in this folder")
      .option("--vae <checkpoint>", "trained VAE for a transformer's run")
      .option("--init <checkpoint>", "trained model of the same kind whose weights the run starts from")
      .option("--text-encoder <dir>", "folder of the pretrained text encoder")
      .option("--joint-image-video-training-step <k>", "every k-th batch of a transformer's run is images", whole(-1))
      // As the reference's command line spells it.
      .addOption(new Option("--joint_image_video_training_step <k>").argParser(whole(-1)).hideHelp())
      .option("--seed <n>", "seed of parameters, data order and noise", whole(0))
      .option("--force", "replace another run in the folder")
      .option("--json", "events as JSON lines on standard output")
      .action(async ({ joint_image_video_training_step: theirs, ...flags }: Flags, command: Command) => {
        const jointImageVideoTrainingStep = flags.jointImageVideoTrainingStep ?? theirs;
        command.setOptionValue("exitCode", await runTrain({ ...flags, jointImageVideoTrainingStep }));
      })
  );
}

async function runTrain(flags: TrainFlags): Promise<number> {
  const output = standardOutput(flags.json === true);
  const report = new TrainReport(output);
  const onInterrupt = () => {
    report.stop();
    output.err("stopping after this step; a checkpoint will be written (once more to stop at once)");
  };
  const run = async (signal: AbortSignal) => {
    const { out, config } = await plan(flags);
    const { force, vae, init, textEncoder, device } = flags;
    const steps = flags.resume === undefined ? undefined : flags.steps;
    const events = train({
      out,
      config,
      force,
      steps,
      vae,
      init,
      textEncoder,
      device,
      signal,
      warn: (message) => output.err(message),
    });
    let pictures = 0;
    for await (const event of events) {
      report.show(event);
      if (event.type === "picture") pictures++;
    }
    if (signal.aborted) {
      output.err(`continue with: ltx-native train --resume ${out}`);
      return 130;
    }
    if (!output.json) output.out(pictures > 0 ? `done: the pictures are in ${out}` : `nothing left to do in ${out}`);
    return 0;
  };
  return interruptible(run, onInterrupt).finally(() => report.stop());
}

/** Where to run, and what: nothing to continue what is there. */
async function plan(flags: TrainFlags): Promise<{ out: string; config?: RunConfig }> {
  if (flags.resume !== undefined) {
    const fixed = ["config", "out", "force", "batchSize", "seed", "init", "jointImageVideoTrainingStep"] as const;
    const clash = fixed.find((name) => flags[name] !== undefined);
    if (clash)
      throw new LtxError(
        "config",
        `--resume continues the run as it was configured; leave out --${clash.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`,
      );
    return { out: flags.resume };
  }
  const file = flags.config ?? join(packageRoot, "configs", "quickstart.yaml");
  const config = await loadConfig(file);
  if (config.kind === "vae" && flags.jointImageVideoTrainingStep !== undefined) {
    throw new LtxError("config", "--joint-image-video-training-step is for a transformer's run: leave it out");
  }
  for (const stage of config.kind === "quickstart" ? [config.vae, config.flow] : [config])
    override(stage.training, flags);
  return { out: flags.out ?? join("runs", basename(file).replace(/\.ya?ml$/, "")), config };
}

function override(training: Exclude<RunConfig, { kind: "quickstart" }>["training"], flags: TrainFlags): void {
  if (flags.steps !== undefined) {
    const { name, warmup_steps } = training.lr_schedule;
    training.steps = flags.steps;
    // A shortened run keeps its shape: the warm-up may not outlast it.
    if (name === "cosine") training.lr_schedule.warmup_steps = Math.min(warmup_steps, flags.steps - 1);
  }
  if (flags.batchSize !== undefined) training.batch_size = flags.batchSize;
  if (flags.seed !== undefined) training.seed = flags.seed;
  const images = flags.jointImageVideoTrainingStep;
  if (images !== undefined && "joint_image_video_training_step" in training) {
    training.joint_image_video_training_step = images;
  }
}
