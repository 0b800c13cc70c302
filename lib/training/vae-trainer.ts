import { join } from "node:path";
import { loadConfig } from "../config/deferred.js";
import type { VaeRunConfig } from "../config/index.js";
import { batchIndices, type DataSource, withFrames } from "../data/index.js";
import { loadClips, openData } from "../data/open.js";
import { check, LtxError } from "../errors.js";
import { MODEL_FILE, moduleEntries, readTensors } from "../formats/checkpoint.js";
import { VaeLoss } from "../losses/index.js";
import { Lpips } from "../models/lpips.js";
import { VideoVae } from "../models/video-vae/index.js";
import { Initializer, type Parameter } from "../nn/index.js";
import { affine, normal, pairLoss, sum, uniform } from "../ops/index.js";
import { findModelFile } from "../pipelines/checkpoint-path.js";
import { psnr } from "../pipelines/metrics.js";
import { readVaeTensors } from "../pipelines/open-checkpoint.js";
import { type Reconstruction, reconstruct, reconstructClips } from "../pipelines/reconstruct.js";
import { type Device, noGrad, device as openDevice, owning, type Shape, scope, Tensor } from "../tensor/index.js";
import { Purpose, SECOND_PASS } from "./purposes.js";
import { type LossTerms, Trainer } from "./trainer.js";
import { type VaeDraws, vaeStep } from "./vae-step.js";

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
/** Held-out clips in a picture. */
const PICTURE_CLIPS = 8;

/** Keeps the discriminator's initial values from being those of the VAE. */
const LOSS_SEED = 2 ** 51;

const DISCRIMINATOR = "loss.discriminator.";

