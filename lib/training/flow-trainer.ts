import { join } from "node:path";
import { loadConfig } from "../config/deferred.js";
import type { FlowRunConfig } from "../config/index.js";
import { batchIndices, type DataSource, loadClips, openData, withFrames } from "../data/index.js";
import { PhiloxRandom } from "../data/philox.js";
import { readClip } from "../data/source.js";
import { flowLoss } from "../diffusion/index.js";
import { check, LtxError } from "../errors.js";
import { MODEL_FILE, moduleEntries, readTensors, scalarEntry } from "../formats/checkpoint.js";
import {
  createFlowModel,
  disposeFlowModel,
  FLOW_PREFIX,
  type FlowModel,
  LATENT_SCALE_KEY,
  loadFlowState,
  recordedConfig,
  trainedText,
} from "../models/flow-model.js";
import type { PreparedPrompts } from "../models/text-encoder/index.js";
import type { VideoVae } from "../models/video-vae/index.js";
import { affine, normal, type RandomKey, sliceFirst } from "../ops/index.js";
import { openCheckpoint, readVaeTensors } from "../pipelines/open-checkpoint.js";
import { TextToVideo } from "../pipelines/text-to-video.js";
import type { Video } from "../pipelines/video.js";
import { type Device, noGrad, device as openDevice, owning, scope, Tensor } from "../tensor/index.js";
import type { TrainEvent } from "./events.js";
import { cacheFingerprint, encodeClips, type LatentCache, loadLatentCache, saveLatentCache } from "./latent-cache.js";
import { Purpose } from "./purposes.js";
import { backwardShare, type LossTerms, Trainer } from "./trainer.js";

export interface FlowTrainerOptions {
  /** A configuration, or the path of its YAML file. */
  config: FlowRunConfig | string;
  /** The trained VAE's safetensors or PyTorch file; may be left out when {@link FlowTrainer.resume} follows. */
  vae?: string;
  data?: DataSource;
  /** Held-out clips, for the validation loss. */
  testData?: DataSource;
  device?: string;
  /** File in which the latents are kept. */
  latents?: string;
  /** Folder of a pretrained text encoder, instead of the one that the configuration leads to. */
  textEncoder?: string;
  /** File in which the features of a pretrained text encoder are kept. */
  prompts?: string;
}

/** What the host has ready of a batch: where its clips come from, and its prompts. */
interface FlowBatch {
  /** Clips whose moments are cached, or pixels: (B,F,H,W,C) bytes of clips, or of single frames. */
  clips: { indices: number[] } | { bytes: Uint8Array; frames: number };
  prompts: PreparedPrompts;
}

const VALIDATION_CLIPS = 64;
/** Draws of the prompt dropout, apart from every other use of the seed. */
const DROPOUT_STREAM = 0x44524f50;
/** Which frames an image batch shows. */
const FRAME_STREAM = 0x4652414d;

/**
 * Trains the transformer by rectified flow on the latents of a frozen VAE, or on pixels; a byte encoder learns with it, a
 * pretrained text encoder is frozen.
 */
export class FlowTrainer extends Trainer<FlowBatch> {
  readonly stage = "flow";
  private cache: LatentCache | null = null;
  private testCache: LatentCache | null = null;
  private scaleKnown = false;

  private constructor(
    readonly config: FlowRunConfig,
    readonly model: FlowModel,
    private readonly data: DataSource,
    private readonly testData: DataSource,
    private readonly latents: string | null,
    device: Device,
  ) {
    const { transformer } = model;
    const named = [
      ...transformer.namedParameters(FLOW_PREFIX.transformer),
      ...(trainedText(model)?.namedParameters(FLOW_PREFIX.text) ?? []),
    ];
    super(device, config.training, { model: named });
  }

  /** @throws LtxError `config`, `unavailable`, `checkpoint` */
  static async create(options: FlowTrainerOptions): Promise<FlowTrainer> {
    const config = typeof options.config === "string" ? await loadConfig(options.config) : options.config;
    if (typeof options.config !== "string") (await import("../config/check-run.js")).checkRunConfig(config, "flow");
    if (config.kind !== "flow")
      throw new LtxError("config", `[flow] the configuration trains a ${config.kind}, not a transformer`);
    const device = openDevice(options.device);
    const fitted = (source: DataSource) => withFrames(source, config.data.frames);
    const data = fitted(options.data ?? (await openData(config.data)));
    const testData = fitted(options.testData ?? (await openData(config.data, "test", VALIDATION_CLIPS)));
    const { frames, height, width } = config.data;
    for (const { frames: f, height: h, width: w } of [data, testData]) {
      check(f === frames && h === height && w === width, "shape_mismatch", () => {
        return `[flow] data has clips of ${f}×${h}×${w}, the configuration says ${frames}×${height}×${width}`;
      });
    }
    const vae = options.vae ? await readVaeTensors(options.vae) : null;
    check(!vae || config.latent_encoder, "config", () => {
      return "[flow] the configuration trains on pixels and needs no VAE: leave it out, or give diffusion.latent_encoder";
    });
    const { textEncoder, prompts: file } = options;
    const model = await createFlowModel(config, device, { textEncoder, prompts: { file } });
    return owning((own) => {
      own({ dispose: () => disposeFlowModel(model) });
      if (vae) model.vae?.loadStateDict(vae);
      return new FlowTrainer(config, model, data, testData, options.latents ?? null, device);
    });
  }

