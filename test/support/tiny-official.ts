/** The smallest official release there is: the fixtures' random checkpoint and upscaler, and a T5 of their width. */
import { join } from "node:path";
import { writeTinyT5 } from "./tiny-t5.js";

const models = join(__dirname, "..", "golden", "fixtures", "checkpoints", "tiny-0.9.5");

/** Latents of 8 channels, 32 pixels and 8 frames a position; distilled for a few times only. */
export const tinyCheckpoint = join(models, "ltxv-tiny-0.9.5-bfloat16.safetensors");
export const tinyUpscaler = join(models, "ltxv-spatial-upscaler-tiny-0.9.5.safetensors");

/** Times that the checkpoint allows. */
export const TINY_TIMES = [1, 0.725, 0.4219];

/** The text encoder's folder. */
export const tinyTextEncoder = (folder: string): Promise<string> => writeTinyT5(join(folder, "t5"), { width: 24 });

/** A release's file as a plain object. */
export const tinyRelease = (textEncoder: string) => ({
  pipeline_type: "base",
  checkpoint_path: tinyCheckpoint,
  text_encoder_model_name_or_path: textEncoder,
  precision: "float32",
  timesteps: TINY_TIMES,
  guidance_scale: 2,
  stg_scale: 1,
  rescaling_scale: 0.7,
  skip_block_list: [1],
});

/** The same in two passes. */
export const tinyMultiScale = (textEncoder: string) => ({
  ...tinyRelease(textEncoder),
  pipeline_type: "multi-scale",
  spatial_upscaler_model_path: tinyUpscaler,
  downscale_factor: 0.5,
  timesteps: undefined,
  first_pass: { timesteps: TINY_TIMES },
  second_pass: { timesteps: TINY_TIMES.slice(1), tone_map_compression_ratio: 0.6 },
});
