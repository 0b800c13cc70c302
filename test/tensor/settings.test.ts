import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { parseBytes, showBytes } from "../../lib/tensor/byte-size.js";
import { containerLimits } from "../../lib/tensor/container.js";

import { deviceSettings, type Machine } from "../../lib/tensor/settings.js";

const GiB = 2 ** 30;

describe("sizes in bytes", () => {
  it("are read with their units", () => {
    for (const [text, bytes] of [
      ["1048576", 1048576],
      ["1e9", 1e9],
      ["2GB", 2e9],
      ["2gb", 2e9],
      ["2GiB", 2 * GiB],
      ["2Gi", 2 * GiB],
      ["2g", 2 * GiB],
      ["512m", 512 * 2 ** 20],
      [" 1.5 GiB ", 1.5 * GiB],
      [".5k", 512],
      ["3MB", 3e6],
      ["1T", 2 ** 40],
      ["7b", 7],
    ] as const) {
      expect(parseBytes(text), text).toBe(bytes);
    }
  });

  it("are nothing else", () => {
    for (const text of [
      "",
      " ",
      "abc",
      "-5",
      "0",
      "0.1",
      "1e400",
      "NaN",
      "Infinity",
      "0x10",
      "2 GB x",
      "5iB",
      "1,5GB",
      "9PB",
    ]) {
      expect(parseBytes(text), text).toBeUndefined();
    }
  });
});

describe("bytes for people", () => {
  it.each([
    [0, "0 bytes"],
    [1023, "1023 bytes"],
    [16384, "16.0 KiB"],
    [1.5 * 2 ** 20, "1.5 MiB"],
    [2 ** 40, "1024.0 GiB"],
  ])("%s are %s", (bytes, text) => {
    expect(showBytes(bytes)).toBe(text);
  });
});