  /**
   * Starts from a trained model, its VAE and latent scale included, instead of random values: a run's or checkpoint's
   * folder, a safetensors or PyTorch file.
   * @throws LtxError `checkpoint`, `file_format`, `io`
   */
  async initialize(path: string): Promise<void> {
    this.checkIdle();
    const { tensors } = await openCheckpoint(path, "flow", this.config);
    loadFlowState(this.model, tensors);
    this.scaleKnown = this.model.vae !== null;
  }

  /** Continues from a checkpoint that {@link Trainer.save} wrote. */
  async resume(path: string, step: number): Promise<void> {
    this.checkIdle();
    const { metadata, tensors } = await readTensors(join(path, MODEL_FILE));
    const { text } = this.model;
    const { parseStoredConfig } = await import("../config/stored.js");
    const recorded = metadata.config === undefined ? null : parseStoredConfig(metadata.config, path);
    if (recorded?.kind === "flow" && recorded.text_encoder.kind === "t5" && !text.trainable) {
      check(recorded.text_encoder.model_hash === text.modelHash, "checkpoint", () => {
        return `[flow] the text encoder in ${text.path} is not the one that ${path} was trained with: name that one's folder by --text-encoder`;
      });
    }
    await this.restore(path, step, () => loadFlowState(this.model, tensors));
    this.scaleKnown = true;
  }

  override async save(folder: string): Promise<string> {
    const { text } = this.model;
    if (!text.trainable) {
      // They can be computed again: no reason to lose a checkpoint.
      await text.cache.flush().catch((error: Error) => {
        this.tellUser(`the prompts' features could not be kept for a resumed run: ${error.message}`);
      });
    }
    return super.save(folder);
  }

  protected parameterTotal(): number {
    return this.model.transformer.parameterCount + (trainedText(this.model)?.parameterCount ?? 0);
  }

  protected contents() {
    const averages = this.averages();
    const { transformer, vae, latentScale } = this.model;
    const text = trainedText(this.model);
    const model = [
      ...moduleEntries(transformer, FLOW_PREFIX.transformer, averages),
      ...(text ? moduleEntries(text, FLOW_PREFIX.text, averages) : []),
      ...(vae ? moduleEntries(vae, FLOW_PREFIX.vae) : []),
      scalarEntry(LATENT_SCALE_KEY, latentScale),
    ];
    return { model, metadata: { kind: "flow", config: JSON.stringify(recordedConfig(this.model)) } };
  }

  /** Encodes the clips, or reads them back, and measures the latents' scale. */
  protected override async *before(steps: number, signal?: AbortSignal): AsyncGenerator<TrainEvent> {
    const { vae } = this.model;
    if (!vae) return;
    // Those of the whole planned training: it may be run in parts.
    const clips = this.visitedClips(Math.max(steps, this.training.steps));
    if (!this.cache?.covers(clips)) {
      this.cache?.dispose();
      this.cache = null;
      this.cache = yield* this.latentsOfClips(vae, clips, signal);
      if (!this.cache) return;
    }
    this.testCache ??= yield* this.encode(vae, this.testData, range(this.testData.length), signal);
    if (!this.testCache) return;
    if (!this.scaleKnown) this.model.latentScale = await this.measureScale(vae, this.cache);
    this.scaleKnown = true;
  }

  /** From the file that keeps them, or encoded now; null when the signal stopped it. */
  private async *latentsOfClips(
    vae: VideoVae,
    clips: readonly number[],
    signal?: AbortSignal,
  ): AsyncGenerator<TrainEvent, LatentCache | null> {
    const { latents } = this;
    const { fingerprint: pixels } = this.data;
    const visited = clips.length < this.data.length ? clips : "all";
    const keptBy =
      latents !== null && pixels !== undefined
        ? { path: latents, fingerprint: await cacheFingerprint(vae, { data: pixels, visited }) }
        : null;
    const kept = keptBy && (await loadLatentCache(keptBy.path, keptBy.fingerprint, vae, this.data, clips));
    if (kept) return kept;
    const made = yield* this.encode(vae, this.data, clips, signal, true);
    if (made && keptBy) {
      // Without the file the next start takes longer; the run itself needs only what is in memory.
      await saveLatentCache(keptBy.path, made, keptBy.fingerprint).catch((error: Error) => {
        this.tellUser(`the latents could not be kept for a resumed run: ${error.message}`);
      });
      yield* this.tell();
    }
    return made;
  }

