import { Command } from "commander";
import { openData } from "../data/index.js";
import { readAnimation } from "../formats/read-animation.js";
import { extendVideo, TextToVideo, Video } from "../pipelines/index.js";
import { interruptible } from "./interrupt.js";
import { collect, type DrawFlags, drawOptions, RESAMPLE, whole } from "./options.js";
import { type Output, pictureFolder, sampleSteps, showNotice, standardOutput, writePictures } from "./output.js";

interface ExtendFlags extends DrawFlags {
  source?: string;
  overlap?: number;
  resample?: number;
  rounds: number;
  prompt?: string[];
  numSamples?: number;
  out: string;
}

export function extendCommand(): Command {
  const command = new Command("extend").description("continue clips: the last frames become the first of a new clip");
  return drawOptions(command, "seed of the noise and of the held-out clips")
    .option(
      "--source <path>",
      "video to continue: a video, an image, a folder of images or a .npy array; held-out clips unless given",
    )
    .option("--overlap <n>", "frames that a new clip shares with the one before it (default: at least 4)", whole(1))
    .option("--resample <n>", RESAMPLE, whole(1))
    .option("--rounds <n>", "new clips, one behind the other", whole(1), 1)
    .option("--prompt <text>", "what to draw; may be given several times (default: the clips' own)", collect)
    .option("--num-samples <n>", "clips (default: one for each prompt, 8 held-out ones)", whole(1))
    .option("--out <dir>", "folder for the pictures", "extended")
    .action(async (flags: ExtendFlags, self: Command) => {
      self.setOptionValue("exitCode", await runExtend(flags));
    });
}

function runExtend(flags: ExtendFlags): Promise<number> {
  const output = standardOutput(flags.json === true);
  return interruptible(async (signal) => {
    await pictureFolder("extend", flags.out);
    const pipeline = await TextToVideo.load(flags.checkpoint, { ...flags, signal });
    try {
      const source =
        flags.source === undefined ? await heldOut(pipeline, flags) : await readSource(pipeline, flags, output, signal);
      const { overlap, rounds, resample, steps, guidance, seed } = flags;
      const video = await extendVideo(pipeline, source, {
        ...{ overlap, rounds, resample, steps, guidance, seed, signal },
        onStep: sampleSteps(output),
        onNotice: (message) => showNotice(output, message),
      });
      await writePictures(output, flags.out, "extended", video, { prompts: video.prompts });
      return 0;
    } finally {
      pipeline.dispose();
    }
  });
}

/** Clips of held-out digits; prompts given take the place of their own. */
async function heldOut({ config }: TextToVideo, flags: ExtendFlags): Promise<Video> {
  const count = flags.numSamples ?? flags.prompt?.length ?? 8;
  const data = await openData({ ...config.data, seed: flags.seed ?? config.data.seed }, "test", count);
  const clips = await Promise.all(Array.from({ length: count }, (_, i) => data.clip(i % data.length)));
  const prompts = clips.map(({ prompt = "" }, i) => flags.prompt?.[i % flags.prompt.length] ?? prompt);
  const { frames, height, width, channels } = data;
  const videos = clips.map(({ video }) => video);
  return new Video(videos, frames, height, width, channels, prompts);
}

/** The source once for each prompt or sample: their noise differs. */
async function readSource(
  { config }: TextToVideo,
  flags: ExtendFlags,
  output: Output,
  signal: AbortSignal,
): Promise<Video> {
  const { height, width, channels } = config.sampling;
  const options = { height, width, channels, signal, onNotice: (message: string) => showNotice(output, message) };
  const { data, frames } = await readAnimation(flags.source as string, options);
  const given = flags.prompt ?? [""];
  const prompts = Array.from({ length: flags.numSamples ?? given.length }, (_, i) => given[i % given.length]);
  const clips = prompts.map(() => data);
  return new Video(clips, frames, height, width, channels, prompts);
}
