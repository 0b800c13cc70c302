/** With which memory limit and threads a device is opened: what the user set, else what a container allows. */
import { availableParallelism, totalmem } from "node:os";
import { LtxError } from "../errors.js";
import type { DeviceSettings } from "../native.js";
import { BYTE_SIZES, parseBytes } from "./byte-size.js";
import { type ContainerLimits, containerLimits } from "./container.js";

/** What {@link deviceSettings} looks at. */
export interface Machine {
  env: Record<string, string | undefined>;
  container: ContainerLimits;
  /** Bytes of memory, and those that this process has taken so far. */
  memory: number;
  used: number;
  /** Processors that this process may run on. */
  processors: number;
}

const thisMachine = (): Machine => ({
  env: process.env,
  container: containerLimits(),
  memory: totalmem(),
  used: process.memoryUsage.rss(),
  processors: availableParallelism(),
});

/**
 * `onHost` says that the device's tensors are in the host's memory.
 * @throws {LtxError} `invalid_argument` when LTX_MEMORY_LIMIT is not a size, or OMP_NUM_THREADS no number of threads.
 */
export function deviceSettings(onHost: boolean, machine: Machine = thisMachine()): DeviceSettings {
  return { ...memoryLimit(onHost, machine), ...threads(machine) };
}

function memoryLimit(
  onHost: boolean,
  { env, container, memory, used }: Machine,
): Pick<DeviceSettings, "limit" | "limitedBy"> {
  const given = env.LTX_MEMORY_LIMIT?.trim();
  if (given) {
    const limit = parseBytes(given);
    if (limit !== undefined) return { limit, limitedBy: "the limit of LTX_MEMORY_LIMIT" };
    throw new LtxError("invalid_argument", `LTX_MEMORY_LIMIT is ${JSON.stringify(given)}, expected ${BYTE_SIZES}`);
  }
  if (!onHost || container.memory >= memory) return { limit: null, limitedBy: "" };
  // The rest is for Node, copies on their way, and kernels: beyond the container's limit the process is killed.
  const limit = Math.floor(Math.max(container.memory / 4, 0.9 * container.memory - used));
  const whole = Math.round(container.memory / 2 ** 20);
  return { limit, limitedBy: `what the container's limit of ${whole} MiB leaves; LTX_MEMORY_LIMIT sets another` };
}

/** More threads than any machine has processors; tens of thousands would take the system's last ones. */
const MAX_THREADS = 1024;

/** What OMP_NUM_THREADS asks for, which may be a list, a number for each depth of nesting. */
function askedThreads(env: Machine["env"], processors: number): number | undefined {
  const given = env.OMP_NUM_THREADS?.trim();
  if (!given) return undefined;
  const counts = given.split(",").map((text) => (/^\s*\+?\d+\s*$/.test(text) ? Number(text) : 0));
  if (counts.every((count) => count >= 1 && count <= MAX_THREADS)) return counts[0];
  throw new LtxError(
    "invalid_argument",
    `OMP_NUM_THREADS is ${JSON.stringify(given.slice(0, 80))}, expected a whole number from 1 to ${MAX_THREADS}; this machine has ${processors} processors`,
  );
}

/** OpenMP heeds affinity by itself, but knows nothing of quotas. */
function threads({ env, container, processors }: Machine): Pick<DeviceSettings, "threads" | "passive"> {
  const cpus = Math.min(processors, container.cpus);
  const count = askedThreads(env, processors) ?? Math.ceil(cpus);
  // A thread that spins while it waits takes time from those that work, where there is not a processor for each.
  return { threads: Math.ceil(cpus) < processors ? Math.max(1, Math.ceil(cpus)) : null, passive: count > cpus };
}