  private async *encode(
    vae: VideoVae,
    data: DataSource,
    clips: readonly number[],
    signal?: AbortSignal,
    told = false,
  ): AsyncGenerator<TrainEvent, LatentCache | null> {
    const encoding = encodeClips(vae, data, clips, signal);
    try {
      let next = await encoding.next();
      for (; !next.done; next = await encoding.next()) {
        if (told) {
          yield { type: "prepare", stage: this.stage, what: "latents", done: next.value, total: clips.length };
        }
      }
      return next.value;
    } finally {
      // Whoever leaves the run in the middle leaves the encoding too, which then frees what it has.
      await encoding.return(null);
    }
  }

  /** The clips that `steps` updates come by, ascending: a short run on much data need not wait for all to be encoded. */
  private visitedClips(steps: number): number[] {
    const { gradient_accumulation_steps: micro, seed, batch_size: batchSize } = this.training;
    const { length } = this.data;
    const seen = new Set<number>();
    for (let step = 0; step < steps * micro && seen.size < length; step++) {
      for (const index of batchIndices({ seed, step, batchSize, length })) seen.add(index);
    }
    return [...seen].sort((a, b) => a - b);
  }

  /** 1 / std (unbiased, over all elements) of the first batch's sampled latents, as the reference does. */
  private async measureScale(vae: VideoVae, cache: LatentCache): Promise<number> {
    const { seed, batch_size: batchSize } = this.training;
    const indices = batchIndices({ seed, step: 0, batchSize, length: this.data.length });
    const key = { seed, step: 0, purpose: Purpose.latentScale };
    const z = scope(() => sampleLatents(vae, cache.batch(indices), key));
    const values = await z.read().finally(() => z.dispose());
    let mean = 0;
    for (const v of values) mean += v / values.length;
    let variance = 0;
    for (const v of values) variance += (v - mean) ** 2 / (values.length - 1);
    // As the checkpoint will hold it, so that a resumed run sees the same.
    return Math.fround(1 / Math.sqrt(variance));
  }

  /** Frames of each clip that a batch shows as images; null for a batch of whole clips. */
  private imagesPerClip(index: number): number | null {
    const { joint_image_video_training_step: every, gradient_accumulation_steps: micro } = this.config.training;
    const isImages = every === 1 || (every > 1 && Math.floor(index / micro) % every === 0);
    return isImages ? Math.min(this.data.frames, this.config.transformer.input_number_of_frames) : null;
  }

  protected async prepare(index: number): Promise<FlowBatch> {
    const { seed, batch_size: batchSize, prompt_dropout } = this.config.training;
    const indices = batchIndices({ seed, step: index, batchSize, length: this.data.length });
    const random = new PhiloxRandom(seed, DROPOUT_STREAM, index);
    const prompts = await Promise.all(
      indices.map(async (i, k) => {
        const { labels = [], prompt = "" } = await this.describe(i);
        return this.data.promptFor?.(labels, seed, index * batchSize + k) ?? prompt;
      }),
    );
    const images = this.imagesPerClip(index);
    const shown = images === null ? prompts : prompts.flatMap((prompt) => Array<string>(images).fill(prompt));
    const kept = shown.map((prompt) => (random.uniform(0, 1) < prompt_dropout ? "" : prompt));
    return { clips: await this.clips(indices, images, index), prompts: await this.model.text.prepare(kept) };
  }

  private async clips(indices: number[], images: number | null, index: number): Promise<FlowBatch["clips"]> {
    const { frames } = this.data;
    if (images !== null) {
      const random = new PhiloxRandom(this.training.seed, FRAME_STREAM, index);
      return {
        bytes: randomFrames(await loadClips(this.data, indices), indices.length, frames, images, random),
        frames: 1,
      };
    }
    return this.model.vae ? { indices } : { bytes: await loadClips(this.data, indices), frames };
  }

  private readonly captions = new Map<number, { labels?: readonly number[]; prompt?: string }>();

  /** A clip's labels and prompt, without drawing its pixels again. */
  private async describe(index: number) {
    let caption = this.captions.get(index);
    if (!caption) {
      const { labels, prompt } = await this.data.clip(index);
      caption = { labels, prompt };
      this.captions.set(index, caption);
    }
    return caption;
  }

