import * as native from "../native.js";

/** A device that tensors live on: an ordered stream of work and the memory behind it. */
export class Device {
  constructor(
    readonly name: string,
    /** @internal */ readonly handle: number,
  ) {}

  /** Resolves when all that was queued so far has run; rejects with the first failure among it. */
  synchronize(): Promise<void> {
    return native.synchronize(this.handle);
  }

  /** Live, cached and peak bytes, over all users in the process. */
  memory(): native.MemoryStats {
    return native.memory(this.handle);
  }

  resetPeak(): void {
    native.resetPeak(this.handle);
  }

  /** Allocations beyond `bytes` (live and cached) throw `out_of_memory`. */
  setMemoryLimit(bytes: number): void {
    native.setLimit(this.handle, bytes);
  }

  /** Instruction set, threads, library versions. */
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
