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

/** The version of PyTorch that a Python finds, or null. */
export function torchVersion(python: string): string | null {
  const { status, stdout } = spawnSync(python, ["-c", "import torch; print(torch.__version__)"], { encoding: "utf8" });
  return status === 0 ? stdout.trim() : null;
}