  protected accumulate(batch: FlowBatch, index: number, share: number): LossTerms {
    const key = { seed: this.training.seed, step: index };
    const loss = scope(() => this.lossOf(this.flowData(batch.clips, key), batch.prompts, key));
    backwardShare(loss, share);
    return { loss, terms: {} };
  }

  /** What the flow leads to: pixels in [-1,1], or sampled latents at unit spread. */
  private flowData(clips: FlowBatch["clips"], key: { seed: number; step: number }): Tensor {
    if ("indices" in clips) return this.latentsOf((this.cache as LatentCache).batch(clips.indices), key);
    const { height, width, channels } = this.data;
    const { bytes, frames } = clips;
    const shape = [bytes.length / (frames * height * width * channels), frames, height, width, channels];
    return noGrad(() => {
      const video = Tensor.from(bytes, shape, { device: this.device });
      const { vae } = this.model;
      return vae ? this.latentsOf(vae.encodeMoments(affine(video, 1 / 255)), key) : affine(video, 2 / 255, -1);
    });
  }

  private latentsOf(moments: Tensor, key: { seed: number; step: number }): Tensor {
    const z = sampleLatents(this.model.vae as VideoVae, moments, { ...key, purpose: Purpose.posterior });
    return affine(z, this.model.latentScale);
  }

  private lossOf(x0: Tensor, prompts: PreparedPrompts, key: { seed: number; step: number }): Tensor {
    const { transformer } = this.model;
    const { embeddings, mask } = prompts();
    return flowLoss((x, t) => transformer.forward(x, t, embeddings, mask), x0, {
      distribution: this.config.diffusion.time_distribution,
      timeKey: { ...key, purpose: Purpose.flowTime },
      noiseKey: { ...key, purpose: Purpose.flowNoise },
    });
  }

  /**
   * Clips of the model as it stands (of its average, when one is kept). A run that goes on waits meanwhile.
   * @throws LtxError `aborted`, `disposed`, `invalid_argument`
   */
  sample(prompts: readonly string[], signal?: AbortSignal): Promise<Video> {
    return this.averaged(() => new TextToVideo(this.model, this.device).generate({ prompts, signal }));
  }

  /** The training loss on held-out clips, with the same draws each time. */
  protected async validate(): Promise<Record<string, number>> {
    const { length } = this.testData;
    const clips = await Promise.all(Array.from({ length }, (_, i) => readClip(this.testData, i)));
    const size = Math.min(this.training.batch_size, length);
    const losses: number[] = [];
    for (let from = 0; from + size <= length; from += size) {
      const part = clips.slice(from, from + size);
      const prompts = await this.model.text.prepare(part.map((clip) => clip.prompt ?? ""));
      const key = { seed: 2 ** 52 + this.training.seed, step: from };
      const loss = scope(() =>
        noGrad(() => {
          const x0 = this.testCache
            ? this.latentsOf(sliceFirst(this.testCache.moments, from, size), key)
            : this.flowData({ bytes: joined(part.map((clip) => clip.video)), frames: this.data.frames }, key);
          return this.lossOf(x0, prompts, key);
        }),
      );
      losses.push(await loss.item().finally(() => loss.dispose()));
    }
    return { loss: losses.reduce((a, b) => a + b) / losses.length };
  }

  override dispose(): void {
    super.dispose();
    this.cache?.dispose();
    this.testCache?.dispose();
    disposeFlowModel(this.model);
  }
}

function sampleLatents(vae: VideoVae, moments: Tensor, key: RandomKey): Tensor {
  if (!vae.stochastic) return moments;
  const shape = [...moments.shape.slice(0, -1), moments.shape[moments.dims - 1] / 2];
  return vae.sample(moments, normal(shape, key, { device: moments.device }));
}

/** `count` different frames of each of `clips` clips of `frames` frames, in random order. */
function randomFrames(
  videos: Uint8Array,
  clips: number,
  frames: number,
  count: number,
  random: PhiloxRandom,
): Uint8Array {
  const size = videos.length / (clips * frames);
  const result = new Uint8Array(clips * count * size);
  for (let clip = 0; clip < clips; clip++) {
    const order = Array.from({ length: frames }, (_, f) => f);
    for (let k = 0; k < count; k++) {
      const pick = k + random.int(frames - k);
      [order[k], order[pick]] = [order[pick], order[k]];
      const from = (clip * frames + order[k]) * size;
      result.set(videos.subarray(from, from + size), (clip * count + k) * size);
    }
  }
  return result;
}

const range = (length: number): number[] => Array.from({ length }, (_, i) => i);

const joined = (parts: readonly Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts));
