/** The loop that both trainers share: one update at a time, reported as typed events. */

import { join } from "node:path";
import type { TrainingConfig } from "../config/index.js";
import { check, LtxError } from "../errors.js";
import {
  type CheckpointContents,
  entry,
  readTensors,
  saveCheckpoint,
  scalarEntry,
  TRAINING_FILE,
} from "../formats/checkpoint.js";
import { fromCheckpoint as fromLayout, type Parameter } from "../nn/index.js";
import { affine, globalNorm } from "../ops/index.js";
import { Adam, Ema, scheduleFactor } from "../optim/index.js";
import { backward, type Device, scope, type Tensor } from "../tensor/index.js";
import type { StepEvent, TrainEvent } from "./events.js";

export interface RunOptions {
  /** Update at which to stop; the configuration's `steps` unless given. */
  steps?: number;
  signal?: AbortSignal;
  /** Folder for checkpoints; none are written without it. */
  checkpoints?: string;
}

/** The loss of a batch with its parts, all (1) f32. */
export interface LossTerms {
  loss: Tensor;
  terms: Record<string, Tensor>;
}

export interface Optimized {
  /** Name and tensor of the model's parameters; averages, where kept, are of these. */
  model: Iterable<[string, Parameter]>;
  /** Of an adversary, which has an optimizer of its own. */
  adversary?: Iterable<[string, Parameter]>;
  /** The adversary's peak learning rate; the model's unless given. */
  adversaryRate?: number;
  /** Clip both by their common norm, as the reference does; else each by its own. */
  clipTogether?: boolean;
}

interface Pending {
  step: number;
  learningRate: number;
  /** The loss, the norms, the terms. */
  values: Promise<number[]>;
  norms: number;
  names: string[];
}

/** Smoothing of the reported speed, in steps. */
const SPEED_WINDOW = 20;

/** Where a checkpoint holds the number of the adversary's updates. */
const ADVERSARY_STEPS = "adam.steps.adversary";

/** Adds the gradients of a loss that is one of `share` in an update. */
export function backwardShare(loss: Tensor, share: number): void {
  backward(share > 1 ? affine(loss, 1 / share) : loss);
}

/**
 * Updates the parameters of each optimizer that has gradients, at `factor` times its learning rate.
 * @returns the norms before clipping, (1) f32: one each, or their common one
 */
export function applyGradients(optimizers: readonly Adam[], factor: number, clipTogether = false): Tensor[] {
  const active = optimizers.filter((optimizer) => optimizer.gradients().length > 0);
  if (!clipTogether) return active.map((optimizer) => optimizer.step(optimizer.options.lr * factor));
  const norm = globalNorm(active.flatMap((optimizer) => optimizer.gradients()));
  for (const optimizer of active) optimizer.step(optimizer.options.lr * factor, norm);
  return [norm];
}

export abstract class Trainer<Batch> {
  abstract readonly stage: "vae" | "flow";
  /** Updates done. */
  step = 0;
  /** The model's, then the adversary's if there is one. */
  private readonly optimizers: readonly Adam[];
  readonly ema: Ema | null;
  private readonly names: Map<Parameter, string>;
  private readonly clipTogether: boolean;

  protected constructor(
    readonly device: Device,
    readonly training: TrainingConfig,
    { model, adversary = [], adversaryRate, clipTogether = false }: Optimized,
  ) {
    const trainable = [model, adversary].map((named) => [...named].filter(([, p]) => p.trainable));
    this.names = new Map(trainable.flat().map(([name, p]) => [p, name]));
    this.clipTogether = clipTogether;
    const { optimizer, learning_rate, max_grad_norm, ema_decay } = training;
    const groups = trainable.map((named) => named.map(([, p]) => p)).filter((group) => group.length > 0);
    const rates = [learning_rate, adversaryRate ?? learning_rate];
    this.optimizers = groups.map(
      (parameters, i) =>
        new Adam(parameters, {
          lr: rates[i],
          betas: optimizer.betas,
          eps: optimizer.eps,
          weightDecay: optimizer.weight_decay,
          decoupled: optimizer.name === "adamw",
          maxGradNorm: max_grad_norm,
        }),
    );
    this.ema = ema_decay > 0 ? new Ema(groups[0], ema_decay) : null;
  }

