/** `generate` and `plan`: videos of official releases by the official command's flags. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { beforeAll, describe, expect, it } from "vitest";
import { stringify } from "yaml";
import { readMedia } from "../../lib/formats/media/index.js";
import { device, Video } from "../../lib/index.js";
import { probe, withEnv, withoutFfmpeg } from "../support/ffmpeg.js";
import { call, eventsOf, type Outcome, testFolder, writeYaml } from "../support/tiny.js";
import { tinyCheckpoint, tinyMultiScale, tinyRelease, tinyTextEncoder } from "../support/tiny-official.js";

const folder = testFolder();
let base: string;
let multiScale: string;
let image: string;
let clip: string;
beforeAll(async () => {
  const textEncoder = await tinyTextEncoder(folder);
  base = writeYaml(folder, "base.yaml", stringify(tinyRelease(textEncoder)));
  multiScale = writeYaml(folder, "multi.yaml", stringify(tinyMultiScale(textEncoder)));
  const pixels = Uint8Array.from({ length: 20 * 40 * 50 * 3 }, (_, i) => (i * 31) % 251);
  image = join(folder, "image.png");
  await new Video([pixels.slice(0, 40 * 50 * 3)], 1, 40, 50, 3).save(image);
  clip = join(folder, "clip.webp");
  await new Video([pixels], 20, 40, 50, 3).save(clip, { quality: 100 });
});

let count = 0;
const fresh = () => join(folder, `out-${count++}`);
const size = ["--height", "64", "--width", "96", "--num-frames", "9", "--format", "webp"];
const run = (config: string, ...argv: string[]): Promise<Outcome> =>
  call("generate", "--prompt", "three and 4", "--pipeline-config", config, ...size, ...argv);

/** Runs to the end, in a folder of its own; gives the file and its settings. */
async function ok(config: string, ...argv: string[]) {
  const out = fresh();
  const done = await run(config, "--output_path", out, ...argv);
  expect(done).toMatchObject({ code: 0, stderr: "" });
  const path = done.stdout.trim();
  return {
    out,
    path,
    bytes: readFileSync(path),
    settings: JSON.parse(readFileSync(path.replace(/\.\w+$/, ".json"), "utf8")),
  };
}

async function fails(code: number, outcome: Promise<Outcome>, ...fragments: string[]): Promise<void> {
  const { stderr, stdout, ...rest } = await outcome;
  for (const fragment of fragments) expect(stderr).toContain(fragment);
  expect(rest.code).toBe(code);
  expect(stdout).toBe("");
  expect(stderr).not.toMatch(/^\s+at /m);
}

const live = async () => {
  await device().synchronize();
  return device().memory().live;
};

