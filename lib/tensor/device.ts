import { freemem } from "node:os";
import { callable, show } from "../arguments.js";
import { check } from "../errors.js";
import * as native from "../native.js";
import { BYTE_SIZES, parseBytes } from "./byte-size.js";

export type { StepReport } from "../native.js";

/**
 * A device that tensors live on: an ordered stream of work and the memory behind it. Calls queue their work and return.
 * The queue holds 8,192 calls: only who queues more than that without an await waits in a call, until there is room.
 */
export class Device {
  /** Whether {@link step} may replay; LTX_STEP_GRAPHS=0 in the environment switches it off. */
  stepGraphs = process.env.LTX_STEP_GRAPHS !== "0";
  private inStep = false;
  private records = true;

  constructor(
    readonly name: string,
    /** @internal */ readonly handle: number,
  ) {}

  /**
   * Resolves when all that was queued so far has run. Rejects with the first failure among it that no await has been
   * rejected with, whoever queued it: where several users share the device, await what is yours ({@link Tensor.ready},
   * {@link Tensor.read}), which fails only if something that it depends on did.
   */
  synchronize(): Promise<void> {
    return native.synchronize(this.handle);
  }

  /**
   * Runs `body`, which queues one step of something that is repeated: the forward and backward pass and the optimizer
   * of a training step. Where the backend can, what a step has in common with those before it is recorded and from then
   * on launched as one; a step of other shapes, or on other memory, runs as it does without this, and so does what is
   * different each time (uploads, learning rates, random numbers). Results are the same to the bit.
   * `body` must be synchronous; reading a tensor in it is allowed, but then this step is not replayed.
   */
  step<T>(body: () => T): T {
    callable("step", "body", body);
    const outermost = !this.inStep && this.stepGraphs && this.beginStep();
    try {
      const result = body();
      check(!(result instanceof Promise), "invalid_argument", () => {
        return "[step] the body must be synchronous: await outside of the step";
      });
      return result;
    } finally {
      if (outermost) {
        this.inStep = false;
        native.endStep(this.handle);
      }
    }
  }

  private beginStep(): boolean {
    this.records = native.beginStep(this.handle);
    this.inStep = this.records;
    return this.records;
  }

  /**
   * How many of the steps that have run were replayed and, for the last one, why not. Queued steps have run after
   * {@link synchronize}.
   */
  stepReport(): native.StepReport {
    const report = native.stepReport(this.handle);
    if (!this.records) return { ...report, reason: `${this.name} has no recordings` };
    return this.stepGraphs ? report : { ...report, reason: "switched off" };
  }

  /** Live, cached and peak bytes, over all users in the process. */
  memory(): native.MemoryStats {
    return native.memory(this.handle);
  }

  resetPeak(): void {
    native.resetPeak(this.handle);
  }

  /**
   * Bytes that can still be handed out: up to the limit and, where tensors are in the host's memory, as far as that is
   * free.
   */
  available(): number {
    const { limit, live, cached } = this.memory();
    const onHost = this.name === "cpu" || this.name === "emulator";
    const free = process.availableMemory?.() ?? freemem(); // the former obeys a container's limit
    return Math.max(0, Math.min(limit - live, onHost ? free + cached : Number.POSITIVE_INFINITY));
  }

  /**
   * Allocations beyond `bytes` (live and cached) throw `out_of_memory`. A size such as "8GB" (powers of 1000), "8GiB" or
   * "8g" (powers of 1024) is taken too.
   * @throws {LtxError} `invalid_argument` for what is neither.
   */
  setMemoryLimit(bytes: number | string): void {
    const limit = typeof bytes === "string" ? parseBytes(bytes) : bytes;
    check(Number.isSafeInteger(limit) && (limit as number) >= 0, "invalid_argument", () => {
      return `[memory] the limit is ${show(bytes)}, expected ${BYTE_SIZES}`;
    });
    native.setLimit(this.handle, limit as number);
  }

  /** Instruction set, threads, library versions; of a GPU its name, compute capability, memory, driver and cuBLASLt. */
  describe(): Record<string, string | number> {
    return native.describe(this.handle);
  }

  /** Measures each kernel from now on; see {@link profile}. */
  startProfile(): void {
    native.profiling(this.handle, true);
  }

  /** Ops by time since {@link startProfile}; switches the measurement off. */
  stopProfile(): { op: string; seconds: number; calls: number }[] {
    native.profiling(this.handle, false);
    return native
      .profile(this.handle)
      .map(([op, seconds, calls]) => ({ op, seconds, calls }))
      .sort((a, b) => b.seconds - a.seconds);
  }

  toString(): string {
    return this.name;
  }
}
