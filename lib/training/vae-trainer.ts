import { join } from "node:path";
import { loadConfig, type VaeRunConfig } from "../config/index.js";
import { batchIndices, type DataSource } from "../data/index.js";
import { loadClips, openData } from "../data/open.js";
import { check, LtxError } from "../errors.js";
import { MODEL_FILE, moduleEntries, readTensors } from "../formats/checkpoint.js";
import { VaeLoss } from "../losses/index.js";
import { VideoVae } from "../models/video-vae/index.js";
import { Initializer } from "../nn/index.js";
import { affine, mixRows, normal, pairLoss, sum, uniform } from "../ops/index.js";
import { psnr } from "../pipelines/metrics.js";
import { reconstruct } from "../pipelines/reconstruct.js";
import { type Device, noGrad, device as openDevice, scope, Tensor } from "../tensor/index.js";
import { Purpose } from "./purposes.js";
import { type LossTerms, Trainer } from "./trainer.js";

export interface VaeTrainerOptions {
  /** A configuration, or the path of its YAML file. */
  config: VaeRunConfig | string;
  /** Training clips; drawn as the configuration says unless given. */
  data?: DataSource;
  /** Held-out clips for validation. */
  testData?: DataSource;
  device?: string;
}

/** Held-out clips that validation decodes. */
const VALIDATION_CLIPS = 32;

/**
 * Trains the video VAE: reconstruction, KL and wavelet loss; the decoder sees latents with noise of a random amplitude
 * and is told how much, which makes it the last denoising step of generation.
 */
export class VaeTrainer extends Trainer<Uint8Array> {
  readonly stage = "vae";

  private constructor(
    readonly config: VaeRunConfig,
    readonly vae: VideoVae,
    readonly loss: VaeLoss,
    private readonly data: DataSource,
    private readonly testData: DataSource,
    device: Device,
  ) {
    super(device, config.training, [...vae.namedParameters(), ...loss.namedParameters("loss.")]);
  }

  /** @throws LtxError `config`, `unavailable`, `shape_mismatch` */
  static async create(options: VaeTrainerOptions): Promise<VaeTrainer> {
    const config = typeof options.config === "string" ? await loadConfig(options.config) : options.config;
    if (config.kind !== "vae")
      throw new LtxError("config", `[vae] the configuration trains a ${config.kind}, not a VAE`);
    const device = openDevice(options.device);
    const data = options.data ?? openData(config.data);
    const testData = options.testData ?? openData(config.data, "test", VALIDATION_CLIPS);
    const { frames, height, width } = config.data;
    check(data.frames === frames && data.height === height && data.width === width, "shape_mismatch", () => {
      const found = `${data.frames}×${data.height}×${data.width}`;
      return `[vae] data has clips of ${found}, the configuration says ${frames}×${height}×${width}`;
    });
    const init = new Initializer(device, config.training.seed);
    const computeDtype = config.training.mixed_precision === "bf16" ? "bf16" : "f32";
    const vae = new VideoVae(config.vae, { device, seed: config.training.seed, computeDtype });
    const loss = new VaeLoss(config.loss, init, { steps: config.training.steps });
    return new VaeTrainer(config, vae, loss, data, testData, device);
  }

  /** Continues from a checkpoint that {@link Trainer.save} wrote. */
  async resume(path: string, step: number): Promise<void> {
    const { tensors } = await readTensors(join(path, MODEL_FILE));
    const isLoss = (name: string) => name.startsWith("loss.");
    this.loss.loadStateDict(new Map([...tensors].filter(([name]) => isLoss(name))), "loss.");
    this.vae.loadStateDict(new Map([...tensors].filter(([name]) => !isLoss(name))));
    await this.restore(path, step);
  }

  protected override notices(): readonly string[] {
    return this.loss.notices;
  }

  protected parameterTotal(): number {
    return this.vae.parameterCount;
  }

  protected contents() {
    const averages = this.averages();
    const model = [...moduleEntries(this.vae, "", averages), ...moduleEntries(this.loss, "loss.", averages)];
    return { model, metadata: { kind: "vae", config: JSON.stringify(this.config) } };
  }

  protected prepare(index: number): Promise<Uint8Array> {
    const { batch_size: batchSize, seed } = this.training;
    return loadClips(this.data, batchIndices({ seed, step: index, batchSize, length: this.data.length }));
  }

  private video(clips: Uint8Array): Tensor {
    const { frames, height, width, channels } = this.data;
    const shape = [clips.length / (frames * height * width * channels), frames, height, width, channels];
    return affine(Tensor.from(clips, shape, { device: this.device }), 1 / 255);
  }

  /** The largest amplitude of the decoder's noise at this step. */
  private noiseAmplitude(step: number): number {
    const { max, start, warmup_steps } = this.config.training.decoder_noise;
    if (step < start) return 0;
    return warmup_steps > 0 ? max * Math.min(1, (step - start) / warmup_steps) : max;
  }

  protected forward(clips: Uint8Array, index: number): LossTerms {
    const key = (purpose: number) => ({ seed: this.training.seed, step: index, purpose });
    const { device, vae } = this;
    const x = this.video(clips);
    const moments = vae.encodeMoments(x);
    const latentShape = [...moments.shape.slice(0, -1), vae.config.latent_channels];
    let z = vae.sample(moments, vae.stochastic ? normal(latentShape, key(Purpose.posterior), { device }) : null);
    let amplitude: Tensor | null = null;
    if (vae.config.timestep_conditioning) {
      amplitude = affine(
        uniform([x.shape[0]], key(Purpose.decoderAmplitude), { device }),
        this.noiseAmplitude(this.step),
      );
      z = mixRows(z, normal(latentShape, key(Purpose.decoderNoise), { device }), null, amplitude);
    }
    const noise = key(Purpose.layerNoise);
    // The reference cuts the decoder's output to [0, 1] in training too, where no gradient passes: a decoder that
    // overshoots everywhere (all black, early on) never comes back.
    const reconstruction =
      this.config.compat === "reference"
        ? vae.decode(z, amplitude, { noise })
        : affine(vae.decodeUnclamped(z, amplitude, { noise }), 0.5, 0.5);
    return this.loss.forward(x, reconstruction, vae.stochastic ? moments : null, this.step);
  }

  /** PSNR of held-out clips, decoded from the posterior's mean. */
  protected async validate(): Promise<Record<string, number>> {
    const size = this.training.batch_size;
    let error = 0;
    let pixels = 0;
    this.ema?.swap();
    for (let from = 0; from < this.testData.length; from += size) {
      const count = Math.min(size, this.testData.length - from);
      const clips = await loadClips(
        this.testData,
        Array.from({ length: count }, (_, i) => from + i),
      );
      const total = scope(() =>
        noGrad(() => {
          const x = this.video(clips);
          return sum(pairLoss("l2", x, reconstruct(this.vae, x)));
        }),
      );
      error += await total.item();
      total.dispose();
      pixels += clips.length;
    }
    this.ema?.swap();
    return { psnr: psnr(error, pixels) };
  }

  override dispose(): void {
    super.dispose();
    this.vae.dispose();
    this.loss.dispose();
  }
}
