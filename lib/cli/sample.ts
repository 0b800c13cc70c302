import { Command } from "commander";
import { loadSamplingScheme } from "../config/deferred.js";
import { LtxError } from "../errors.js";
import {
  drawPrompts,
  generateLong,
  planAutoregressive,
  planScheme,
  TextToVideo,
  type Windows,
} from "../pipelines/index.js";
import { interruptible } from "./interrupt.js";
import { collect, type DrawFlags, drawOptions, RESAMPLE, whole } from "./options.js";
import { pictureFolder, sampleSteps, showNotice, standardOutput, writePictures } from "./output.js";
import { readPrompts } from "./prompts.js";

interface SampleFlags extends DrawFlags {
  numSamples?: number;
  prompt?: string[];
  promptsFile?: string;
  frames?: number;
  scheme?: string;
  overlap?: number;
  resample?: number;
  out: string;
}

export function sampleCommand(): Command {
  const command = new Command("sample").description("draw videos from prompts with a trained model");
  return drawOptions(command, "seed of the noise, and of prompts drawn at random")
    .option("--num-samples <n>", "clips; prompts are repeated to that number (default: one for each prompt)", whole(1))
    .option("--prompt <text>", "what to draw; may be given several times", collect)
    .option("--prompts-file <file>", "prompts, one a line; blank lines are skipped")
    .option("--frames <n>", "frames of a video; more than the model's are drawn in overlapping windows", whole(1))
    .option("--scheme <name>", 'how: "autoregressive", or the YAML file of a sampling scheme')
    .option("--overlap <n>", "frames that neighbouring windows share", whole(1))
    .option("--resample <n>", RESAMPLE, whole(1))
    .option("--out <dir>", "folder for the pictures", "samples")
    .action(async (flags: SampleFlags, self: Command) => {
      self.setOptionValue("exitCode", await runSample(flags));
    });
}

function runSample(flags: SampleFlags): Promise<number> {
  const output = standardOutput(flags.json === true);
  return interruptible(async (signal) => {
    const written = await writtenPrompts(flags);
    await pictureFolder("sample", flags.out);
    const pipeline = await TextToVideo.load(flags.checkpoint, { ...flags, signal });
    try {
      const prompts = promptsFor(pipeline, written, flags);
      const windows = await windowsFor(pipeline, flags);
      const { steps, guidance, seed, resample } = flags;
      const video = await generateLong(pipeline, windows, {
        ...{ prompts, steps, guidance, seed, resample, signal },
        onStep: sampleSteps(output),
        onNotice: (message) => showNotice(output, message),
      });
      await writePictures(output, flags.out, "samples", video, { prompts });
      return 0;
    } finally {
      pipeline.dispose();
    }
  });
}

async function writtenPrompts({ prompt, promptsFile }: SampleFlags): Promise<string[] | undefined> {
  if (promptsFile === undefined) return prompt;
  if (prompt) throw new LtxError("config", "[sample] give --prompt or --prompts-file, not both");
  return readPrompts(promptsFile);
}

/** The prompts given, or those of the configuration, or such as the data set has. */
function promptsFor({ config }: TextToVideo, written: string[] | undefined, flags: SampleFlags): string[] {
  const { sampling, data } = config;
  const given = written ?? sampling.prompts;
  if (given.length === 0) {
    const drawn = drawPrompts(data, flags.numSamples ?? sampling.num_samples, flags.seed ?? sampling.seed);
    return drawn.map(({ prompt }) => prompt);
  }
  return Array.from({ length: flags.numSamples ?? given.length }, (_, i) => given[i % given.length]);
}

async function windowsFor({ model }: TextToVideo, { scheme, frames, overlap }: SampleFlags): Promise<Windows> {
  const known = scheme === undefined || scheme === "autoregressive";
  if (!known) {
    const clash = frames !== undefined ? "--frames" : overlap !== undefined ? "--overlap" : undefined;
    if (clash)
      throw new LtxError("config", `[sample] the scheme in ${scheme} says how many frames: leave out ${clash}`);
    return planScheme(model, await loadSamplingScheme(scheme));
  }
  if (frames === undefined && (scheme !== undefined || overlap !== undefined)) {
    const flag = scheme !== undefined ? `--scheme ${scheme}` : "--overlap";
    throw new LtxError("config", `[sample] ${flag} needs the length of the video: give --frames`);
  }
  return planAutoregressive(model, frames ?? model.config.sampling.frames, overlap);
}
