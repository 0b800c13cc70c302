import { LtxError } from "../errors.js";
import * as native from "../native.js";

/** Why a backend can or cannot be used on this machine. */
export interface BackendStatus {
  name: string;
  available: boolean;
  /** What the backend says of itself, or the reason why it is off. */
  detail: string;
}

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

/** Best first; the libraries of one kind exclude each other. */
const preference: Record<string, string[]> = { cpu: ["cpu_avx512", "cpu_avx2"] };
const open = new Map<string, Device>();

/**
 * The device of that name: `cpu`, or `auto` for the best one that works here.
 * @throws {LtxError} `unavailable` with the reason of each library that was tried.
 */
export function device(name = "auto"): Device {
  const kind = name === "auto" ? "cpu" : name;
  const known = open.get(kind);
  if (known) return known;
  if (!(kind in preference)) {
    const why = kind === "cuda" ? "; this version has no CUDA backend" : "";
    throw new LtxError("invalid_argument", `unknown device ${JSON.stringify(name)}: expected auto or cpu${why}`);
  }
  const libraries = native.backendLibraries();
  const reasons: string[] = [];
  const forced = process.env.LTX_CPU_ISA;
  for (const wanted of preference[kind]) {
    const library = libraries.find((candidate) => candidate.name === wanted);
    if (!library || (forced && wanted !== `cpu_${forced}`)) continue;
    try {
      const opened = new Device(kind, native.openLibrary(library.path));
      open.set(kind, opened);
      return opened;
    } catch (error) {
      reasons.push(`${wanted}: ${(error as Error).message}`);
    }
  }
  throw new LtxError("unavailable", `no usable ${kind} backend: ${reasons.join("; ") || "no library was built"}`);
}

/** Every backend library beside the addon, and whether it works here. */
export function backends(): BackendStatus[] {
  return native.backendLibraries().map(({ name, path }) => {
    try {
      return { name, available: true, detail: JSON.stringify(native.describe(native.openLibrary(path))) };
    } catch (error) {
      return { name, available: false, detail: (error as Error).message };
    }
  });
}