/**
 * Trains the video VAE: reconstruction, KL, wavelet and perceptual loss, and the game with a discriminator, which has an
 * optimizer of its own. The decoder sees latents with noise of a random amplitude and is told how much, which makes it
 * the last denoising step of generation.
 *
 * `compat: reference` does as the reference does where that differs: the decoder's output is cut in training too, its
 * latents get noise even where it is not told how much, the generator's loss also moves the discriminator, which judges a
 * second reconstruction, one norm clips both, a learned log-variance stays where it starts, and the decoder's timestep
 * scale learns.
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
    const ofLoss = [...loss.namedParameters("loss.")];
    const isAdversary = ([name]: [string, unknown]) => name.startsWith(DISCRIMINATOR);
    super(device, config.training, {
      model: [...vae.namedParameters(), ...ofLoss.filter((named) => !isAdversary(named))],
      adversary: ofLoss.filter(isAdversary),
      adversaryRate: config.training.discriminator_learning_rate,
      clipTogether: config.compat === "reference",
      state: loss.namedState(),
    });
  }

  /** @throws LtxError `config`, `unavailable`, `shape_mismatch` */
  static async create(options: VaeTrainerOptions): Promise<VaeTrainer> {
    const config = typeof options.config === "string" ? await loadConfig(options.config) : options.config;
    if (typeof options.config !== "string") (await import("../config/check-run.js")).checkRunConfig(config, "vae");
    if (config.kind !== "vae")
      throw new LtxError("config", `[vae] the configuration trains a ${config.kind}, not a VAE`);
    const device = openDevice(options.device);
    const fitted = (source: DataSource) => withFrames(source, config.data.frames);
    const data = fitted(options.data ?? (await openData(config.data)));
    const testData = fitted(options.testData ?? (await openData(config.data, "test", VALIDATION_CLIPS)));
    const { frames, height, width } = config.data;
    for (const { frames: f, height: h, width: w } of [data, testData]) {
      check(f === frames && h === height && w === width, "shape_mismatch", () => {
        return `[vae] data has clips of ${f}×${h}×${w}, the configuration says ${frames}×${height}×${width}`;
      });
    }
    return owning(async (own) => {
      const loss = own(await createLoss(config, device));
      const { seed, gradient_checkpointing: gradientCheckpointing } = config.training;
      const vae = own(
        new VideoVae(config.vae, { device, seed, computeDtype: computeDtype(config), gradientCheckpointing }),
      );
      if (config.compat !== "reference") holdStill(vae.decoder.timestep_scale_multiplier);
      return new VaeTrainer(config, vae, loss, data, testData, device);
    });
  }

  /**
   * Starts from a trained VAE instead of random values: a run's or checkpoint's folder, a safetensors or PyTorch file. Its
   * discriminator comes along where both have one.
   * @throws LtxError `checkpoint`, `file_format`, `io`
   */
  async initialize(path: string): Promise<void> {
    this.checkIdle();
    const file = await findModelFile(path, "vae");
    this.vae.loadStateDict(await readVaeTensors(file));
    const { discriminator } = this.loss;
    if (!discriminator) return;
    const { tensors } = await readTensors(file, (name) => name.startsWith(DISCRIMINATOR));
    if (tensors.size > 0) discriminator.loadStateDict(tensors, DISCRIMINATOR);
  }

  /** Continues from a checkpoint that {@link Trainer.save} wrote. */
  async resume(path: string, step: number): Promise<void> {
    this.checkIdle();
    const { tensors } = await readTensors(join(path, MODEL_FILE));
    const isLoss = (name: string) => name.startsWith("loss.");
    await this.restore(path, step, () => {
      this.loss.loadStateDict(new Map([...tensors].filter(([name]) => isLoss(name))), "loss.");
      this.vae.loadStateDict(new Map([...tensors].filter(([name]) => !isLoss(name))));
    });
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

  protected accumulate(clips: Uint8Array, index: number, share: number): LossTerms {
    const x = this.video(clips);
    const reference = this.config.compat === "reference";
    return vaeStep(this, x, this.step, (pass, shape) => this.draw(shape, index, pass), { share, reference });
  }

  /** @param shape of the latents */
  private draw(shape: Shape, index: number, pass: number): VaeDraws {
    const { device, vae } = this;
    const { seed } = this.training;
    const key = (purpose: number) => ({ seed, step: index, purpose: purpose + pass * SECOND_PASS });
    // The paper noises latents for a decoder that is told how much; the reference does so for any decoder.
    const noisy = vae.config.timestep_conditioning || this.config.compat === "reference";
    const amplitude = () =>
      affine(uniform([shape[0]], key(Purpose.decoderAmplitude), { device }), this.noiseAmplitude(this.step));
    return {
      posterior: vae.stochastic ? normal(shape, key(Purpose.posterior), { device }) : null,
      amplitude: noisy ? amplitude() : null,
      latent: noisy ? normal(shape, key(Purpose.decoderNoise), { device }) : null,
      layers: key(Purpose.layerNoise),
    };
  }

  /**
   * Held-out clips through the VAE as it stands (its average, when one is kept). A run that goes on waits meanwhile.
   * @throws LtxError `aborted`, `disposed`
   */
  reconstruct(signal?: AbortSignal): Promise<Reconstruction> {
    const count = Math.min(PICTURE_CLIPS, this.testData.length);
    return this.averaged(() => reconstructClips(this.vae, this.testData, count, signal));
  }

  /** PSNR of held-out clips, decoded from the posterior's mean. */
  protected async validate(): Promise<Record<string, number>> {
    const size = this.training.batch_size;
    let error = 0;
    let pixels = 0;
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
      error += await total.item().finally(() => total.dispose());
      pixels += clips.length;
    }
    return { psnr: psnr(error, pixels) };
  }

  override dispose(): void {
    super.dispose();
    this.vae.dispose();
    this.loss.dispose();
  }
}

const computeDtype = ({ training }: VaeRunConfig): "bf16" | "f32" =>
  training.mixed_precision === "bf16" ? "bf16" : "f32";

async function createLoss(config: VaeRunConfig, device: Device): Promise<VaeLoss> {
  const { compat } = config;
  const { steps, seed, gradient_checkpointing: gradientCheckpointing } = config.training;
  const { perceptual_weight: weight, perceptual_start: start, perceptual_checkpoint: weights } = config.loss;
  const range = compat === "reference" ? "unit" : "symmetric";
  const dtype = { computeDtype: computeDtype(config) };
  const wanted = weights !== undefined && weight > 0 && start < steps;
  return owning(async (own) => {
    const perceptual = wanted
      ? own(await Lpips.load(weights, { device, range, gradientCheckpointing, ...dtype }))
      : null;
    const init = new Initializer(device, LOSS_SEED + seed);
    const loss = new VaeLoss(config.loss, init, { steps, compat, perceptual, ...dtype });
    if (compat === "reference") holdStill(loss.logvar);
    return loss;
  });
}

function holdStill(parameter: Parameter | null): void {
  if (!parameter) return;
  parameter.trainable = false;
  parameter.requiresGrad = false;
}
