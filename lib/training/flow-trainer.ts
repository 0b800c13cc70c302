import { join } from "node:path";
import { type FlowRunConfig, loadConfig } from "../config/index.js";
import { batchIndices, type DataSource, openData } from "../data/index.js";
import { PhiloxRandom } from "../data/philox.js";
import { flowLoss } from "../diffusion/index.js";
import { LtxError } from "../errors.js";
import { MODEL_FILE, moduleEntries, readTensors, scalarEntry } from "../formats/checkpoint.js";
import {
  createFlowModel,
  disposeFlowModel,
  FLOW_PREFIX,
  type FlowModel,
  LATENT_SCALE_KEY,
  loadFlowState,
} from "../models/flow-model.js";
import { affine, normal, posteriorSample, sliceFirst } from "../ops/index.js";
import { readVaeTensors } from "../pipelines/open-checkpoint.js";
import { TextToVideo } from "../pipelines/text-to-video.js";
import type { Video } from "../pipelines/video.js";
import { type Device, noGrad, device as openDevice, scope, type Tensor } from "../tensor/index.js";
import type { TrainEvent } from "./events.js";
import { cacheFingerprint, encodeClips, type LatentCache, loadLatentCache, saveLatentCache } from "./latent-cache.js";
import { Purpose } from "./purposes.js";
import { type LossTerms, Trainer } from "./trainer.js";

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
}

interface FlowBatch {
  indices: number[];
  prompts: string[];
}

const VALIDATION_CLIPS = 64;
/** Draws of the prompt dropout, apart from every other use of the seed. */
const DROPOUT_STREAM = 0x44524f50;