  /** The host's part of a batch; `index` counts micro-batches over the whole run. */
  protected abstract prepare(index: number): Promise<Batch>;
  /** Queues forward and backward of one of `share` micro-batches, so it must not wait. */
  protected abstract accumulate(batch: Batch, index: number, share: number): LossTerms;
  /** Scores on held-out clips. */
  protected abstract validate(): Promise<Record<string, number>>;
  /** What a checkpoint holds besides the optimizer's state. */
  protected abstract contents(): Pick<CheckpointContents, "model" | "metadata"> & {
    training?: CheckpointContents["training"];
  };
  protected abstract parameterTotal(): number;
  /** What the user should know before the run starts. */
  protected notices(): readonly string[] {
    return [];
  }
  /** Work before the first step, reported as it goes on. */
  protected async *before(_signal?: AbortSignal): AsyncGenerator<TrainEvent> {}

  /** The part of their peak at which the learning rates stand. */
  private rateFactor(step: number): number {
    const { lr_schedule, steps } = this.training;
    const { name: kind, warmup_steps: warmup, final_fraction: finalFraction } = lr_schedule;
    return scheduleFactor({ kind, warmup, total: steps, finalFraction }, step);
  }

  /** Queues one update: forward and backward of each micro-batch, clipping, Adam, the average. */
  private update(batches: readonly Batch[]): Pending {
    const count = batches.length;
    const factor = this.rateFactor(this.step);
    const queue = () => {
      let first: LossTerms | null = null;
      for (const [i, batch] of batches.entries()) {
        const terms = scope(() => this.accumulate(batch, this.step * count + i, count));
        first ??= terms;
      }
      const norms = applyGradients(this.optimizers, factor, this.clipTogether);
      this.ema?.update(this.step);
      return { first: first as LossTerms, norms };
    };
    const result = this.device.step(() => scope(queue));
    const { loss, terms } = result.first;
    const tensors = [loss, ...result.norms, ...Object.values(terms)];
    const values = Promise.all(tensors.map((t) => t.item()));
    for (const tensor of tensors) tensor.dispose();
    this.step++;
    const learningRate = this.training.learning_rate * factor;
    return { step: this.step, learningRate, values, norms: result.norms.length, names: Object.keys(terms) };
  }

  /**
   * Trains until `steps` updates are done in all. The caller may stop by the signal: the update in flight is finished
   * and a checkpoint written.
   * @throws LtxError `non_finite` when the loss or its gradient is not a number; the parameters are those before it
   */
  async *run(options: RunOptions = {}): AsyncGenerator<TrainEvent> {
    const { signal, checkpoints } = options;
    const { stage, training } = this;
    const steps = options.steps ?? training.steps;
    const begun = performance.now();
    const { save_every, validate_every, gradient_accumulation_steps: micro } = training;
    yield { type: "start", stage, step: this.step, steps, parameters: this.parameterTotal(), device: this.device.name };
    for (const message of this.notices()) yield { type: "notice", stage, message };
    yield* this.before(signal);

    const times = [performance.now()];
    const finish = async ({ step, learningRate, values, norms, names }: Pending): Promise<StepEvent> => {
      const [loss, ...rest] = await values;
      const [gradientNorm, adversaryNorm] = rest.slice(0, norms);
      const parts = rest.slice(norms);
      if (![loss, ...rest.slice(0, norms)].every(Number.isFinite)) {
        const adversary = adversaryNorm === undefined ? "" : `, that of the discriminator's ${adversaryNorm}`;
        throw new LtxError(
          "non_finite",
          `[${stage}] step ${step}: the loss is ${loss} and its gradient's norm ${gradientNorm}${adversary}. Lower the learning rate, ` +
            `or train with mixed_precision "no"; earlier checkpoints are untouched`,
        );
      }
      times.push(performance.now());
      if (times.length > SPEED_WINDOW + 1) times.shift();
      const stepsPerSecond = ((times.length - 1) * 1000) / (times[times.length - 1] - times[0]);
      const terms = Object.fromEntries(names.map((name, i) => [name, parts[i]]));
      if (adversaryNorm !== undefined) terms.discriminator_gradient_norm = adversaryNorm;
      const secondsLeft = (steps - step) / stepsPerSecond;
      return { type: "step", stage, step, steps, loss, terms, learningRate, gradientNorm, stepsPerSecond, secondsLeft };
    };

    let saved = this.step;
    let pending: Pending | null = null;
    try {
      while (this.step < steps && !signal?.aborted) {
        const first = this.step * micro;
        const batches = await Promise.all(Array.from({ length: micro }, (_, i) => this.prepare(first + i)));
        const next = this.update(batches);
        // The step before is awaited while this one runs: the device never idles, and the queue stays short.
        const last: Pending | null = pending;
        pending = next;
        if (last) yield await finish(last);
        const due = (every: number) => next.step % every === 0 || next.step === steps;
        if (!due(save_every) && !due(validate_every)) continue;
        pending = null;
        yield await finish(next);
        if (due(validate_every)) yield { type: "validate", stage, step: next.step, metrics: await this.validate() };
        if (checkpoints && due(save_every)) {
          yield await this.checkpoint(checkpoints);
          saved = this.step;
        }
        times.length = 0;
        times.push(performance.now());
      }
      if (pending) {
        const last: Pending = pending;
        pending = null;
        yield await finish(last);
      }
    } finally {
      // An update whose result nobody waits for must not become an unhandled rejection.
      (pending as Pending | null)?.values.catch(() => {});
    }
    if (checkpoints && saved !== this.step) yield await this.checkpoint(checkpoints);
    const reason = this.step >= steps ? "finished" : "aborted";
    yield { type: "end", stage, step: this.step, reason, seconds: (performance.now() - begun) / 1000 };
  }

