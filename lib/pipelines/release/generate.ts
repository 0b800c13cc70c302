/** A video file from a prompt, by an official release: what the official command does. */
import { join } from "node:path";
import { loadPipelineConfig } from "../../config/deferred.js";
import type { PassConfig, PipelineConfig } from "../../config/index.js";
import { commentJson } from "../../formats/comment.js";
import { promptWords } from "../../formats/media/sizes.js";
import { checkOutputFolder, reserveName } from "../../formats/output-folder.js";
import { device as openDevice } from "../../tensor/index.js";
import { version } from "../../version.js";
import { saveOrKeep } from "../keep.js";
import type { DenoisingStep } from "../official/denoise.js";
import { LtxMultiScalePipeline, type MultiScaleOptions } from "../official/multi-scale.js";
import { LtxVideoPipeline } from "../official/pipeline.js";
import type { PassOptions } from "../official/request.js";
import type { Video } from "../video.js";
import { findReleaseConfig, findReleaseFiles, type ReleaseFiles } from "./files.js";
import { checkFits, planRelease } from "./plan.js";
import { type CheckedRequest, checkEncoder, checkRequest, type ReleaseRequest, readRequestMedia } from "./request.js";

export interface ReleaseOptions {
  /** The YAML file of a release, or the name of one that is shipped. */
  pipelineConfig: string;
  /** Keys that replace the file's. */
  overrides?: Record<string, unknown>;
  device?: string;
  /** Text encoder, transformer and VAE take turns on the device. */
  offload?: boolean;
  loras?: readonly { path: string; weight: number }[];
  signal?: AbortSignal;
  /** Hears of each step. */
  onStep?: (step: DenoisingStep) => void;
  /** Hears what the user should know. */
  onNotice?: (message: string) => void;
}

/** A finished file, and the settings that lie beside it as JSON. */
export interface Generated {
  path: string;
  settings: Record<string, unknown>;
}

/**
 * Draws a video and writes it: MP4, or what `format` says; a PNG if it is a single frame. Beside it stands a JSON file
 * with everything that it was made from, which is also kept inside the file.
 * @throws LtxError before anything is loaded when an argument makes no sense or a file is missing
 */
export async function generateRelease(request: ReleaseRequest, options: ReleaseOptions): Promise<Generated> {
  const { signal, onNotice = () => {} } = options;
  const file = await findReleaseConfig(options.pipelineConfig);
  const config = await loadPipelineConfig(file, options.overrides);
  const checked = checkRequest(request, config);
  const files = await findReleaseFiles(config, file);
  checkFits(await planRelease(config, files, checked.padded, { ...options, device: openDevice(options.device) }));
  for (const notice of await checkEncoder(checked, signal)) onNotice(notice);
  const media = await readRequestMedia(checked, signal);
  for (const notice of [...media.notices, ...enhancerNotice(checked, config)]) onNotice(notice);
  const folder = await resultFolder(checked);

  const { padded, height, width, numFrames, seed, frameRate } = checked;
  const call: Call = {
    ...callOptions(config),
    prompt: checked.prompt,
    negativePrompt: checked.negativePrompt,
    height: padded.height,
    width: padded.width,
    numFrames: padded.frames,
    frameRate,
    seed,
    imageCondNoiseScale: config.image_cond_noise_scale ?? checked.imageCondNoiseScale,
    mediaItems: media.source,
    conditioningItems: media.conditioning.map(({ clip, startFrame, strength }) => ({
      mediaItem: clip,
      mediaFrameNumber: startFrame,
      conditioningStrength: strength,
    })),
    signal,
    onStep: options.onStep,
    onNotice,
  };
  const settings = settingsOf(checked, config, files, options);
  // Its settings hold the name while the video is drawn.
  const name = await reserveName(
    folder,
    officialName(checked),
    [".json", extensionOf(checked)],
    `${JSON.stringify(settings, null, 2)}\n`,
  );
  try {
    const video = await draw(call, config, files, options);
    const { left, top } = padded.padding;
    const result = video.crop({ left, top, height, width }).first(numFrames);
    // Where files lie on this machine is nobody else's business.
    const comment = commentJson({ ...settings, files: undefined });
    const path = name.path(extensionOf(checked));
    await saveOrKeep(result, path, { labels: false, comment, signal });
    return { path, settings };
  } catch (error) {
    await name.release();
    throw error;
  }
}

type Call = Omit<MultiScaleOptions, "outputType">;