/**
 * Trains the transformer by rectified flow on the latents of a frozen VAE, with the text encoder jointly.
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
    const { transformer, text } = model;
    super(device, config.training, [
      ...transformer.namedParameters(FLOW_PREFIX.transformer),
      ...text.namedParameters(FLOW_PREFIX.text),
    ]);
  }

  /** @throws LtxError `config`, `unavailable`, `checkpoint` */
  static async create(options: FlowTrainerOptions): Promise<FlowTrainer> {
    const config = typeof options.config === "string" ? await loadConfig(options.config) : options.config;
    if (config.kind !== "flow")
      throw new LtxError("config", `[flow] the configuration trains a ${config.kind}, not a transformer`);
    const device = openDevice(options.device);
    const data = options.data ?? openData(config.data);
    const testData = options.testData ?? openData(config.data, "test", VALIDATION_CLIPS);
    const vae = options.vae ? await readVaeTensors(options.vae) : null;
    const model = createFlowModel(config, device);
    try {
      if (vae) model.vae.loadStateDict(vae);
    } catch (error) {
      disposeFlowModel(model);
      throw error;
    }
    return new FlowTrainer(config, model, data, testData, options.latents ?? null, device);
  }

  /** Continues from a checkpoint that {@link Trainer.save} wrote. */
  async resume(path: string, step: number): Promise<void> {
    const { tensors } = await readTensors(join(path, MODEL_FILE));
    loadFlowState(this.model, tensors);
    this.scaleKnown = true;
    await this.restore(path, step);
  }

  protected parameterTotal(): number {
    return this.model.transformer.parameterCount + this.model.text.parameterCount;
  }

  protected contents() {
    const averages = this.averages();
    const { transformer, text, vae, latentScale } = this.model;
    const model = [
      ...moduleEntries(transformer, FLOW_PREFIX.transformer, averages),
      ...moduleEntries(text, FLOW_PREFIX.text, averages),
      ...moduleEntries(vae, FLOW_PREFIX.vae),
      scalarEntry(LATENT_SCALE_KEY, latentScale),
    ];
    return { model, metadata: { kind: "flow", config: JSON.stringify(this.config) } };
  }

  /** Encodes the clips, or reads them back, and measures the latents' scale. */
  protected override async *before(signal?: AbortSignal): AsyncGenerator<TrainEvent> {
    if (this.cache) return;
    const { vae } = this.model;
    const fingerprint = this.latents ? await cacheFingerprint(vae, this.config.data) : "";
    if (this.latents) this.cache = await loadLatentCache(this.latents, fingerprint, vae);
    if (!this.cache) {
      const total = this.data.length;
      const encoding = encodeClips(vae, this.data, signal);
      let next = await encoding.next();
      while (!next.done) {
        yield { type: "prepare", stage: this.stage, what: "latents", done: next.value, total };
        next = await encoding.next();
      }
      this.cache = next.value;
      if (this.latents) await saveLatentCache(this.latents, this.cache, fingerprint);
    }
    const held = encodeClips(vae, this.testData, signal);
    let next = await held.next();
    while (!next.done) next = await held.next();
    this.testCache = next.value;
    if (!this.scaleKnown) this.model.latentScale = await this.measureScale();
    this.scaleKnown = true;
  }

  /** 1 / std (unbiased, over all elements) of the first batch's sampled latents, as the reference does. */
  private async measureScale(): Promise<number> {
    const cache = this.cache as LatentCache;
    const { seed, batch_size: batchSize } = this.training;
    const indices = batchIndices({ seed, step: 0, batchSize, length: this.data.length });
    const z = scope(() => this.sampleLatents(cache.batch(indices), { seed, step: 0, purpose: Purpose.latentScale }));
    const values = await z.read();
    z.dispose();
    let mean = 0;
    for (const v of values) mean += v / values.length;
    let variance = 0;
    for (const v of values) variance += (v - mean) ** 2 / (values.length - 1);
    return 1 / Math.sqrt(variance);
  }

  private sampleLatents(moments: Tensor, key: { seed: number; step: number; purpose: number }): Tensor {
    const shape = [...moments.shape.slice(0, -1), moments.shape[moments.dims - 1] / 2];
    return posteriorSample(moments, normal(shape, key, { device: this.device }));
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
    return { indices, prompts: prompts.map((prompt) => (random.uniform(0, 1) < prompt_dropout ? "" : prompt)) };
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

  protected forward(batch: FlowBatch, index: number): LossTerms {
    const { seed } = this.training;
    const moments = (this.cache as LatentCache).batch(batch.indices);
    const loss = this.lossOf(moments, batch.prompts, { seed, step: index });
    return { loss, terms: {} };
  }

  private lossOf(moments: Tensor, prompts: string[], key: { seed: number; step: number }): Tensor {
    const { transformer, text, latentScale } = this.model;
    const z0 = affine(this.sampleLatents(moments, { ...key, purpose: Purpose.posterior }), latentScale);
    const { embeddings, mask } = text.encode(prompts);
    return flowLoss((x, t) => transformer.forward(x, t, embeddings, mask), z0, {
      distribution: this.config.diffusion.time_distribution,
      timeKey: { ...key, purpose: Purpose.flowTime },
      noiseKey: { ...key, purpose: Purpose.flowNoise },
    });
  }

  /** Clips of the model as it stands (of its average, when one is kept). */
  async sample(prompts: readonly string[], signal?: AbortSignal): Promise<Video> {
    const pipeline = new TextToVideo(this.model, this.device);
    this.ema?.swap();
    try {
      return await pipeline.generate({ prompts, signal });
    } finally {
      this.ema?.swap();
    }
  }

  /** The training loss on held-out clips, with the same draws each time. */
  protected async validate(): Promise<Record<string, number>> {
    const { moments } = this.testCache as LatentCache;
    const clips = await Promise.all(Array.from({ length: this.testData.length }, (_, i) => this.testData.clip(i)));
    const size = Math.min(this.training.batch_size, moments.shape[0]);
    let total = 0;
    let count = 0;
    this.ema?.swap();
    for (let from = 0; from + size <= moments.shape[0]; from += size) {
      const prompts = clips.slice(from, from + size).map((clip) => clip.prompt ?? "");
      const key = { seed: 2 ** 52 + this.training.seed, step: from };
      const loss = scope(() => noGrad(() => this.lossOf(sliceFirst(moments, from, size), prompts, key)));
      total += await loss.item();
      loss.dispose();
      count++;
    }
    this.ema?.swap();
    return { loss: total / count };
  }

  override dispose(): void {
    super.dispose();
    this.cache?.dispose();
    this.testCache?.dispose();
    disposeFlowModel(this.model);
  }
}
