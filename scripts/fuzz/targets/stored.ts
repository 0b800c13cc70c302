/** What this package writes for itself, which comes back from anywhere: runs, checkpoints, caches. */
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseConfig, parseStoredConfig, type QuickstartConfig } from "../../../lib/config/index.js";
import { openData } from "../../../lib/data/index.js";
import { VideoVae } from "../../../lib/models/index.js";
import { PromptCache } from "../../../lib/models/text-encoder/prompt-cache.js";
import * as ops from "../../../lib/ops/index.js";
import { openCheckpoint } from "../../../lib/pipelines/open-checkpoint.js";
import { device } from "../../../lib/tensor/index.js";
import { train } from "../../../lib/training/index.js";
import { LatentCache, loadLatentCache, saveLatentCache } from "../../../lib/training/latent-cache.js";
import { RunDirectory } from "../../../lib/training/run-directory.js";
import { jsonText, mutateBytes, mutateJson } from "../mutate.js";
import { must, type Target } from "../target.js";
import { mutateHeader, splitFile } from "./safetensors.js";
import { checkNumbers } from "./weights.js";

/** The smallest run there is, of the tests. */
const TINY = join(__dirname, "..", "..", "..", "test", "support", "tiny.yaml");
const tiny = () => parseConfig(readFileSync(TINY, "utf8"), TINY) as QuickstartConfig;

const WORDS = [
  "vae",
  "flow",
  "quickstart",
  "VAE",
  "adam",
  "cosine",
  "native",
  "reference",
  "moving-mnist",
  "npz",
  "res_x",
  "compress_all",
  "byte",
  "t5",
  "euler",
];

export const storedConfig: Target = {
  name: "stored-config",
  about: "configurations in checkpoints",
  weight: 8,
  async setup() {
    const { vae, flow } = tiny();
    const seeds = [vae, flow];
    return async (random) => {
      const text = jsonText(random, mutateJson(random, random.pick(seeds), WORDS));
      checkNumbers(parseStoredConfig(text, "model.safetensors"), "config");
    };
  },
};

/** A run that has trained a few steps; its files are changed and it is continued. */
export const runs: Target = {
  name: "run",
  about: "run.json, manifests, checkpoints and logs of a run that is continued",
  weight: 0.5,
  async setup(folder) {
    const seed = join(folder, "seed");
    const config = tiny().vae;
    Object.assign(config.training, { steps: 3, save_every: 3, validate_every: 100, sample_every: 100 });
    for await (const _ of train({ out: seed, config, device: "cpu" }));
    device("cpu").setMemoryLimit(2 ** 28);
    const steps = join(seed, "checkpoints");
    const newest = readdirSync(steps).sort().at(-1) as string;
    const run = join(folder, "case");
    const files = [
      "run.json",
      "events.jsonl",
      ...["manifest.json", "model.safetensors", "training.safetensors"].map((name) =>
        join("checkpoints", newest, name),
      ),
    ];
    const kept = new Map(files.map((name) => [name, readFileSync(join(seed, name))]));
    cpSync(seed, run, { recursive: true });
    return async (random) => {
      for (const [name, bytes] of kept) writeFileSync(join(run, name), bytes);
      const name = random.pick(files);
      const bytes = kept.get(name) as Buffer;
      const path = join(run, name);
      if (name.endsWith(".json")) {
        const value = JSON.parse(bytes.toString());
        if (name === "run.json" && value.config.training && random.chance(0.5)) value.config.training.steps = 4;
        writeFileSync(path, jsonText(random, mutateJson(random, value, WORDS)));
      } else if (name.endsWith(".jsonl")) writeFileSync(path, mutateBytes(random, bytes));
      else writeFileSync(path, random.chance(0.5) ? mutateHeader(random, bytes) : mutateBytes(random, bytes));
      const [act, stop] = [random.below(4), new AbortController()];
      if (act === 0) {
        const opened = await RunDirectory.open(run);
        try {
          checkNumbers(opened.manifest, "run.json");
          for (const [step] of await opened.losses()) must(Number.isSafeInteger(step), () => `step ${step}`);
          await opened.latest();
        } finally {
          await opened.close();
        }
      } else if (act === 1) {
        const { config: read, tensors } = await openCheckpoint(run, "vae");
        checkNumbers(read, "config");
        for (const [key, { shape, data }] of tensors)
          must(data.length === shape.reduce((n, d) => n * d, 1), () => `${key} has ${data.length} values`);
      } else {
        // Continued for a step at most, whatever was asked of it.
        let done = 0;
        for await (const event of train({ out: run, signal: stop.signal, device: "cpu" })) {
          if (event.type === "step" && ++done === 2) break;
        }
      }
      for (const extra of readdirSync(join(run, "checkpoints"))) {
        if (!existsSync(join(steps, extra))) rmSync(join(run, "checkpoints", extra), { recursive: true });
      }
    };
  },
};

/** The caches that are read again without a word. */
export const caches: Target = {
  name: "caches",
  about: "caches of prompts and latents",
  weight: 3,
  async setup(folder) {
    const path = join(folder, "prompts.safetensors");
    const cache = await PromptCache.open("print", 4, { file: path });
    await cache.add("zero", Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8));
    await cache.add("", Float32Array.of(1, 2, 3, 4));
    await cache.flush();
    const prompts = readFileSync(path);
    const vae = new VideoVae(tiny().vae.vae, { device: device("cpu") });
    const data = await openData(tiny().vae.data);
    const clips = [0, 3];
    const latents = join(folder, "latents.safetensors");
    const shape = [2, 3, 2, 2, 16];
    const kept = new LatentCache(ops.full(shape, 0.5, { device: device("cpu") }), clips);
    await saveLatentCache(latents, kept, "print");
    const moments = readFileSync(latents);
    return async (random) => {
      const which = random.chance(0.5);
      const bytes = which ? prompts : moments;
      const changed = random.chance(0.6) ? mutateHeader(random, bytes) : mutateBytes(random, bytes);
      writeFileSync(which ? path : latents, changed);
      if (which) {
        const opened = await PromptCache.open("print", 4, { file: path });
        for (const prompt of ["zero", ""]) {
          const rows = opened.get(prompt);
          must(!rows || (rows.length > 0 && rows.length % 4 === 0), () => `${rows?.length} values of rows of 4`);
          must(!rows || rows.every(Number.isFinite), () => "a cached value that is no number");
        }
        return;
      }
      const opened = await loadLatentCache(latents, "print", vae, data, clips);
      if (!opened) return;
      try {
        const found = opened.moments.shape;
        must(found.join() === shape.join(), () => `latents of shape [${found}], the model makes [${shape}]`);
        const name = splitFile(changed).header.moments as { dtype: string };
        must(name.dtype === "F32", () => `latents of ${name.dtype}`);
      } finally {
        opened.dispose();
      }
    };
  },
};
