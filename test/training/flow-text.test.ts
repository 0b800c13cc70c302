import { existsSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it, vi } from "vitest";
import { type FlowRunConfig, loadConfig, parseConfig } from "../../lib/config/index.js";
import { readSafetensors } from "../../lib/formats/safetensors.js";
import { FlowTrainer, TextToVideo, Video } from "../../lib/index.js";
import type { T5TextEncoder } from "../../lib/models/text-encoder/index.js";
import { findModelFile } from "../../lib/pipelines/index.js";
import { device } from "../../lib/tensor/index.js";
import { call, collect, newestCheckpoint, root, testFolder, tinyFlowYaml, writeYaml } from "../support/tiny.js";
import { trainTinyVae } from "../support/tiny-models.js";
import { writeTinyT5 } from "../support/tiny-t5.js";

const folder = testFolder();
const t5 = join(folder, "t5");
let vae: string;

// biome-ignore lint/suspicious/noExplicitAny: a YAML file that tests change at will.
type Loose = any;

/** The tiny transformer's run, reading its prompts through a T5. */
function withT5(file: Loose): void {
  file.diffusion.context_preprocessing = [
    { target: "xdiffusion.layers.embedding.T5TextEmbedder", params: { version: "tests/tiny-t5", max_length: 6 } },
  ];
  Object.assign(file.training, { steps: 4, save_every: 2, sample_every: 100, validate_every: 100 });
  file.data.size = 12;
}

/** The same without a VAE: every pixel is a token. */
function onPixels(file: Loose): void {
  delete file.diffusion.latent_encoder;
  Object.assign(file.data, { frames: 3, height: 10, width: 10 });
  Object.assign(file.diffusion.sampling, { output_frames: 3, output_height: 10, output_width: 10 });
  const grid = { input_channels: 1, out_channels: 1, input_number_of_frames: 3, input_spatial_size: 10 };
  Object.assign(file.diffusion.score_network.params, grid);
}

const yaml = (name: string, ...changes: ((file: Loose) => void)[]) =>
  writeYaml(
    folder,
    name,
    tinyFlowYaml((file) => {
      for (const change of changes) change(file);
    }),
  );
const configOf = async (path: string) => (await loadConfig(path)) as FlowRunConfig;
const cacheOf = ({ model }: { model: TextToVideo["model"] }) => (model.text as T5TextEncoder).cache;
const live = async () => {
  await device().synchronize();
  return device().memory().live;
};

beforeAll(async () => {
  vae = await trainTinyVae(folder);
  await writeTinyT5(t5);
});

