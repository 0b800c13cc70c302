import { Command } from "commander";
import { generateRelease, type ReleaseRequest } from "../pipelines/index.js";
import { DEFAULTS } from "../pipelines/release/request.js";
import { interruptible } from "./interrupt.js";
import { collect, number, weightedLora, whole } from "./options.js";
import { showNotice, showProgress, standardOutput } from "./output.js";
import { numbers, offloaded, overridesOf, type ReleaseFlags, releaseOptions } from "./release-options.js";

interface GenerateFlags extends ReleaseFlags, Omit<ReleaseRequest, "height" | "width" | "numFrames" | "format"> {
  format?: string;
  lora?: string[];
}

export function generateCommand(): Command {
  const command = new Command("generate")
    .description("draw a video with an official LTX-Video release, by the official command's flags (--a_b or --a-b)")
    .requiredOption("--prompt <text>", "what to draw")
    .option("--negative-prompt <text>", "what to keep away from, where guidance is on", DEFAULTS.negativePrompt)
    .option("--output-path <dir>", "folder for the result (default: outputs/DATE)")
    .option("--format <extension>", "mp4, mov, mkv, webm, gif or webp; one frame becomes a PNG", "mp4")
    .option("--seed <n>", "seed of the noise", whole(0), DEFAULTS.seed)
    .option("--frame-rate <fps>", "frames per second", number(0), DEFAULTS.frameRate)
    .option("--input-media-path <file>", "video to start from (with skip_initial_inference_steps)")
    .option(
      "--image-cond-noise-scale <s>",
      "noise that keeps given frames moving",
      number(0),
      DEFAULTS.imageCondNoiseScale,
    )
    .option("--conditioning-media-paths <file...>", "images or videos that the video is to show")
    .option("--conditioning-strengths <s...>", "how strictly, 0 to 1 each (default: 1)", numbers())
    .option("--conditioning-start-frames <n...>", "the frame at which each begins", numbers(whole(0)))
    .option("--lora <file[:weight]>", "an adapter to merge; may be given several times", collect);
  return releaseOptions(command).action(async (flags: GenerateFlags, self: Command) => {
    self.setOptionValue("exitCode", await runGenerate(flags));
  });
}

function runGenerate(flags: GenerateFlags): Promise<number> {
  const output = standardOutput(flags.json === true);
  const { format = "mp4", lora = [], pipelineConfig, device, ...request } = flags;
  return interruptible(async (signal) => {
    const { path, settings } = await generateRelease(
      { ...request, format: `.${format.replace(/^\./, "").toLowerCase()}` },
      {
        pipelineConfig,
        overrides: await overridesOf(flags),
        device,
        offload: offloaded(flags),
        loras: await Promise.all(lora.map(weightedLora)),
        signal,
        onNotice: (message) => showNotice(output, message),
        onStep: ({ pass, step, steps }) =>
          showProgress(
            output,
            { type: "sample-step", pass, step, steps },
            pass > 1 ? "pass 2, step" : "step",
            step,
            steps,
          ),
      },
    );
    output.out(output.json ? JSON.stringify({ type: "picture", what: "generated", path, settings }) : path);
    return 0;
  });
}
