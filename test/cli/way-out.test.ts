/** What becomes of a video when it can't be written as it was asked for. */
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { stringify } from "yaml";
import { readMedia } from "../../lib/formats/media/index.js";
import { device, generateRelease, Video } from "../../lib/index.js";
import { saveOrKeep } from "../../lib/pipelines/keep.js";
import { failure } from "../support/failure.js";
import { probe, withEnv, withoutFfmpeg } from "../support/ffmpeg.js";
import { call, testFolder, writeYaml } from "../support/tiny.js";
import { tinyRelease, tinyTextEncoder } from "../support/tiny-official.js";

const folder = testFolder();
let config: string;
beforeAll(async () => {
  const release = tinyRelease(await tinyTextEncoder(folder));
  config = writeYaml(folder, "base.yaml", stringify({ ...release, guidance_scale: 1, stg_scale: 0 }));
});

let count = 0;
/** A folder that is not there yet. */
const fresh = () => join(folder, `out-${count++}`);
const size = ["--height", "64", "--width", "96", "--num-frames", "9"];
const draw = (out: string, ...argv: string[]) =>
  call("generate", "--prompt", "a boat", "--pipeline-config", config, ...size, "--output-path", out, ...argv);

/** A program in ffmpeg's place that does `before` with the arguments, then what ffmpeg does. */
function ffmpegThat(before: string): string {
  const path = join(folder, `ffmpeg-${count++}.sh`);
  writeFileSync(path, `#!/bin/sh\n${before}\nexec ffmpeg "$@"\n`);
  chmodSync(path, 0o755);
  return path;
}
const lacks = (...encoders: string[]) =>
  ffmpegThat(
    `case "$*" in ${encoders.map((name) => `*${name}*`).join("|")}) echo "Unknown encoder" >&2; exit 1;; esac`,
  );
/** When the whole video is written, which is the only time that its index is moved to the front. */
const writing = (command: string) => ffmpegThat(`case "$*" in *faststart*) ${command};; esac`);

const live = async () => {
  await device().synchronize();
  return device().memory().live;
};

describe.skipIf(withoutFfmpeg)("an ffmpeg without the usual encoder", () => {
  it.each([
    [".mp4", "libx264", "mpeg4"],
    [".mov", "libx264", "mpeg4"],
    [".mkv", "libx264", "mpeg4"],
    [".webm", "libvpx-vp9", "vp8"],
  ])("writes %s with another one than %s, and says so", async (type, usual, other) => {
    const out = fresh();
    const done = await withEnv({ LTX_FFMPEG: lacks(usual, "libopenh264") }, () => draw(out, "--format", type));
    expect(done.code).toBe(0);
    expect(done.stderr).toContain(`this ffmpeg has no ${usual} for 96x64: the video is encoded by`);
    const path = done.stdout.trim();
    expect(probe(path).stream).toMatchObject({ codec_name: other, width: 96, height: 64, nb_read_frames: "9" });
    expect(JSON.parse(probe(path).tags.comment ?? probe(path).tags.COMMENT)).toMatchObject({ prompt: "a boat" });
  });

  it("keeps odd sizes", async () => {
    const clip = { data: new Uint8Array(2 * 31 * 33 * 3).fill(90), frames: 2, height: 31, width: 33, channels: 3 };
    await withEnv({ LTX_FFMPEG: lacks("libx264") }, async () => {
      await new Video([clip.data], 2, 31, 33, 3).save(join(folder, "odd.mp4"));
      expect(probe(join(folder, "odd.mp4")).stream).toMatchObject({ width: 33, height: 31, codec_name: "mpeg4" });
      const lossless = await failure(() =>
        new Video([clip.data], 2, 31, 33, 3).save(join(folder, "o.mp4"), { crf: 0 }),
      );
      expect(lossless.code).toBe("unavailable");
      expect(lossless.message).toContain("can't encode 33x31 without loss (crf 0) (libx264: Unknown encoder)");
    });
  });

  it("is refused before drawing when it has none of them, and images condition without H.264", async () => {
    const out = fresh();
    const none = lacks("libx264", "libopenh264", "mpeg4");
    await withEnv({ LTX_FFMPEG: none }, async () => {
      const { code, stderr } = await draw(out, "--format", "mp4", "--json");
      expect(code).toBe(1);
      expect(stderr).toMatch(
        /this ffmpeg can't encode 96x64 \(libx264: .*libopenh264: .*mpeg4: .*--format gif or webp/s,
      );
      expect(existsSync(out)).toBe(false);
      const image = join(folder, "image.png");
      await new Video([new Uint8Array(64 * 96 * 3).fill(70)], 1, 64, 96, 3).save(image);
      const held = ["--conditioning-media-paths", image, "--conditioning-start-frames", "0"];
      const done = await draw(out, "--format", "webp", ...held);
      expect(done.code).toBe(0);
      expect(done.stderr).toContain("without an ffmpeg that has libx264 the given images are used as they are");
    });
  });
});