describe("a run with T5", () => {
  const run = join(folder, "run");
  let config: string;
  beforeAll(async () => {
    config = yaml("t5.yaml", withT5);
    const done = await call("train", "--config", config, "--vae", vae, "--text-encoder", t5, "--out", run);
    expect(done).toMatchObject({ code: 0, stderr: "" });
  });

  it("keeps T5's name and hash, but not its weights", async () => {
    const file = await readSafetensors(await findModelFile(run, "flow"));
    await file.close();
    expect([...file.tensors.keys()].filter((name) => /text|shared|SelfAttention/.test(name))).toEqual([]);
    expect(JSON.parse(file.metadata.config).text_encoder).toEqual({
      kind: "t5",
      version: "tests/tiny-t5",
      max_length: 6,
      path: t5,
      model_hash: expect.stringMatching(/^[0-9a-f]{64}$/),
    });
  });

  it("keeps each prompt's features in the run's folder", async () => {
    const file = await readSafetensors(join(run, "prompts.safetensors"));
    await file.close();
    expect([...file.tensors.keys()]).toContain("prompt:");
    // Every clip shows one digit, worded in one of two ways.
    expect(file.tensors.size).toBeLessThanOrEqual(21);
  });

  it("continues to the same bits, without encoding a prompt again", async () => {
    const cut = join(folder, "cut");
    const options = { config: await configOf(config), vae, textEncoder: t5 };
    const trainer = await FlowTrainer.create({ ...options, prompts: join(folder, "cut-prompts.safetensors") });
    await collect(trainer.run({ steps: 2, checkpoints: cut }));
    const { misses } = cacheOf(trainer);
    expect(misses).toBeGreaterThan(0);
    trainer.dispose();

    const resume = async () => {
      const next = await FlowTrainer.create({ ...options, prompts: join(folder, "cut-prompts.safetensors") });
      await next.resume(join(cut, "step-00000002"), 2);
      return next;
    };
    const second = await resume();
    expect(cacheOf(second)).toMatchObject({ hits: 0, misses: 0, size: misses });
    await collect(second.run({ checkpoints: cut }));
    const seen = cacheOf(second).size;
    expect(cacheOf(second).misses).toBe(seen - misses);
    second.dispose();
    const bytes = readFileSync(join(cut, "step-00000004", "training.safetensors"));
    expect(bytes.equals(readFileSync(join(run, "checkpoints", "step-00000004", "training.safetensors")))).toBe(true);

    const other = await writeTinyT5(join(folder, "another"), { seed: 3 });
    const wrong = await FlowTrainer.create({ ...options, textEncoder: other });
    await expect(wrong.resume(join(cut, "step-00000002"), 2)).rejects.toMatchObject({
      code: "checkpoint",
      message: expect.stringContaining("not the one that"),
    });
    wrong.dispose();

    // With all prompts there, the same steps need no T5 at all.
    const third = await resume();
    const weights = join(t5, "model.safetensors");
    renameSync(weights, `${weights}.moved`);
    try {
      await collect(third.run());
      expect(cacheOf(third)).toMatchObject({ misses: 0, size: seen });
    } finally {
      renameSync(`${weights}.moved`, weights);
      third.dispose();
    }
  });

  it("samples by the same T5, wherever it is, and by no other", async () => {
    const byte = yaml("byte-run.yaml", (file) => Object.assign(file.training, { steps: 3, save_every: 3 }));
    await call("train", "--config", byte, "--vae", vae, "--out", join(folder, "byte"));
    const before = await live();
    const pipeline = await TextToVideo.load(run);
    const first = await pipeline.generate({ prompts: ["three", "3"], guidance: 2, seed: 1 });
    expect(cacheOf(pipeline)).toMatchObject({ hits: 1, misses: 3 });
    await pipeline.generate({ prompts: ["three", "3"], guidance: 2, seed: 1 });
    expect(cacheOf(pipeline)).toMatchObject({ hits: 5, misses: 3 });
    pipeline.dispose();
    await new Promise(setImmediate);
    expect(await live()).toBe(before);

    const moved = join(folder, "encoders", "tiny-t5");
    await writeTinyT5(moved, { shards: 2 });
    renameSync(t5, `${t5}-gone`);
    try {
      await expect(TextToVideo.load(run)).rejects.toMatchObject({
        code: "unavailable",
        message: expect.stringMatching(/tests\/tiny-t5.*--text-encoder/s),
      });
      vi.stubEnv("LTX_TEXT_ENCODERS", join(folder, "encoders"));
      const again = await TextToVideo.load(run);
      const { clips } = await again.generate({ prompts: ["three", "3"], guidance: 2, seed: 1 });
      expect(clips).toEqual(first.clips);
      again.dispose();
      const other = await writeTinyT5(join(folder, "other"), { seed: 2 });
      await expect(TextToVideo.load(join(folder, "byte"), { textEncoder: other })).rejects.toMatchObject({
        code: "config",
        message: expect.stringContaining("leave --text-encoder out"),
      });
      await expect(TextToVideo.load(run, { textEncoder: other })).rejects.toMatchObject({
        code: "checkpoint",
        message: expect.stringContaining("not the one that the model was trained with"),
      });
      const out = join(folder, "samples");
      const done = await call("sample", "--checkpoint", run, "--text-encoder", moved, "--prompt", "two", "--out", out);
      expect(done).toMatchObject({ code: 0, stderr: "" });
    } finally {
      vi.unstubAllEnvs();
      renameSync(`${t5}-gone`, t5);
    }
  });

  it("is refused without a T5, with a useless one, and where there is none to replace, before a folder is made", async () => {
    const out = join(folder, "refused");
    const refused = async (message: string, ...argv: string[]) => {
      const { code, stderr } = await call("train", "--vae", vae, "--out", out, ...argv);
      expect(stderr).toContain(message);
      expect([code, existsSync(out)]).toEqual([expect.any(Number), false]);
      expect(code).not.toBe(0);
    };
    await refused("tests/tiny-t5 was not found", "--config", config);
    await refused("was not found", "--config", config, "--text-encoder", join(folder, "nowhere"));
    const wide = yaml("wide.yaml", withT5, (file) => {
      file.diffusion.score_network.params.caption_channels = 24;
    });
    await refused(
      "gives 16 features, the transformer's caption_channels is 24",
      "--config",
      wide,
      "--text-encoder",
      t5,
    );
    await refused("trains its own text encoder", "--config", yaml("byte.yaml"), "--text-encoder", t5);
  });
});