  private async checkpoint(folder: string): Promise<TrainEvent> {
    return { type: "checkpoint", stage: this.stage, step: this.step, path: await this.save(folder) };
  }

  /** Writes a checkpoint below `folder`; @returns its path. */
  async save(folder: string): Promise<string> {
    const { model, metadata, training = [] } = this.contents();
    return saveCheckpoint(folder, {
      step: this.step,
      model,
      metadata,
      training: [...this.optimizerEntries(), ...training],
    });
  }

  private *optimizerEntries() {
    for (const { parameters, m, v } of this.optimizers) {
      for (const [i, p] of parameters.entries()) {
        const name = this.names.get(p);
        yield entry(`adam.m.${name}`, p, m[i]);
        yield entry(`adam.v.${name}`, p, v[i]);
      }
    }
    // The model file holds the averages then, since those are what sampling wants.
    for (const p of this.ema?.parameters ?? []) yield entry(`raw.${this.names.get(p)}`, p);
    const [, adversary] = this.optimizers;
    if (adversary) yield scalarEntry(ADVERSARY_STEPS, adversary.steps);
  }

  /** The averages by parameter, or undefined when none are kept. */
  protected averages(): Map<Parameter, Tensor> | undefined {
    return this.ema ? new Map(this.ema.parameters.map((p, i) => [p, (this.ema as Ema).averages[i]])) : undefined;
  }

  /** Continues exactly where a checkpoint was written: parameters must already hold the model file's values. */
  protected async restore(path: string, step: number): Promise<void> {
    const { tensors } = await readTensors(join(path, TRAINING_FILE));
    const load = (key: string, p: Parameter, target: Tensor) => {
      const found = tensors.get(key);
      check(found && found.shape.join() === p.checkpointShape.join(), "checkpoint", () => {
        return `[checkpoint] ${path}: ${key} expects [${p.checkpointShape}], found ${found ? `[${found.shape}]` : "nothing"}`;
      });
      target.write(fromLayout(p, found.data));
    };
    for (const { parameters, m, v } of this.optimizers) {
      for (const [i, p] of parameters.entries()) {
        load(`adam.m.${this.names.get(p)}`, p, m[i]);
        load(`adam.v.${this.names.get(p)}`, p, v[i]);
      }
    }
    for (const [i, p] of this.ema?.parameters.entries() ?? []) {
      this.ema?.averages[i].write((await p.read()) as Float32Array);
      load(`raw.${this.names.get(p)}`, p, p);
    }
    this.step = step;
    const [model, adversary] = this.optimizers;
    model.steps = step;
    // An adversary may join late, and counts its own updates.
    if (adversary) adversary.steps = tensors.get(ADVERSARY_STEPS)?.data[0] ?? 0;
  }

  dispose(): void {
    for (const optimizer of this.optimizers) optimizer.dispose();
    this.ema?.dispose();
  }
}
