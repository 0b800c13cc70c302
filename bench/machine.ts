import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { cpus, freemem, loadavg } from "node:os";

/** Bytes that new processes can take without swapping. */
export function availableMemory(): number {
  try {
    const kilobytes = /^MemAvailable:\s+(\d+) kB/m.exec(readFileSync("/proc/meminfo", "utf8"));
    if (kilobytes) return Number(kilobytes[1]) * 1024;
  } catch {
    // Not Linux as we know it.
  }
  return freemem();
}

export function describeMachine(): string {
  const processors = cpus();
  const gibibytes = (availableMemory() / 2 ** 30).toFixed(1);
  return `${processors[0].model.trim()}, ${processors.length} logical CPUs, ${gibibytes} GiB available, Node ${process.version}`;
}

export const describeLoad = (): string =>
  `load average ${loadavg()
    .map((x) => x.toFixed(2))
    .join(" ")}`;

/** The version of PyTorch that a Python finds, or why it can't be used. */
export function torchVersion(python: string, cuda = false): { version: string } | { reason: string } {
  const script = "import torch; print(torch.__version__, torch.cuda.is_available())";
  const { status, stdout } = spawnSync(python, ["-c", script], { encoding: "utf8" });
  if (status !== 0) return { reason: `${python} cannot import torch` };
  const [version, works] = stdout.trim().split(" ");
  return cuda && works !== "True" ? { reason: `PyTorch ${version} of ${python} finds no CUDA device` } : { version };
}

export interface Gpu {
  name: string;
  driver: string;
  totalBytes: number;
  freeBytes: number;
}

/** The first GPU as its driver's own tool describes it; null where there is none. */
export function queryGpu(): Gpu | null {
  const fields = "name,driver_version,memory.total,memory.free";
  const options = [`--query-gpu=${fields}`, "--format=csv,noheader,nounits"];
  const { status, stdout } = spawnSync("nvidia-smi", options, { encoding: "utf8" });
  if (status !== 0) return null;
  const [name, driver, total, free] = stdout.split("\n")[0].split(", ");
  return { name, driver, totalBytes: Number(total) * 2 ** 20, freeBytes: Number(free) * 2 ** 20 };
}