describe("flow on pixels", () => {
  it("trains, continues and samples without a VAE", async () => {
    const config = yaml("pixels.yaml", withT5, onPixels);
    const run = join(folder, "pixels");
    const done = await call("train", "--config", config, "--text-encoder", t5, "--out", run);
    expect(done).toMatchObject({ code: 0, stderr: "" });
    expect(existsSync(join(run, "latents.safetensors"))).toBe(false);
    const file = await readSafetensors(await findModelFile(run, "flow"));
    await file.close();
    expect([...file.tensors.keys()].filter((name) => name.startsWith("_latent_encoder."))).toEqual([]);
    const whole = newestCheckpoint(run);

    rmSync(join(run, "checkpoints", "step-00000004"), { recursive: true });
    expect(await call("train", "--resume", run)).toMatchObject({ code: 0, stderr: "" });
    expect(newestCheckpoint(run)).toEqual(whole);

    const pipeline = await TextToVideo.load(run);
    const video = await pipeline.generate({ prompts: ["1"], steps: 3 });
    expect(video).toMatchObject({ frames: 3, height: 10, width: 10, channels: 1 });
    expect(new Set(video.clips[0]).size).toBeGreaterThan(10);
    // Clips can begin with any number of given frames, which they then show.
    const given = Uint8Array.from({ length: 200 }, (_, i) => (i * 37) % 256);
    const observed = new Video([given], 2, 10, 10, 1);
    const { clips } = await pipeline.generate({ prompts: ["1"], steps: 3, observed });
    expect(Math.max(...given.map((v, i) => Math.abs(v - clips[0][i])))).toBeLessThanOrEqual(1);
    expect(clips[0].subarray(200)).not.toEqual(video.clips[0].subarray(200));
    pipeline.dispose();
  });

  it("needs no VAE, and takes none", async () => {
    const config = yaml("pixels.yaml", withT5, onPixels);
    const out = join(folder, "pixels-vae");
    const { code, stderr } = await call("train", "--config", config, "--text-encoder", t5, "--vae", vae, "--out", out);
    expect(stderr).toContain("trains on pixels");
    expect([code, existsSync(out)]).toEqual([2, false]);
  });
});

describe("joint image-video training", () => {
  const losses = async (...changes: ((file: Loose) => void)[]) => {
    const config = await configOf(yaml("joint.yaml", ...changes));
    const trainer = await FlowTrainer.create({ config, vae: config.latent_encoder ? vae : undefined });
    const events = await collect(trainer.run({ steps: 4 }));
    trainer.dispose();
    return events.flatMap((event) => (event.type === "step" ? [event.loss] : []));
  };
  const every = (k: number) => (file: Loose) => {
    Object.assign(file.training, { joint_image_video_training_step: k, ema_decay: 0, validate_every: 100 });
    file.data.size = 12;
  };

  it("shows images at every k-th step, the same ones each time", async () => {
    const videos = await losses(every(-1));
    const some = await losses(every(2));
    expect(await losses(every(0))).toEqual(videos);
    expect(await losses(every(2))).toEqual(some);
    expect(some[0]).not.toBe(videos[0]);
    const all = await losses(every(1));
    expect(all[0]).toBe(some[0]);
    expect(all[1]).not.toBe(some[1]);
    // Steps that show videos see what they see without images, but for what the images taught before.
    const late = await losses(every(3));
    expect(late[0]).toBe(some[0]);
    expect(late[3]).not.toBe(some[3]);
  });

  it("works on pixels", async () => {
    const bytes = (file: Loose) => {
      onPixels(file);
      every(2)(file);
    };
    const [a, b] = [await losses(bytes), await losses(bytes)];
    expect(a).toEqual(b);
    expect(a.every(Number.isFinite)).toBe(true);
  });

  it("is named on the command line as here and as in the reference", async () => {
    const file = yaml("joint.yaml", every(-1), (f) => Object.assign(f.training, { steps: 3 }));
    for (const [i, flag] of ["--joint-image-video-training-step", "--joint_image_video_training_step"].entries()) {
      const out = join(folder, `joint-${i}`);
      const done = await call("train", "--config", file, "--vae", vae, "--out", out, flag, "2");
      expect(done).toMatchObject({ code: 0, stderr: "" });
      const { config } = JSON.parse(readFileSync(join(out, "run.json"), "utf8"));
      expect(config.training.joint_image_video_training_step).toBe(2);
    }
  });
});

it("the example's file for pixels describes a model of a token a pixel", async () => {
  const path = join(root, "configs", "moving_mnist", "ltx_video_pixel_space.yaml");
  const config = parseConfig(readFileSync(path, "utf8"), path) as FlowRunConfig;
  expect(config).toMatchObject({ latent_encoder: null, text_encoder: { kind: "t5", version: "google/t5-v1_1-base" } });
});