describe.skipIf(withoutFfmpeg)("a video that can't be written once it is drawn", () => {
  it("is kept as WebP when ffmpeg is killed, whose signal is named", async () => {
    const out = fresh();
    const before = await live();
    const ended = await withEnv({ LTX_FFMPEG: writing("kill -KILL $$") }, () => draw(out, "--format", "mp4"));
    expect(ended).toMatchObject({ code: 1, stdout: "" });
    const [kept, ...others] = readdirSync(out);
    expect(others).toEqual([]);
    expect(ended.stderr).toContain("ffmpeg was ended by the signal SIGKILL");
    expect(ended.stderr.trimEnd()).toMatch(/; its frames are in .*video_output_0_a-boat_171198_64x96x9_0\.webp$/);
    expect(ended.stderr).toContain(join(out, kept));
    const same = await draw(fresh(), "--format", "webp");
    expect((await readMedia(join(out, kept))).data).toEqual((await readMedia(same.stdout.trim())).data);
    expect(await live()).toBe(before);
  });

  it("is kept elsewhere when its folder takes nothing more", async () => {
    const out = fresh();
    const tmp = fresh();
    mkdirSync(tmp);
    const gone = writing(`rm -rf '${out}'; touch '${out}'; echo "No space left on device" >&2; exit 1`);
    const ended = await withEnv({ LTX_FFMPEG: gone, TMPDIR: tmp }, () => draw(out, "--format", "mp4"));
    expect(ended.code).toBe(1);
    expect(ended.stderr).toContain("No space left on device; its frames are in ");
    const kept = /its frames are in (.*)\n/.exec(ended.stderr)?.[1] as string;
    expect(dirname(dirname(kept))).toBe(tmp);
    expect(await readMedia(kept)).toMatchObject({ frames: 9, height: 64, width: 96 });
  });
});

describe("saveOrKeep", () => {
  const clip = Uint8Array.from({ length: 3 * 4 * 5 * 3 }, (_, i) => i);
  const failing = (...types: string[]) => {
    const video = new Video([clip], 3, 4, 5, 3);
    const save = Video.prototype.save;
    video.save = (path, options) =>
      types.some((type) => path.endsWith(type)) ? Promise.reject(new Error("full")) : save.call(video, path, options);
    return video;
  };

  it("keeps every frame as a PNG where WebP fails too", async () => {
    const out = fresh();
    mkdirSync(out);
    const error = await failure(() => saveOrKeep(failing(".mp4", ".webp"), join(out, "a.mp4")));
    expect(error).toMatchObject({ code: "io", message: `full; its frames are in ${join(out, "a_frames")}` });
    const kept = await readMedia(join(out, "a_frames"));
    expect(kept).toMatchObject({ frames: 3, height: 4, width: 5 });
    expect(kept.data).toEqual(clip);
    expect(readdirSync(out)).toEqual(["a_frames"]);
  });

  it("keeps nothing of what was stopped", async () => {
    const out = fresh();
    mkdirSync(out);
    const stopped = { signal: AbortSignal.abort() };
    const error = await failure(() => saveOrKeep(new Video([clip], 3, 4, 5, 3), join(out, "a.mp4"), stopped));
    expect(error.code).toBe("aborted");
    expect(readdirSync(out)).toEqual([]);
  });
});

describe("names", () => {
  it("are another for each of several that draw the same at once", async () => {
    const out = fresh();
    const request = { prompt: "x", outputPath: out, format: ".webp", height: 64, width: 96, numFrames: 9, seed: 3 };
    const each = [1, 2, 3].map((guidance_scale) =>
      generateRelease(request, { pipelineConfig: config, overrides: { guidance_scale } }),
    );
    const made = await Promise.all(each);
    const names = [0, 1, 2].flatMap((i) => ["json", "webp"].map((type) => `video_output_0_x_3_64x96x9_${i}.${type}`));
    expect(readdirSync(out).sort()).toEqual(names.sort());
    for (const [i, { path, settings }] of made.entries()) {
      const stored = JSON.parse(readFileSync(path.replace(".webp", ".json"), "utf8"));
      expect(stored).toEqual(JSON.parse(JSON.stringify(settings)));
      expect(stored.pipeline_config.guidance_scale).toBe(i + 1);
    }
    const bytes = made.map(({ path }) => readFileSync(path).toString("base64"));
    expect(new Set(bytes).size).toBe(3);
  });

  it("are given back when drawing fails", async () => {
    const out = fresh();
    const stop = new AbortController();
    const request = { prompt: "x", outputPath: out, format: ".webp", height: 64, width: 96, numFrames: 9 };
    const drawing = generateRelease(request, {
      pipelineConfig: config,
      signal: stop.signal,
      onStep: () => {
        expect(readdirSync(out)).toEqual(["video_output_0_x_171198_64x96x9_0.json"]);
        stop.abort();
      },
    });
    expect(await failure(() => drawing)).toMatchObject({ code: "aborted" });
    expect(existsSync(out)).toBe(false);
  });
});

describe.skipIf(withoutFfmpeg)("a prompt of 50,000 letters beyond ASCII", () => {
  it.each([[".mp4"], [".mov"], [".mkv"], [".webm"], [".gif"], [".webp"]])("is in the %s whole", async (type) => {
    const prompt = "й ".repeat(50_000);
    const { path } = await generateRelease(
      { prompt, outputPath: fresh(), format: type, height: 32, width: 32, numFrames: 9, frameRate: 25 },
      { pipelineConfig: config, overrides: { timesteps: [1] } },
    );
    if (type === ".gif" || type === ".webp") {
      const text = readFileSync(path).toString("latin1");
      // A GIF divides its comment into blocks, a few of them in the middle of a letter.
      expect(text.split("\\u0439").length - 1).toBeGreaterThan(type === ".gif" ? 48_000 : 49_999);
      return;
    }
    const { tags } = probe(path);
    expect(JSON.parse(tags.comment ?? tags.COMMENT).prompt).toBe(prompt);
  });
});