describe("containerLimits", () => {
  const roots: string[] = [];
  afterEach(() => {
    for (const root of roots.splice(0)) rmSync(root, { recursive: true });
  });

  function machine(files: Record<string, string>): string {
    const root = mkdtempSync(join(tmpdir(), "ltx-cgroup-"));
    roots.push(root);
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(dirname(join(root, path)), { recursive: true });
      writeFileSync(join(root, path), `${text}\n`);
    }
    return root;
  }
  const v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";

  it("takes the tightest of nested groups of version 2", () => {
    const root = machine({
      "proc/self/mountinfo": `22 1 8:1 / / rw - ext4 /dev/sda rw\n${v2}`,
      "proc/self/cgroup": "0::/kubepods/pod7/box",
      "sys/fs/cgroup/kubepods/memory.max": String(8 * GiB),
      "sys/fs/cgroup/kubepods/cpu.max": "max 100000",
      "sys/fs/cgroup/kubepods/pod7/memory.max": String(2 * GiB),
      "sys/fs/cgroup/kubepods/pod7/cpu.max": "150000 100000",
      "sys/fs/cgroup/kubepods/pod7/box/memory.max": "max",
      "sys/fs/cgroup/kubepods/pod7/box/cpu.max": "400000 100000",
    });
    expect(containerLimits(root)).toEqual({ memory: 2 * GiB, cpus: 1.5 });
  });

  it("finds the group of a namespace at the mount itself", () => {
    for (const path of ["/", "/../../other"]) {
      const root = machine({
        "proc/self/mountinfo": v2,
        "proc/self/cgroup": `0::${path}`,
        "sys/fs/cgroup/memory.max": "536870912",
        "sys/fs/cgroup/cpu.max": "50000 100000",
      });
      expect(containerLimits(root)).toEqual({ memory: 512 * 2 ** 20, cpus: 0.5 });
    }
  });

  it("reads the controllers of version 1, where the host's path is mounted as the root", () => {
    const root = machine({
      "proc/self/mountinfo": [
        "40 30 0:30 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
        "41 30 0:31 /docker/abc /sys/fs/cgroup/cpu\\040set ro - cgroup cgroup rw,cpu,cpuacct",
      ].join("\n"),
      "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc",
      "sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824",
      "sys/fs/cgroup/cpu set/cpu.cfs_quota_us": "250000",
      "sys/fs/cgroup/cpu set/cpu.cfs_period_us": "100000",
    });
    expect(containerLimits(root)).toEqual({ memory: GiB, cpus: 2.5 });
  });

  it("finds no limit where there is none", () => {
    const none = { memory: Infinity, cpus: Infinity };
    expect(containerLimits(machine({}))).toEqual(none);
    const root = machine({
      "proc/self/mountinfo": `${v2}\n41 30 0:31 / /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu`,
      "proc/self/cgroup": "1:cpu:/\n0::/",
      "sys/fs/cgroup/memory.max": "max",
      "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    });
    expect(containerLimits(root)).toEqual(none);
  });
});

describe("deviceSettings", () => {
  const machine = (more: Partial<Machine> = {}): Machine => ({
    env: {},
    container: { memory: Infinity, cpus: Infinity },
    memory: 64 * GiB,
    used: GiB / 4,
    processors: 8,
    ...more,
  });
  const plain = { limit: null, limitedBy: "", threads: null, passive: false };

  it("leave OpenMP and memory alone on a machine of its own", () => {
    expect(deviceSettings(true, machine())).toEqual(plain);
    expect(deviceSettings(true, machine({ env: { LTX_MEMORY_LIMIT: "" } }))).toEqual(plain);
    // Version 1 says so of no limit.
    expect(deviceSettings(true, machine({ container: { memory: 2 ** 63, cpus: 8 } }))).toEqual(plain);
  });

  it("stay below a container's memory, for devices whose memory is the host's", () => {
    const container = { memory: 4 * GiB, cpus: Infinity };
    const { limit, limitedBy } = deviceSettings(true, machine({ container }));
    expect(limit).toBe(Math.floor(0.9 * 4 * GiB - GiB / 4));
    expect(limitedBy).toBe("what the container's limit of 4096 MiB leaves; LTX_MEMORY_LIMIT sets another");
    expect(deviceSettings(true, machine({ container, used: 4 * GiB })).limit).toBe(GiB);
    expect(deviceSettings(false, machine({ container })).limit).toBeNull();
  });

  it("take LTX_MEMORY_LIMIT before anything else, and refuse what is not a size by its name", () => {
    const container = { memory: 4 * GiB, cpus: Infinity };
    const env = { LTX_MEMORY_LIMIT: "8GB" };
    expect(deviceSettings(true, machine({ container, env })).limit).toBe(8e9);
    expect(deviceSettings(false, machine({ env })).limit).toBe(8e9);
    for (const text of ["abc", "-1", "2 apples"]) {
      expect(() => deviceSettings(true, machine({ env: { LTX_MEMORY_LIMIT: text } }))).toThrow(
        `LTX_MEMORY_LIMIT is ${JSON.stringify(text)}, expected a number of bytes or a size such as 8GB, 8GiB or 512m`,
      );
    }
  });

  it("give a quota as many threads as it pays for, which sleep while they wait", () => {
    const of = (cpus: number, env = {}) => {
      const { threads, passive } = deviceSettings(true, machine({ container: { memory: Infinity, cpus }, env }));
      return { threads, passive };
    };
    expect(of(2)).toEqual({ threads: 2, passive: false });
    expect(of(2.5)).toEqual({ threads: 3, passive: true });
    expect(of(0.25)).toEqual({ threads: 1, passive: true });
    expect(of(16)).toEqual({ threads: null, passive: false });
    // The user's own count stays (OpenMP reads it itself), but may be more than there are processors.
    expect(of(2, { OMP_NUM_THREADS: "4" }).passive).toBe(true);
    expect(of(16, { OMP_NUM_THREADS: "32" })).toEqual({ threads: null, passive: true });
    expect(of(16, { OMP_NUM_THREADS: "4" }).passive).toBe(false);
    expect(of(16, { OMP_NUM_THREADS: " 4, 32" }).passive).toBe(false);
    expect(of(16, { OMP_NUM_THREADS: "" })).toEqual({ threads: null, passive: false });
    expect(of(16, { OMP_NUM_THREADS: "1024" }).passive).toBe(true);
    for (const count of ["abc", "0", "-1", "2x", "1.5", "99999", "1025", "4,", "4,0", "1e2", "0x10"]) {
      expect(() => of(16, { OMP_NUM_THREADS: count }), count).toThrow(
        `OMP_NUM_THREADS is ${JSON.stringify(count)}, expected a whole number from 1 to 1024`,
      );
    }
  });
});
