/**
 * Failures inside of pipelines: no memory for a tensor, a kernel that can't be queued, values that can't be read, files
 * that can't be opened or written, at any point of drawing, of changing LoRAs and of writing a video. After each: no byte
 * more on the device than before, no file half written, an error that says what happened, and the next video is the same
 * as without the failure.
 */
import { join } from "node:path";
import { reserveName } from "../../lib/formats/output-folder.js";
import { LtxVideoPipeline, readMedia, type Video, writeVideo } from "../../lib/index.js";
import { saveOrKeep } from "../../lib/pipelines/keep.js";
import { writeLora } from "../../test/support/official.js";
import { TINY_TIMES, tinyCheckpoint, tinyTextEncoder } from "../../test/support/tiny-official.js";
import { allocation, armed, fileSystem, launch, type Point, programs, readBack } from "./inject.js";
import { type Context, type FaultKind, filesBelow, freshFolder, isTold, liveBytes, picks, shown } from "./runner.js";

const request = {
  prompt: "three and 7",
  ...{ height: 32, width: 64, numFrames: 9, frameRate: 25, seed: 1 },
  ...{ timesteps: TINY_TIMES, guidanceScale: 3, stgScale: 1, rescalingScale: 0.7, skipBlockList: [1] },
};

const bytesOf = ({ clips }: Video): string => clips.map((clip) => Buffer.from(clip).toString("base64")).join();

interface Opened {
  pipeline: LtxVideoPipeline;
  lora: string;
  /** Videos without and with the LoRA. */
  plain: string;
  merged: string;
}

async function open(context: Context): Promise<Opened> {
  const textEncoder = await tinyTextEncoder(context.folder);
  const lora = await writeLora(join(context.folder, "lora.safetensors"));
  const pipeline = await LtxVideoPipeline.load({ checkpoint: tinyCheckpoint, textEncoder, precision: "float32" });
  const plain = bytesOf(await pipeline.generate(request));
  await pipeline.setLoras([{ path: lora, weight: 40 }]);
  const merged = bytesOf(await pipeline.generate(request));
  await pipeline.setLoras([]);
  return { pipeline, lora, plain, merged };
}

/** Drawing fails at any point; then the same video is drawn. */
async function drawing(context: Context, { pipeline, plain }: Opened, points: readonly Point[]): Promise<void> {
  const draw = () => pipeline.generate(request);
  const { calls } = await armed(points, 0, draw);
  for (const at of picks(calls, context.count, context.random)) {
    const where = `generate, call ${at} of ${calls}`;
    const before = await liveBytes();
    const { error, fired } = await armed(points, at, draw);
    if (!fired) continue;
    context.injected();
    if (!isTold(error)) context.wrong(`${where}: ${shown(error)}`);
    const left = (await liveBytes()) - before;
    if (left !== 0) context.wrong(`${where}: ${left} bytes left`);
    const again = await draw().then(bytesOf, shown);
    if (again !== plain) context.wrong(`${where}: then another video, or ${again.slice(0, 100)}`);
  }
}

/** Changing LoRAs fails at any point; then the video is one without, or one with, and both can be had again. */
async function changing(context: Context, opened: Opened, points: readonly Point[]): Promise<void> {
  const { pipeline, lora, plain, merged } = opened;
  const merge = () => pipeline.setLoras([{ path: lora, weight: 40 }]);
  const { calls } = await armed(points, 0, merge);
  await pipeline.setLoras([]);
  for (const at of picks(calls, Math.ceil(context.count / 2), context.random)) {
    const where = `setLoras, call ${at} of ${calls}`;
    const before = await liveBytes();
    const { error, fired } = await armed(points, at, merge);
    if (fired) {
      context.injected();
      if (error !== undefined && !isTold(error)) context.wrong(`${where}: ${shown(error)}`);
      const drawn = await pipeline.generate(request).then(bytesOf, shown);
      if (drawn !== (error === undefined ? merged : plain)) context.wrong(`${where}: then ${drawn.slice(0, 100)}`);
      const left = (await liveBytes()) - before;
      if (left !== 0) context.wrong(`${where}: ${left} bytes left`);
    }
    await pipeline.setLoras([]);
  }
}

