import { Command } from "commander";
import { TextToVideo } from "../pipelines/index.js";
import { promptsOf } from "../training/index.js";
import { collect, number, whole } from "./options.js";
import { standardOutput, writePictures } from "./output.js";

interface SampleFlags {
  checkpoint: string;
  config?: string;
  numSamples?: number;
  prompt?: string[];
  steps?: number;
  guidance?: number;
  seed?: number;
  device: string;
  out: string;
  json?: boolean;
}

export function sampleCommand(): Command {
  return new Command("sample")
    .description("draw videos from prompts with a trained model")
    .requiredOption(
      "--checkpoint <path>",
      "a run's folder, a checkpoint's folder, or a model's safetensors or .pt file",
    )
    .option("--config <file>", "YAML file of the model, for checkpoints that carry none (PyTorch's)")
    .option("--num-samples <n>", "clips; prompts are repeated to that number", whole(1))
    .option("--prompt <text>", "what to draw; may be given several times", collect)
    .option("--steps <n>", "sampling steps", whole(1))
    .option("--guidance <g>", "classifier-free guidance, 1 for none", number(0))
    .option("--seed <n>", "seed of the noise", whole(0))
    .option("--device <name>", "auto or cpu", "auto")
    .option("--out <dir>", "folder for the pictures", "samples")
    .option("--json", "events as JSON lines on standard output")
    .action(async (flags: SampleFlags, command: Command) => {
      command.setOptionValue("exitCode", await runSample(flags));
    });
}

async function runSample(flags: SampleFlags): Promise<number> {
  const output = standardOutput(flags.json === true);
  const interrupt = new AbortController();
  const onSignal = () => interrupt.abort();
  process.once("SIGINT", onSignal);
  const pipeline = await TextToVideo.load(flags.checkpoint, { config: flags.config, device: flags.device });
  try {
    const given = flags.prompt ?? promptsOf(pipeline.config);
    const count = flags.numSamples ?? given.length;
    const prompts = Array.from({ length: count }, (_, i) => given[i % given.length]);
    const { steps, guidance, seed } = flags;
    const video = await pipeline.generate({
      prompts,
      steps,
      guidance,
      seed,
      signal: interrupt.signal,
      onStep: (done, total) => {
        if (output.json) output.out(JSON.stringify({ type: "sample-step", step: done, steps: total }));
        else if (output.terminal) process.stderr.write(`\rstep ${done}/${total}${done === total ? "\n" : ""}`);
      },
    });
    await writePictures(output, flags.out, "samples", video);
    return 0;
  } finally {
    pipeline.dispose();
    process.off("SIGINT", onSignal);
  }
}