describe("generate", () => {
  it("writes a video under the official name, its settings beside it and inside, and frees everything", async () => {
    const before = await live();
    const { out, path, bytes, settings } = await ok(
      base,
      "--seed",
      "7",
      "--frame_rate",
      "12.5",
      "--negative-prompt",
      "4",
    );
    expect(readdirSync(out).sort()).toEqual([
      "video_output_0_three-and_7_64x96x9_0.json",
      "video_output_0_three-and_7_64x96x9_0.webp",
    ]);
    const { pages, width, pageHeight, delay } = await sharp(path, { pages: -1 }).metadata();
    expect([pages, width, pageHeight, delay?.[0]]).toEqual([9, 96, 64, 80]);
    expect(settings).toMatchObject({
      prompt: "three and 4",
      negative_prompt: "4",
      seed: 7,
      height: 64,
      width: 96,
      num_frames: 9,
      frame_rate: 12.5,
      image_cond_noise_scale: 0.15,
      pipeline_config: { checkpoint_path: tinyCheckpoint, guidance_scale: 2 },
      offload_to_cpu: false,
    });
    const inside = bytes.toString("latin1");
    expect(inside).toContain('"prompt":"three and 4"');
    expect(inside).not.toContain('"files"');
    expect(await live()).toBe(before);
  });

  it("draws the same again, under the next free name, also when models take turns", async () => {
    const { out, bytes, path } = await ok(base);
    const again = await run(base, "--output-path", out);
    expect(again.stdout.trim()).toBe(path.replace("_0.webp", "_1.webp"));
    expect((await readMedia(again.stdout.trim())).data).toEqual((await readMedia(path)).data);
    const turns = await ok(base, "--offload_to_cpu");
    expect((await readMedia(turns.path)).data).toEqual((await readMedia(path)).data);
    expect(turns.settings.offload_to_cpu).toBe(true);
    expect((await ok(base, "--offload-to-cpu", "false")).settings.offload_to_cpu).toBe(false);
    expect((await ok(base, "--seed", "1")).bytes).not.toEqual(bytes);
  });

  it("draws sizes that the model has not larger, and cuts them", async () => {
    const { path } = await ok(base, "--height", "50", "--width", "70", "--num-frames", "6");
    expect(await readMedia(path)).toMatchObject({ frames: 6, height: 50, width: 70 });
    const still = await ok(base, "--num-frames", "1");
    expect(still.path).toMatch(/image_output_0_.*\.png$/);
    expect(await readMedia(still.path)).toMatchObject({ frames: 1, height: 64, width: 96 });
  });

  it("takes the file's keys as flags", async () => {
    const plain = await ok(base);
    const { settings, bytes } = await ok(base, "--guidance_scale", "1", "--stg-scale=0", "--timesteps", "[1, 0.4219]");
    expect(settings.pipeline_config).toMatchObject({ guidance_scale: 1, stg_scale: 0, timesteps: [1, 0.4219] });
    expect(bytes).not.toEqual(plain.bytes);
  });

  it("draws in two passes", async () => {
    const { path, settings } = await ok(multiScale, "--height", "70", "--width", "128");
    expect(await readMedia(path)).toMatchObject({ frames: 9, height: 70, width: 128 });
    expect(settings.files.spatialUpscaler).toContain("upscaler");
    const done = await run(multiScale, "--output-path", fresh(), "--json");
    const steps = (eventsOf(done.stdout) as { type: string; pass?: number; step?: number }[]).filter(
      ({ type }) => type === "sample-step",
    );
    expect(steps.map(({ pass, step }) => [pass, step])).toEqual(
      [1, 2, 3].map((i) => [1, i]).concat([1, 2].map((i) => [2, i])),
    );
  });

  it("is held to given images and videos, and starts from a video", async () => {
    await withEnv({ LTX_FFMPEG: join(folder, "none") }, async () => {
      const out = fresh();
      const conditioned = await run(
        base,
        ...["--output_path", out, "--num_frames", "25", "--conditioning_media_paths", clip, image],
        ...["--conditioning_start_frames", "0", "24", "--conditioning_strengths", "1", "0.8"],
      );
      expect(conditioned.code).toBe(0);
      expect(conditioned.stderr).toContain("without an ffmpeg that has libx264");
      expect(conditioned.stderr).toContain(`of ${clip} the first 17 frames are used`);
      const [json] = readdirSync(out).filter((name) => name.endsWith(".json"));
      expect(JSON.parse(readFileSync(join(out, json), "utf8"))).toMatchObject({
        conditioning_media_paths: [clip, image],
        conditioning_start_frames: [0, 24],
        conditioning_strengths: [1, 0.8],
      });
      const again = await run(
        base,
        "--input-media-path",
        clip,
        "--skip_initial_inference_steps",
        "1",
        "--output_path",
        fresh(),
      );
      expect(again.code).toBe(0);
    });
  });

  it("takes of a conditioning video what fits into the frames that were asked for, and says so", async () => {
    await withEnv({ LTX_FFMPEG: join(folder, "none") }, async () => {
      const argv = ["--conditioning_media_paths", clip, "--conditioning_start_frames", "0"];
      for (const [frames, used] of [
        ["20", "the first 17 frames are used: as many of 8k+1 as fit into 20"],
        ["17", "the first 17 frames are used"],
        ["24", "the first 17 frames are used"],
        ["16", "the first 9 frames are used"],
        ["8", "the first frame is used"],
      ]) {
        const done = await run(base, "--output_path", fresh(), ...argv, "--num_frames", frames);
        expect(done.code).toBe(0);
        expect(done.stderr).toContain(`of ${clip} ${used}`);
      }
    });
  });

  it("tells what of a long prompt is not read", async () => {
    const argv = ["--prompt", "three ".repeat(300), "--output_path", fresh(), "--json"];
    const done = await call("generate", "--pipeline-config", base, ...size, ...argv);
    const notices = (eventsOf(done.stdout) as { type: string; message?: string }[]).filter((e) => e.type === "notice");
    expect(notices.map(({ message }) => message)).toEqual([expect.stringContaining("the model reads 256 tokens")]);
  });

  it.skipIf(withoutFfmpeg)("writes an MP4 that says what it is", async () => {
    const { path } = await ok(base, "--format", "mp4", "--frame-rate", "24", "--height", "60");
    const { stream, tags } = probe(path);
    expect(stream).toMatchObject({
      codec_name: "h264",
      width: 96,
      height: 60,
      avg_frame_rate: "24/1",
      nb_read_frames: "9",
    });
    expect(JSON.parse(tags.comment)).toMatchObject({ prompt: "three and 4", seed: 171198 });
  });
});