const kind = (name: string, what: string, points: readonly Point[]): FaultKind => ({
  name,
  what,
  async run(context) {
    const opened = await open(context);
    try {
      await drawing(context, opened, points);
      context.say("generate");
      await changing(context, opened, points);
      context.say("setLoras");
    } finally {
      opened.pipeline.dispose();
    }
  },
});

/** Writing a video fails at any point: the frames are in one file, whole, or the error says that they are nowhere. */
const writing: FaultKind = {
  name: "video-write",
  what: "a finished video that can't be written",
  async run(context) {
    const opened = await open(context);
    const video = await opened.pipeline.generate(request);
    opened.pipeline.dispose();
    const { read: _, ...groups } = await fileSystem();
    for (const [group, points] of Object.entries({ ...groups, ...programs })) {
      const type = group in programs ? ".mp4" : ".webp";
      let run = 0;
      const write = async () => {
        const folder = freshFolder(context, `${group}-${run}`);
        const name = await reserveName(folder, (i) => `video_${i}`, [".json", type], "{}\n");
        try {
          await saveOrKeep(video, name.path(type), { labels: false });
        } catch (error) {
          await name.release();
          throw error;
        }
      };
      const { calls } = await armed(points, 0, write);
      for (const at of picks(calls, context.count, context.random)) {
        run++;
        const where = `${group}, call ${at} of ${calls}`;
        const { error, fired } = await armed(points, at, write);
        if (!fired) continue;
        context.injected();
        if (error !== undefined && !isTold(error)) context.wrong(`${where}: ${shown(error)}`);
        const files = filesBelow(join(context.folder, `${group}-${run}`));
        // What can't be removed stays, under a name that nobody takes for a video.
        const visible = files.filter((file) => !file.startsWith("."));
        const expected = error === undefined ? ["video_0.json", `video_0${type}`] : [];
        const kept = visible.filter((file) => file.startsWith("video_0_frames/"));
        const told = error instanceof Error && /its frames (are in|could not be kept)|cannot write/.test(error.message);
        const whole = kept.length === 0 || kept.length === video.frames;
        // Another format that works, which the error names.
        const named = (file: string) => type !== ".webp" && file === "video_0.webp" && shown(error).includes(file);
        const second = visible.filter(named);
        for (const file of second) {
          const { frames } = await readMedia(join(context.folder, `${group}-${run}`, file));
          if (frames !== video.frames) context.wrong(`${where}: kept ${frames} of ${video.frames} frames`);
        }
        const others = visible.filter((file) => ![...kept, ...expected, ...second].includes(file));
        if (error !== undefined && !told) context.wrong(`${where}: ${shown(error)}`);
        if (!whole || (others.length > 0 && group !== "remove")) context.wrong(`${where}: left ${visible.join(", ")}`);
      }
      context.say(group);
    }
  },
};

/** Reading a video or a photo fails at any point of its programs: an error that says so, and then it is read as before. */
const reading: FaultKind = {
  name: "media-spawn",
  what: "a video that is read while its program can't be started, or ends early",
  async run(context) {
    const path = join(context.folder, "clip.mp4");
    const [frames, height, width, channels] = [9, 32, 48, 3];
    const data = Uint8Array.from({ length: frames * height * width * channels }, (_, i) => (i * 7) % 251);
    await writeVideo(path, { data, frames, height, width, channels }, { fps: 8 });
    const read = async () => Buffer.from((await readMedia(path)).data).toString("base64");
    const whole = await read();
    for (const [way, points] of Object.entries(programs)) {
      const { calls } = await armed(points, 0, read);
      for (const at of picks(calls, context.count, context.random)) {
        const { error, fired } = await armed(points, at, read);
        if (!fired) continue;
        context.injected();
        const where = `${way}, program ${at} of ${calls}`;
        if (!isTold(error)) context.wrong(`${where}: ${error === undefined ? "read all the same" : shown(error)}`);
        const again = await read().catch(shown);
        if (again !== whole) context.wrong(`${where}: then ${again.slice(0, 100)}`);
      }
      context.say(way);
    }
  },
};

export const pipelineKinds: readonly FaultKind[] = [
  kind("pipeline-memory", "no memory for a tensor while a video is drawn or LoRAs change", [allocation]),
  kind("pipeline-launch", "a kernel that can't be queued while a video is drawn or LoRAs change", [launch]),
  kind("pipeline-read", "values that can't be read while a video is drawn or LoRAs change", readBack),
  writing,
  reading,
];
