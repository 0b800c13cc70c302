/** Where the files of a release are looked for, and what is said of those that are not there. */
import { copyFileSync, cpSync, mkdirSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import type { PipelineConfig } from "../../../lib/config/index.js";
import { findReleaseConfig, findReleaseFiles } from "../../../lib/pipelines/release/files.js";
import { failure } from "../../support/failure.js";
import { testFolder } from "../../support/folder.js";
import { tinyCheckpoint, tinyRelease, tinyTextEncoder } from "../../support/tiny-official.js";

const folder = testFolder();
const at = (...parts: string[]) => join(folder, ...parts);
const usual = "PixArt-alpha/PixArt-XL-2-1024-MS";
const nowhere = { HF_HOME: at("no-hub") };
let t5: string;
beforeAll(async () => {
  t5 = await tinyTextEncoder(folder);
});
const config = (more: object): PipelineConfig => ({ ...tinyRelease(t5), ...more }) as never;
const find = (more: object, env: NodeJS.ProcessEnv = nowhere) => findReleaseFiles(config(more), at("x.yaml"), env);

describe("findReleaseConfig", () => {
  it("takes a file, and passes over a folder of a release's name", async () => {
    writeFileSync(at("own.yaml"), "");
    expect(await findReleaseConfig(at("own.yaml"))).toBe(at("own.yaml"));
    mkdirSync(at("ltxv-2b-0.9.8-distilled"));
    expect(basename(await findReleaseConfig(at("ltxv-2b-0.9.8-distilled")))).toBe("ltxv-2b-0.9.8-distilled.yaml");
  });

  it("says that a folder is no YAML file", async () => {
    mkdirSync(at("mine"));
    const { code, message } = await failure(() => findReleaseConfig(at("mine")));
    expect(code).toBe("config");
    expect(message).toContain(`${at("mine")} is a folder, not a YAML file`);
    expect((await failure(() => findReleaseConfig(at("gone.yaml")))).message).toContain("is not a file");
  });
});

describe("findReleaseFiles", () => {
  it("passes over empty folders of a model's name, and takes the file that lies further on", async () => {
    const models = at("models");
    mkdirSync(join(models, "PixArt-XL-2-1024-MS", "text_encoder"), { recursive: true });
    copyFileSync(tinyCheckpoint, join(models, "one.safetensors"));
    writeFileSync(join(models, "PixArt-XL-2-1024-MS", "text_encoder", "config.json"), "{}");
    mkdirSync(at("one.safetensors"));
    mkdirSync(at(usual), { recursive: true });
    const found = await find(
      { checkpoint_path: "one.safetensors", text_encoder_model_name_or_path: usual },
      { ...nowhere, LTX_MODELS: models },
    );
    expect(found).toEqual({
      checkpoint: join(models, "one.safetensors"),
      textEncoder: join(models, "PixArt-XL-2-1024-MS"),
    });
  });

  it("takes a diffusers folder's own text encoder where no other is named", async () => {
    const whole = at("diffusers");
    mkdirSync(join(whole, "transformer"), { recursive: true });
    cpSync(t5, join(whole, "text_encoder"), { recursive: true });
    const own = { checkpoint_path: whole, text_encoder_model_name_or_path: usual };
    expect(await find(own)).toEqual({ checkpoint: whole, textEncoder: whole });
    expect((await find({ ...own, text_encoder_model_name_or_path: t5 })).textEncoder).toBe(t5);
  });

  it("finds a VAE of its own", async () => {
    expect(await find({ vae_path: tinyCheckpoint })).toMatchObject({ checkpoint: tinyCheckpoint, vae: tinyCheckpoint });
  });

  it("tells all that is missing at once, each with its places and its flag", async () => {
    const { code, message } = await failure(() =>
      find({
        checkpoint_path: "none.safetensors",
        vae_path: "none-vae.safetensors",
        spatial_upscaler_model_path: "none-upscaler.safetensors",
        text_encoder_model_name_or_path: "none/t5",
      }),
    );
    expect(code).toBe("unavailable");
    for (const part of [
      `checkpoint_path none.safetensors was not found (looked for none.safetensors, ${at("none.safetensors")})`,
      'by "hf download Lightricks/LTX-Video none.safetensors", or name the file by --checkpoint-path',
      "vae_path none-vae.safetensors was not found",
      "--vae-path",
      "spatial_upscaler_model_path none-upscaler.safetensors was not found",
      "--spatial-upscaler-model-path",
      `the text encoder none/t5 was not found (looked for none/t5, ${at("none/t5")}, ${at("no-hub")}`,
      "name the folder by --text-encoder-model-name-or-path that has config.json",
      "Nothing is downloaded",
    ]) {
      expect(message).toContain(part);
    }
    expect(message).not.toContain("params.path");
    expect(message).not.toContain("--text-encoder ");
  });

  it("says what is in the place of a text encoder", async () => {
    writeFileSync(at("t5xxl.safetensors"), "");
    const file = await failure(() => find({ text_encoder_model_name_or_path: at("t5xxl.safetensors") }));
    expect(file.message).toContain("expected a folder: a single file lacks the configuration and the tokenizer");
    mkdirSync(at("empty"));
    const empty = await failure(() => find({ text_encoder_model_name_or_path: at("empty") }));
    expect(empty.message).toContain(`${at("empty")} has no config.json of a T5`);
  });

  it("names a folder that is in the way and holds no model", async () => {
    mkdirSync(at("hollow"));
    const { message } = await failure(() => find({ checkpoint_path: at("hollow") }));
    expect(message).toContain(`; ${at("hollow")} holds no model)`);
  });
});