describe("generate refuses", () => {
  it("arguments that make no sense, before it loads anything", async () => {
    await fails(2, call("generate", "--pipeline-config", base), "--prompt");
    await fails(2, run(base, "--height", "0"), "--height", "at least 1");
    await fails(2, run(base, "--frame-rate", "0"), "frame_rate must be above 0");
    await fails(
      2,
      run(base, "--frame-rate", "60", "--format", "gif"),
      "frame_rate must be at most 50 for .gif, got 60",
    );
    await fails(
      1,
      run(base, "--output-path", join(image, "x")),
      "output_path",
      "cannot be written to: a file is in its place",
    );
    await fails(2, run(base, "--format", "avi"), "format must be one of", ".mp4");
    await fails(2, run(base, "--conditioning-media-paths", image), "conditioning_start_frames");
    const at = (...frames: string[]) => ["--conditioning-media-paths", image, "--conditioning-start-frames", ...frames];
    await fails(2, run(base, ...at("9")), "must lie in the video, 0 to 8, got 9");
    await fails(2, run(base, ...at("0", "1")), "one of conditioning_start_frames for each of the 1", "got 2");
    await fails(2, run(base, ...at("0"), "--conditioning-strengths", "1.5"), "from 0", "got 1.5");
    await fails(2, run(base, "--conditioning-start-frames", "0"), "needs conditioning_media_paths");
    await fails(2, run(base, "--input-media-path", clip), "skip_initial_inference_steps");
    await fails(2, run(base, "--lora", "a.safetensors:x:1.2.3"), "--lora", "a.safetensors:0.8");
    const late = ["--conditioning-media-paths", clip, "--conditioning-start-frames", "5", "--num-frames", "25"];
    await withEnv({ LTX_FFMPEG: join(folder, "none") }, async () => {
      await fails(2, run(base, ...late), "multiple of 8", "nearest 0 or 8");
      await fails(1, run(base, "--format", "mp4"), "needs ffmpeg", "apt-get install ffmpeg", "--format gif or webp");
      const short = ["--input-media-path", clip, "--skip-initial-inference-steps", "1", "--num-frames", "33"];
      await fails(2, run(base, ...short), "has 20 frames", "--num-frames 17");
    });
  });

  it("configurations and files that are not there", async () => {
    await fails(2, run("ltxv-2b-0.9.8-destilled"), "did you mean ltxv-2b-0.9.8-distilled");
    await fails(2, run(base, "--precision", "bf16"), "precision", "bfloat16");
    await fails(2, run(base, "--num_inference_steps", "many"), "num_inference_steps", '"many"');
    const env = { HF_HOME: join(folder, "no-hub"), LTX_MODELS: join(folder, "no-models"), LTX_TEXT_ENCODERS: "" };
    await withEnv(env, async () => {
      await fails(
        1,
        run("configs/ltxv-2b-0.9.8-distilled.yaml"),
        "ltxv-2b-0.9.8-distilled.safetensors",
        "hf download",
        "LTX_MODELS",
      );
      await fails(1, run(base, "--text_encoder_model_name_or_path", "google/none"), "google/none", "was not found");
    });
    await fails(
      1,
      run(base, "--conditioning-media-paths", join(folder, "no.png"), "--conditioning-start-frames", "0"),
      "no.png",
    );
    expect(existsSync(join(folder, "outputs"))).toBe(false);
  });
});

describe("plan", () => {
  const plan = (...argv: string[]) => call("plan", "--pipeline-config", base, ...size.slice(0, 6), ...argv);

  it("tells what a video takes, by group", async () => {
    const { code, stdout, stderr } = await plan();
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    for (const part of [
      "text encoder",
      "transformer",
      "VAE",
      "denoising",
      "decoding",
      "for 12 tokens",
      "with --offload",
    ]) {
      expect(stdout).toContain(part);
    }
    const json = async (...argv: string[]) => JSON.parse((await plan("--json", ...argv)).stdout);
    const whole = await json();
    expect(whole.peak).toBeGreaterThan(whole.peakOffloaded);
    expect(await json("--offload")).toMatchObject({ offload: true, peak: whole.peakOffloaded });
    const large = await json("--num-frames", "121");
    expect(large.tokens).toBe(16 * 6);
    expect(large.weights).toEqual(whole.weights);
    const denoising = (p: { stages: { name: string; activations: number }[] }) =>
      p.stages.find(({ name }) => name === "denoising")?.activations ?? 0;
    expect(denoising(large) / denoising(whole)).toBeCloseTo(8, 0);
    const half = await json("--precision", "bfloat16");
    expect(half.weights.transformer / whole.weights.transformer).toBeGreaterThan(0.45);
    expect(half.weights.transformer / whole.weights.transformer).toBeLessThan(0.7);
  });

  it("refuses what can't fit, naming the setting that would change it; generate asks it first", async () => {
    const enough = JSON.parse((await plan("--json")).stdout);
    const cpu = device();
    const limits = [enough.peak - 1, enough.peakOffloaded - 1, enough.weights.VAE];
    const before = cpu.memory().limit;
    try {
      for (const [limit, ...fragments] of [
        [limits[0], "--offload"],
        [limits[1], "--num-frames"],
        [1000, "alone takes"],
      ] as [number, ...string[]][]) {
        cpu.setMemoryLimit(cpu.memory().live + limit);
        const refused = await plan();
        expect(refused.code).toBe(1);
        for (const fragment of fragments) expect(refused.stderr).toContain(fragment);
        await fails(1, run(base, "--output-path", fresh()), ...fragments);
      }
    } finally {
      cpu.setMemoryLimit(before);
    }
  });
});
