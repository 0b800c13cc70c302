/** The models that bench/run.ts measures, and at which sizes. */
import { join } from "node:path";
import { type FlowRunConfig, loadConfig, type VaeRunConfig, vaeFactors } from "../lib/config/index.js";
import { parseOfficialTransformer } from "../lib/config/official/transformer.js";
import { parseOfficialVae } from "../lib/config/official/vae.js";
import { decoderConfig, encoderConfig } from "../lib/models/video-vae/coders.js";
import type { DecoderConfig } from "../lib/models/video-vae/decoder.js";
import { packageRoot } from "../lib/native.js";
import { OFFICIAL_2B } from "./official-config.js";
import type { BenchDtype, DecodeSetup, EncodeSetup, FlowSetup, SampleSetup, Setup, VaeSetup } from "./protocol.js";

export type SuiteName = "cpu" | "gpu" | "tiny";
type StepName = Setup["name"];

/** Batch sizes. `tiny` only shows that everything works. */
export const SUITES: Record<SuiteName, Partial<Record<StepName, readonly number[]>>> = {
  cpu: {
    "vae-step": [1, 4],
    "vae-encode": [1, 4],
    "vae-decode": [1, 4],
    "flow-step": [32, 128],
    "flow-step-padded": [32],
    sample: [8],
  },
  gpu: { "vae-step": [8], "flow-step": [128], "ltx-forward": [1], "vae-decode": [1] },
  tiny: {
    "vae-step": [2],
    "vae-encode": [2],
    "vae-decode": [1],
    "flow-step": [4],
    sample: [2],
    "ltx-forward": [1],
  },
};
export const STEP_NAMES: readonly StepName[] = [
  ...(["vae-step", "vae-encode", "vae-decode", "flow-step", "flow-step-padded", "sample", "ltx-forward"] as const),
];

const example = ["autoencoder.yaml", "ltx_video.yaml"].map((file) => join(packageRoot, "configs/moving_mnist", file));
const CONFIGS: Record<SuiteName, readonly string[]> = {
  cpu: example,
  gpu: example,
  tiny: [join(packageRoot, "test/support/tiny.yaml")],
};

/** Of the text tokens; the rest is padding, as short prompts have it. */
const WORDS = 5;
/** Of a clip's way from noise to data. */
const SAMPLE_STEPS = 30;

/** The transformer of LTX-Video 2B, and the decoder of the VAE that LTX-Video has since 0.9.5. */
const LTX_2B = parseOfficialTransformer(OFFICIAL_2B.transformer, "bench").options;
const OFFICIAL_DECODER = decoderConfig(parseOfficialVae(OFFICIAL_2B.vae, "bench"));

/** Blocks of a tiny decoder. */
const TINY_BLOCKS: DecoderConfig["blocks"] = [
  ["res_x", 1],
  ["compress_all", { residual: true, multiplier: 2 }],
  ["res_x", 1],
];

/** 121 x 512 x 768 pixels: 6,144 tokens. */
const LATENT = [16, 16, 24, 128];

type Unsized<S extends Setup> = Omit<S, "device" | "dtype" | "batch">;

function vaeSetup({ vae, loss, data }: VaeRunConfig): Unsized<VaeSetup> {
  const shape = [data.frames, data.height, data.width, data.num_channels];
  // Neither the adversarial nor the perceptual term takes part.
  return { name: "vae-step", config: { vae, loss: { ...loss, adversarial_weight: 0, perceptual_weight: 0 }, shape } };
}

function encodeSetup({ vae, data }: VaeRunConfig): Unsized<EncodeSetup> {
  const shape = [data.frames, data.height, data.width, data.num_channels];
  return { name: "vae-encode", config: { encoder: encoderConfig(vae), shape } };
}

function decodeSetup({ vae, data }: VaeRunConfig): Unsized<DecodeSetup> {
  const grid = vaeFactors(vae).latentShape(data.frames, data.height, data.width);
  return { name: "vae-decode", config: { decoder: decoderConfig(vae), shape: [...grid, vae.latent_channels] } };
}

function flowSetup({ transformer, text_encoder }: FlowRunConfig): Unsized<FlowSetup> {
  const { input_number_of_frames: frames, input_spatial_size: size, input_channels: channels } = transformer;
  const shape = [frames, ...(Array.isArray(size) ? size : [size, size]), channels];
  const text = [text_encoder.max_length, transformer.caption_channels ?? transformer.cross_attention_dim] as const;
  return { name: "flow-step", config: { transformer, shape, text, words: WORDS } };
}

function sampleSetup(run: FlowRunConfig): Unsized<SampleSetup> {
  const { guidance, initial_timestep } = run.sampling;
  const decoder = run.latent_encoder && decoderConfig(run.latent_encoder);
  return {
    name: "sample",
    config: { ...flowSetup(run).config, decoder, steps: SAMPLE_STEPS, initial_timestep, guidance },
  };
}

function ltxForward(tiny: boolean): Unsized<FlowSetup> {
  const transformer = tiny
    ? { ...LTX_2B, num_layers: 1, num_attention_heads: 1, cross_attention_dim: 64, caption_channels: 32 }
    : LTX_2B;
  const text = [tiny ? 8 : 256, tiny ? 32 : 4096] as const;
  const shape = tiny ? [2, 2, 3, 128] : LATENT;
  return { name: "ltx-forward", config: { transformer, shape, text, words: WORDS } };
}

function officialDecode(tiny: boolean): Unsized<DecodeSetup> {
  const decoder = tiny
    ? { ...OFFICIAL_DECODER, in_channels: 16, base_channels: 8, blocks: TINY_BLOCKS }
    : OFFICIAL_DECODER;
  return { name: "vae-decode", config: { decoder, shape: tiny ? [2, 2, 3, 16] : LATENT } };
}

export interface Choice {
  suite: SuiteName;
  device: string;
  only: readonly string[];
  dtype: readonly BenchDtype[];
  batch: readonly number[];
  /** Configuration files instead of the suite's models. */
  config: readonly string[];
}

/** The measurements of a suite: dtype by dtype, batches from small to large. */
export async function setups({ suite, device, only, dtype, batch, config }: Choice): Promise<Setup[]> {
  const models: Unsized<Setup>[] = [];
  /** On a GPU `vae-decode` is the official decoder. */
  const official = config.length === 0 && suite !== "cpu";
  for (const file of config.length ? config : CONFIGS[suite]) {
    const run = await loadConfig(file);
    if (run.kind !== "flow") {
      const vae = run.kind === "quickstart" ? run.vae : run;
      models.push(vaeSetup(vae), encodeSetup(vae));
      if (!official) models.push(decodeSetup(vae));
    }
    if (run.kind !== "vae") {
      const flow = run.kind === "quickstart" ? run.flow : run;
      models.push(flowSetup(flow), { ...flowSetup(flow), name: "flow-step-padded" }, sampleSetup(flow));
    }
  }
  if (official) models.push(ltxForward(suite === "tiny"), officialDecode(suite === "tiny"));
  const found = models.map(({ name }) => name);
  for (const name of only) {
    if (!found.some((known) => known === name))
      throw new Error(
        `${name} is no part of what was chosen: ${[...new Set(found)].join(", ")} (see --suite, --config)`,
      );
  }
  return dtype.flatMap((type) =>
    models.flatMap((model) => {
      const own = SUITES[suite][model.name];
      if (only.length ? !only.includes(model.name) : !own) return [];
      return (batch.length ? batch : (own ?? [1])).map(
        (size) => ({ ...model, device, dtype: type, batch: size }) as Setup,
      );
    }),
  );
}
