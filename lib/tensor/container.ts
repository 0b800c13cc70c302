/** What the container that this process runs in may use: the limits of its cgroup and of those around it. */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";

/** Infinity where nothing is limited. */
export interface ContainerLimits {
  /** Bytes of memory. */
  memory: number;
  /** Processors' worth of time, perhaps a fraction. */
  cpus: number;
}

/** Reads the limits from /proc and the cgroup file systems of either version, nested groups included; `root` is for tests. */
export function containerLimits(root = "/"): ContainerLimits {
  const limits = { memory: Number.POSITIVE_INFINITY, cpus: Number.POSITIVE_INFINITY };
  const mounts = cgroupMounts(read(join(root, "proc/self/mountinfo")));
  for (const line of read(join(root, "proc/self/cgroup")).split("\n")) {
    const [, , names, path] = /^(\d+):([^:]*):(.*)$/.exec(line) ?? [];
    if (path === undefined) continue;
    const controllers = names.split(",");
    for (const mount of mounts.filter((m) => m.controllers.some((name) => controllers.includes(name)))) {
      for (const folder of groups(root, mount, path)) {
        limits.memory = Math.min(limits.memory, memoryOf(folder));
        limits.cpus = Math.min(limits.cpus, cpusOf(folder));
      }
    }
  }
  return limits;
}

interface Mount {
  /** The group that is seen at `point`. */
  group: string;
  point: string;
  /** Of version 1; the one of version 2 has no name. */
  controllers: string[];
}

function cgroupMounts(mountinfo: string): Mount[] {
  return mountinfo.split("\n").flatMap((line) => {
    const [before, after] = line.split(" - ");
    if (after === undefined) return [];
    const [, , , group, point] = before.split(" ").map(unescaped);
    const [type, , options = ""] = after.split(" ");
    if (type !== "cgroup" && type !== "cgroup2") return [];
    return [{ group, point, controllers: type === "cgroup2" ? [""] : options.split(",") }];
  });
}

/** Spaces and the like stand as \040 in mountinfo. */
const unescaped = (path: string): string =>
  path.replace(/\\(\d{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));

/** The folder of a process's group, then those around it up to the mount. */
function groups(root: string, mount: Mount, path: string): string[] {
  const top = join(root, mount.point);
  const below = relative(mount.group, path);
  // A path from outside of what is mounted is that of another namespace: the mount shows this process's own group.
  const own = below === ".." || below.startsWith("../") ? top : join(top, below);
  const folders = [existsSync(own) ? own : top];
  while (folders[folders.length - 1] !== top) folders.push(dirname(folders[folders.length - 1]));
  return folders;
}

function memoryOf(folder: string): number {
  const bytes = read(join(folder, "memory.max")) || read(join(folder, "memory.limit_in_bytes"));
  return positive(bytes.trim());
}

function cpusOf(folder: string): number {
  const [quota, period] = read(join(folder, "cpu.max")).trim().split(" ");
  if (period !== undefined) return positive(quota) / positive(period);
  const microseconds = positive(read(join(folder, "cpu.cfs_quota_us")).trim());
  return microseconds / (Number(read(join(folder, "cpu.cfs_period_us"))) || 1);
}

/** "max", -1 and the like mean no limit. */
function positive(text: string): number {
  return /^[1-9]\d*$/.test(text) ? Number(text) : Number.POSITIVE_INFINITY;
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