async function draw(call: Call, config: PipelineConfig, files: ReleaseFiles, options: ReleaseOptions): Promise<Video> {
  const { device, offload, loras, signal, onNotice } = options;
  const { spatialUpscaler, ...models } = files;
  const { precision, sampler, text_encoder_max_tokens: textEncoderMaxTokens } = config;
  const load = { ...models, precision, sampler, device, offload, loras, textEncoderMaxTokens, signal, onNotice };
  const pipeline = spatialUpscaler
    ? await LtxMultiScalePipeline.load({ ...load, spatialUpscaler })
    : await LtxVideoPipeline.load(load);
  try {
    return await pipeline.generate(call);
  } finally {
    pipeline.dispose();
  }
}

/** A file's keys as the pipelines' arguments: those of all passes, and of each. */
function callOptions(config: PipelineConfig): Call {
  const { first_pass, second_pass, downscale_factor: downscaleFactor } = config;
  if (!first_pass || !second_pass) return passOptions(config);
  return {
    ...passOptions(config),
    downscaleFactor,
    firstPass: passOptions(first_pass),
    secondPass: passOptions(second_pass),
  };
}

function passOptions(pass: PassConfig): PassOptions {
  const options: PassOptions = {
    numInferenceSteps: pass.num_inference_steps,
    timesteps: pass.timesteps,
    skipInitialInferenceSteps: pass.skip_initial_inference_steps,
    skipFinalInferenceSteps: pass.skip_final_inference_steps,
    guidanceScale: pass.guidance_scale,
    stgScale: pass.stg_scale,
    rescalingScale: pass.rescaling_scale,
    guidanceTimesteps: pass.guidance_timesteps,
    skipBlockList: pass.skip_block_list,
    stgMode: pass.stg_mode,
    cfgStarRescale: pass.cfg_star_rescale,
    imageCondNoiseScale: pass.image_cond_noise_scale,
    decodeTimestep: pass.decode_timestep,
    decodeNoiseScale: pass.decode_noise_scale,
    stochasticSampling: pass.stochastic_sampling,
    toneMapCompressionRatio: pass.tone_map_compression_ratio,
  };
  // What a pass leaves open must not hide what holds for both.
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

/** Official files ask for a language model that rewrites short prompts. */
function enhancerNotice({ prompt }: CheckedRequest, config: PipelineConfig): string[] {
  const words = prompt.split(/\s+/).filter(Boolean).length;
  if (words >= config.prompt_enhancement_words_threshold) return [];
  return [
    `the prompt is used as it is written: ltx-native has no prompt enhancer, which the configuration asks for below ` +
      `${config.prompt_enhancement_words_threshold} words. The models follow long, literal descriptions best`,
  ];
}

/** Everything that a video was made from, under the official names. */
function settingsOf(
  request: CheckedRequest,
  config: PipelineConfig,
  files: ReleaseFiles,
  { device = "auto", offload = false, loras = [] }: ReleaseOptions,
): Record<string, unknown> {
  const { conditioningMediaPaths: paths } = request;
  return {
    prompt: request.prompt,
    negative_prompt: request.negativePrompt,
    seed: request.seed,
    height: request.height,
    width: request.width,
    num_frames: request.numFrames,
    frame_rate: request.frameRate,
    image_cond_noise_scale: config.image_cond_noise_scale ?? request.imageCondNoiseScale,
    ...(request.inputMediaPath === undefined ? {} : { input_media_path: request.inputMediaPath }),
    ...(paths && {
      conditioning_media_paths: paths,
      conditioning_strengths: request.conditioningStrengths ?? paths.map(() => 1),
      conditioning_start_frames: request.conditioningStartFrames,
    }),
    ...(loras.length > 0 && { loras }),
    pipeline_config: config,
    files,
    device,
    offload_to_cpu: offload,
    version: `ltx-native ${version}`,
  };
}

const extensionOf = ({ numFrames, format }: CheckedRequest): string => (numFrames === 1 ? ".png" : format);

/** Of the raw frames' bytes, what a file takes at most, as a rule: those with loss, and those without. */
const COMPRESSED = 1 / 6;
const PLAIN = 1 / 2;

/** The folder for the result, which must be writable. */
async function resultFolder(request: CheckedRequest): Promise<string> {
  const { outputPath, height, width, numFrames } = request;
  const folder = outputPath ?? join("outputs", new Date().toISOString().slice(0, 10));
  const share = [".gif", ".png"].includes(extensionOf(request)) ? PLAIN : COMPRESSED;
  await checkOutputFolder(folder, "[generate] output_path", height * width * 3 * numFrames * share);
  return folder;
}

/** The names of results by the official rule. */
function officialName({ prompt, seed, height, width, numFrames }: CheckedRequest): (index: number) => string {
  const kind = numFrames === 1 ? "image" : "video";
  return (i) => `${kind}_output_0_${promptWords(prompt)}_${seed}_${height}x${width}x${numFrames}_${i}`;
}
