/** The examples with the official models, as processes of their own, at sizes that the tiny checkpoint draws in a second. */
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { writeVideo } from "../../lib/formats/media/index.js";
import { type Compiled, compileLibrary } from "../support/compiled.js";
import { probe, withoutFfmpeg } from "../support/ffmpeg.js";
import { root, testFolder } from "../support/folder.js";
import { tinyCheckpoint, tinyTextEncoder, tinyUpscaler } from "../support/tiny-official.js";

const folder = testFolder();
let library: Compiled;
let textEncoder: string;

beforeAll(async () => {
  library = compileLibrary();
  mkdirSync(library.path("../examples"));
  textEncoder = await tinyTextEncoder(folder);
});
afterAll(() => library.remove());

/** What an example says, smaller: each pattern must be there. */
const SMALL: [RegExp, string][] = [
  [/height: \d+/, "height: 64"],
  [/width: \d+/, "width: 96"],
  [/numFrames(: | = )\d+/, "numFrames$125"],
];
const STEPS: [RegExp, string] = [/numInferenceSteps: \d+/, "timesteps: [1, 0.9937, 0.725, 0.4219]"];
const BLOCK: [RegExp, string] = [/skipBlockList: \[19\]/, "skipBlockList: [1]"];

/** Runs a copy of an example, and looks at the video that it names. */
async function draw(name: string, changes: readonly [RegExp, string][], args: readonly string[]) {
  const script = library.path(`../examples/${name}.js`);
  let text = readFileSync(join(root, "examples", `${name}.js`), "utf8");
  for (const [pattern, replacement] of changes) {
    expect(text).toMatch(pattern);
    text = text.replace(pattern, replacement);
  }
  writeFileSync(script, text);
  const { stdout } = await promisify(execFile)(process.execPath, [script, ...args], { cwd: folder });
  return probe(join(folder, stdout.trim())).stream;
}

/** A clip of 33 frames in which a bright square moves. */
async function sourceVideo(): Promise<string> {
  const [frames, height, width] = [33, 64, 96];
  const data = new Uint8Array(frames * height * width * 3);
  for (let f = 0; f < frames; f++) {
    for (let y = 16; y < 32; y++)
      data.fill(255, 3 * ((f * height + y) * width + f), 3 * ((f * height + y) * width + f + 16));
  }
  const path = join(folder, "source.mp4");
  await writeVideo(path, { data, frames, height, width, channels: 3 }, { fps: 25 });
  return path;
}

describe.skipIf(withoutFfmpeg)("examples", () => {
  const size = { codec_name: "h264", width: 96, height: 64, nb_read_frames: "25", avg_frame_rate: "25/1" };

  it("text-to-video.js draws a prompt", async () => {
    const args = [tinyCheckpoint, textEncoder, "three"];
    expect(await draw("text-to-video", [...SMALL, STEPS, BLOCK], args)).toMatchObject(size);
  });

  it("image-to-video.js brings an image to life", async () => {
    const image = join(root, "docs", "images", "samples.gif");
    const args = [tinyCheckpoint, textEncoder, image, "three"];
    expect(await draw("image-to-video", [...SMALL, STEPS], args)).toMatchObject(size);
  });

  it("video-to-video.js draws a video anew, and extend.js continues it", async () => {
    const source = await sourceVideo();
    const args = [tinyCheckpoint, textEncoder, source, "three"];
    const skip: [RegExp, string] = [/skipInitialInferenceSteps: 15/, "skipInitialInferenceSteps: 1"];
    expect(await draw("video-to-video", [...SMALL, STEPS, BLOCK, skip], args)).toMatchObject(size);
    const longer: [RegExp, string] = [/numFrames: 25/, "numFrames: 49"];
    const extended = await draw("extend", [...SMALL, longer, STEPS, BLOCK], args);
    expect(extended).toMatchObject({ ...size, nb_read_frames: "49" });
  });

  it("multi-scale.js draws in two passes", async () => {
    const passes: [RegExp, string][] = [
      [/timesteps: \[1, [^\]]*\]/, "timesteps: [1, 0.9937, 0.725]"],
      [/timesteps: \[0\.9094, [^\]]*\]/, "timesteps: [0.725, 0.4219]"],
    ];
    const args = [tinyCheckpoint, tinyUpscaler, textEncoder, "three"];
    const stream = await draw("multi-scale", [...SMALL, ...passes], args);
    expect(stream).toMatchObject({ ...size, avg_frame_rate: "30/1" });
  });
});
