/** The loop that both trainers share: one update at a time, reported as typed events. */

import { join } from "node:path";
import type { TrainingConfig } from "../config/index.js";
import { check, LtxError } from "../errors.js";
import {
  type CheckpointContents,
  checkRoom,
  entry,
  readTensors,
  saveCheckpoint,
  scalarEntry,
  TRAINING_FILE,
} from "../formats/checkpoint.js";
import { Counter, fromCheckpoint as fromLayout, type Parameter, StateBuffer, type StateEntry } from "../nn/index.js";
import { affine, globalNorm } from "../ops/index.js";
import { Adam, Ema, scheduleFactor } from "../optim/index.js";
import { backward, type Device, empty, keep, launch, owning, scope, type Tensor } from "../tensor/index.js";
import { differenceOf, environmentOf, parseEnvironment } from "./environment.js";
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
  /** State in which a forward pass may change something besides gradients, such as running averages. */
  state?: Iterable<[string, StateEntry]>;
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
  // What needs memory comes first, so that either all are updated or none.
  const norms = clipTogether
    ? [globalNorm(active.flatMap((optimizer) => optimizer.gradients()))]
    : active.map((optimizer) => globalNorm(optimizer.gradients()));
  for (const [i, optimizer] of active.entries()) {
    optimizer.step(optimizer.options.lr * factor, norms[clipTogether ? 0 : i]);
  }
  return norms;
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
  private readonly counters: readonly Counter[];
  private readonly buffers: readonly StateBuffer[];
  private running = false;
  private disposed = false;
  /** Resolves when nothing reads or exchanges the parameters; see {@link exclusive}. */
  private turn: Promise<void> = Promise.resolve();
  /** Things to tell the user with the next event. */
  private readonly told: string[] = [];

  protected constructor(
    readonly device: Device,
    readonly training: TrainingConfig,
    { model, adversary = [], adversaryRate, clipTogether = false, state = [] }: Optimized,
  ) {
    const trainable = [model, adversary].map((named) => [...named].filter(([, p]) => p.trainable));
    this.names = new Map(trainable.flat().map(([name, p]) => [p, name]));
    this.clipTogether = clipTogether;
    const measured = [...state].map(([, item]) => item);
    this.counters = measured.filter((item): item is Counter => item instanceof Counter);
    this.buffers = measured.filter((item): item is StateBuffer => item instanceof StateBuffer);
    const { optimizer, learning_rate, max_grad_norm, ema_decay } = training;
    const groups = trainable.map((named) => named.map(([, p]) => p)).filter((group) => group.length > 0);
    const rates = [learning_rate, adversaryRate ?? learning_rate];
    const { optimizers, ema } = owning((own) => {
      const optimizers = groups.map((parameters, i) =>
        own(
          new Adam(parameters, {
            lr: rates[i],
            betas: optimizer.betas,
            eps: optimizer.eps,
            weightDecay: optimizer.weight_decay,
            decoupled: optimizer.name === "adamw",
            maxGradNorm: max_grad_norm,
          }),
        ),
      );
      return { optimizers, ema: ema_decay > 0 ? new Ema(groups[0], ema_decay) : null };
    });
    this.optimizers = optimizers;
    this.ema = ema;
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
  /**
   * Work before the first of a run's steps, reported as it goes on.
   * @param steps updates that the run goes up to
   * @param signal stops it, which is no failure: the run then ends
   */
  protected async *before(_steps: number, _signal?: AbortSignal): AsyncGenerator<TrainEvent> {}

  /**
   * Runs `work`, which reads the parameters over several turns of the event loop, or exchanges them, alone: what else
   * does so waits, and so does the next update.
   */
  protected exclusive<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.turn.then(() => {
      check(!this.disposed, "disposed", () => `[${this.stage}] the trainer was disposed`);
      return work();
    });
    this.turn = mine.then(
      () => {},
      () => {},
    );
    return mine;
  }

  /** As {@link exclusive}, while the parameters hold their averages, where those are kept. */
  protected averaged<T>(work: () => Promise<T>): Promise<T> {
    return this.exclusive(async () => (this.ema ? this.ema.swapped(work) : work()));
  }

  /** Until nobody works alone. What comes next must be synchronous, or another may be first. */
  private async quiet(): Promise<void> {
    for (let turn: Promise<void> | null = null; turn !== this.turn; ) {
      turn = this.turn;
      await turn;
    }
  }

  /** The part of their peak at which the learning rates stand. */
  private rateFactor(step: number): number {
    const { lr_schedule, steps } = this.training;
    const { name: kind, warmup_steps: warmup, final_fraction: finalFraction } = lr_schedule;
    return scheduleFactor({ kind, warmup, total: steps, finalFraction }, step);
  }

  /**
   * Keeps what a forward pass changes besides gradients.
   * @returns puts it back, with no gradients, or lets go of what was kept
   */
  private remember(): { undo(): void; dispose(): void } {
    const { counters, buffers } = this;
    const counts = counters.map(({ value }) => value);
    const updates = this.optimizers.map(({ steps }) => steps);
    const copies = scope(() =>
      buffers.map((buffer) => {
        const copy = empty(buffer.shape, { device: buffer.device });
        launch("cast", [buffer, copy], [1, 0]);
        return copy;
      }),
    ).map(keep);
    return {
      undo: () => {
        for (const [i, counter] of counters.entries()) counter.value = counts[i];
        for (const [i, copy] of copies.entries()) launch("cast", [copy, buffers[i]], [1, 0]);
        for (const [i, optimizer] of this.optimizers.entries()) {
          optimizer.steps = updates[i];
          optimizer.zeroGrad();
        }
      },
      dispose: () => {
        for (const copy of copies) copy.dispose();
      },
    };
  }

  /**
   * Queues one update: forward and backward of each micro-batch, clipping, Adam, the average. One that throws leaves the
   * trainer as it was before.
   */
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
    const before = this.remember();
    let result: ReturnType<typeof queue>;
    try {
      result = this.device.step(() => scope(queue));
    } catch (error) {
      before.undo();
      throw error;
    } finally {
      before.dispose();
    }
    const { loss, terms } = result.first;
    const tensors = [loss, ...result.norms, ...Object.values(terms)];
    const values = Promise.all(tensors.map((t) => t.item()));
    for (const tensor of tensors) tensor.dispose();
    // Nobody may be waiting yet, or ever, when it fails: that must not end the process.
    values.catch(() => {});
    this.step++;
    const learningRate = this.training.learning_rate * factor;
    return { step: this.step, learningRate, values, norms: result.norms.length, names: Object.keys(terms) };
  }

  /**
   * Trains until `steps` updates are done in all. The caller may stop by the signal: the update in flight is finished
   * and a checkpoint written, and the last event says `aborted`. A step that fails (a clip that can't be read, no memory
   * left) leaves the trainer as it was before it, and a checkpoint of that is written.
   * @throws LtxError `non_finite` when the loss or its gradient is not a number; the parameters are those before it.
   *   `invalid_argument` while another run of this trainer goes on; `io` when there is no room for a checkpoint
   */
  async *run(options: RunOptions = {}): AsyncGenerator<TrainEvent> {
    const { stage } = this;
    check(!this.disposed, "disposed", () => `[${stage}] the trainer was disposed`);
    check(!this.running, "invalid_argument", () => {
      return `[${stage}] this trainer runs already: let its run() end, or make another trainer`;
    });
    const steps = options.steps ?? this.training.steps;
    check(Number.isSafeInteger(steps) && steps >= 0, "invalid_argument", () => {
      return `[${stage}] steps must be a whole number from 0, got ${steps}`;
    });
    this.running = true;
    try {
      yield* this.train(steps, options);
    } finally {
      this.running = false;
    }
  }

  private async *train(steps: number, { signal, checkpoints }: RunOptions): AsyncGenerator<TrainEvent> {
    const { stage, training } = this;
    const begun = performance.now();
    const { save_every, validate_every, sample_every, gradient_accumulation_steps: micro } = training;
    if (checkpoints !== undefined && this.step < steps) await checkRoom(checkpoints, this.checkpointContents());
    yield { type: "start", stage, step: this.step, steps, parameters: this.parameterTotal(), device: this.device.name };
    for (const message of this.notices()) yield { type: "notice", stage, message };
    yield* this.tell();
    yield* this.before(steps, signal);

    const times = [performance.now()];
    /** Whether the failure is one after which nothing here is worth keeping. */
    let hopeless = false;
    const finish = async ({ step, learningRate, values, norms, names }: Pending): Promise<StepEvent> => {
      const result = await values.catch((error) => {
        hopeless = true;
        throw error;
      });
      const [loss, ...rest] = result;
      const [gradientNorm, adversaryNorm] = rest.slice(0, norms);
      const parts = rest.slice(norms);
      if (![loss, ...rest.slice(0, norms)].every(Number.isFinite)) {
        hopeless = true;
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
    const save = async (folder: string): Promise<TrainEvent> => {
      try {
        const path = await this.save(folder);
        saved = this.step;
        return { type: "checkpoint", stage, step: this.step, path };
      } catch (error) {
        hopeless = true;
        throw error;
      }
    };
    try {
      while (this.step < steps && !signal?.aborted) {
        const first = this.step * micro;
        const batches = await Promise.all(Array.from({ length: micro }, (_, i) => this.prepare(first + i)));
        await this.quiet();
        const next = this.update(batches);
        // The step before is awaited while this one runs: the device never idles, and the queue stays short.
        const last: Pending | null = pending;
        pending = next;
        if (last) yield await finish(last);
        // Whoever looks at the model after one of these steps must see it as that step left it.
        const due = (every: number) => next.step % every === 0 || next.step === steps;
        if (!due(save_every) && !due(validate_every) && !due(sample_every)) continue;
        pending = null;
        yield await finish(next);
        if (due(validate_every)) {
          const metrics = await this.averaged(() => this.validate());
          yield { type: "validate", stage, step: next.step, metrics };
        }
        if (checkpoints !== undefined && due(save_every)) yield await save(checkpoints);
        yield* this.tell();
        times.length = 0;
        times.push(performance.now());
      }
      if (pending) {
        const last: Pending = pending;
        pending = null;
        yield await finish(last);
      }
    } catch (error) {
      // The steps before are told and kept: only the one that failed is lost.
      if (pending && !hopeless) {
        const last: Pending = pending;
        pending = null;
        yield await finish(last);
      }
      if (checkpoints !== undefined && !hopeless && saved !== this.step) {
        const kept = await save(checkpoints).catch(() => null);
        if (kept) yield kept;
      }
      throw error;
    }
    if (checkpoints !== undefined && saved !== this.step) yield await save(checkpoints);
    yield* this.tell();
    const reason = this.step >= steps ? "finished" : "aborted";
    yield { type: "end", stage, step: this.step, reason, seconds: (performance.now() - begun) / 1000 };
  }

  /** Tells the user with the run's next events. */
  protected tellUser(message: string): void {
    this.told.push(message);
  }

  protected *tell(): Generator<TrainEvent> {
    for (const message of this.told.splice(0)) yield { type: "notice", stage: this.stage, message };
  }

  /** Writes a checkpoint below `folder`; @returns its path. */
  async save(folder: string): Promise<string> {
    const warn = (message: string) => this.tellUser(message);
    return this.exclusive(() => saveCheckpoint(folder, this.checkpointContents(), { warn }));
  }

  private checkpointContents(): CheckpointContents {
    const { model, metadata, training = [] } = this.contents();
    return {
      step: this.step,
      model,
      metadata,
      training: [...this.optimizerEntries(), ...training],
      trainingMetadata: { environment: JSON.stringify(environmentOf(this.device)) },
    };
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

  /** @throws LtxError `invalid_argument` while a run goes on, `disposed` */
  protected checkIdle(): void {
    check(!this.disposed, "disposed", () => `[${this.stage}] the trainer was disposed`);
    check(
      !this.running,
      "invalid_argument",
      () => `[${this.stage}] the trainer runs: its values can't be replaced now`,
    );
  }

  /**
   * Continues exactly where a checkpoint was written.
   * @param model gives the parameters the model file's values
   * @throws LtxError `checkpoint` before anything is written when the training's file does not fit
   */
  protected async restore(path: string, step: number, model: () => void): Promise<void> {
    const { tensors, metadata } = await readTensors(join(path, TRAINING_FILE));
    check(metadata.step === String(step), "checkpoint", () => {
      return `[checkpoint] ${path} is of step ${metadata.step}, its folder's name says ${step}: it was renamed, or is damaged`;
    });
    const loads: (() => void)[] = [];
    const load = (key: string, p: Parameter, target: Tensor) => {
      const found = tensors.get(key);
      check(found && found.shape.join() === p.checkpointShape.join(), "checkpoint", () => {
        return `[checkpoint] ${path}: ${key} expects [${p.checkpointShape}], found ${found ? `[${found.shape}]` : "nothing"}`;
      });
      loads.push(() => target.write(fromLayout(p, found.data)));
    };
    for (const { parameters, m, v } of this.optimizers) {
      for (const [i, p] of parameters.entries()) {
        load(`adam.m.${this.names.get(p)}`, p, m[i]);
        load(`adam.v.${this.names.get(p)}`, p, v[i]);
      }
    }
    for (const p of this.ema?.parameters ?? []) load(`raw.${this.names.get(p)}`, p, p);
    const [first, adversary] = this.optimizers;
    // An adversary may join late, and counts its own updates.
    const adversarySteps = tensors.get(ADVERSARY_STEPS)?.data[0] ?? 0;
    check(Number.isSafeInteger(adversarySteps) && adversarySteps >= 0, "checkpoint", () => {
      return `[checkpoint] ${path}: ${ADVERSARY_STEPS} is ${adversarySteps}, expected a whole number from 0`;
    });
    model();
    for (const [i, p] of this.ema?.parameters.entries() ?? []) {
      this.ema?.averages[i].write((await p.read()) as Float32Array);
    }
    for (const write of loads) write();
    this.step = step;
    first.steps = step;
    if (adversary) adversary.steps = adversarySteps;
    const then = parseEnvironment(metadata.environment);
    const difference = then && differenceOf(then, environmentOf(this.device));
    if (difference) this.tellUser(difference);
  }

  /** Frees all of its memory. A run that goes on ends with an error. */
  dispose(): void {
    this.disposed = true;
    for (const optimizer of this.optimizers) optimizer.dispose();
    this.ema?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
