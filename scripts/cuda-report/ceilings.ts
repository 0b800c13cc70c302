/** cuda/ceilings.json: what each kernel may use, committed, so that a kernel that grows fails where it grows. */

import type { Kernel } from "./kernels.js";
import { maxSharedOfBlock } from "./occupancy.js";

export interface Ceiling {
  /** Registers of a thread and static shared bytes of a block: the most on any architecture. */
  registers: number;
  shared: number;
  /** Bytes of local memory of a thread, where there are any. */
  stack?: number;
  /** Bytes that the launch asks for at most: written by hand (null: still to be written), the compiler can't know it. */
  dynamic_shared?: number | null;
  /** Whether the kernel must hold tensor-core instructions. */
  tensor?: true;
}

export interface Ceilings {
  /** The compiler that the numbers come from: another may need more. */
  nvcc: string;
  /** By source file, then by kernel. */
  kernels: Record<string, Record<string, Ceiling>>;
}

const largest = (kernel: Kernel, field: "registers" | "shared" | "stack") =>
  Math.max(...[...kernel.architectures.values()].map((used) => used[field]));

/** What is wrong with the kernels, a line each; an empty list where all is well. */
export function compare(kernels: Kernel[], ceilings: Ceilings): string[] {
  const problems: string[] = [];
  for (const kernel of kernels) {
    const label = `${kernel.file} ${kernel.name}`;
    for (const [architecture, { spillStores, spillLoads }] of kernel.architectures) {
      if (spillStores + spillLoads > 0) {
        problems.push(`${label}: spills ${spillStores} bytes, loads ${spillLoads} on ${architecture}; may not spill`);
      }
    }
    const ceiling = ceilings.kernels[kernel.file]?.[kernel.name];
    if (!ceiling) {
      problems.push(`${label}: has no ceiling; look at its numbers, then npm run cuda:report -- --write`);
      continue;
    }
    for (const field of ["registers", "shared", "stack"] as const) {
      const allowed = ceiling[field] ?? 0;
      for (const [architecture, used] of kernel.architectures) {
        if (used[field] <= allowed) continue;
        const what = field === "registers" ? "registers" : `bytes of ${field === "stack" ? "stack" : "shared memory"}`;
        problems.push(`${label}: ${used[field]} ${what} on ${architecture}, ceiling ${allowed}`);
      }
    }
    if (kernel.dynamicShared && typeof ceiling.dynamic_shared !== "number") {
      problems.push(`${label}: has dynamic shared memory; write its largest size as dynamic_shared (bytes)`);
    }
    if (!kernel.dynamicShared && ceiling.dynamic_shared !== undefined) {
      problems.push(`${label}: has no dynamic shared memory, yet dynamic_shared is ${ceiling.dynamic_shared}`);
    }
    const shared = largest(kernel, "shared") + (ceiling.dynamic_shared ?? 0);
    if (shared > maxSharedOfBlock) {
      problems.push(`${label}: ${shared} bytes of shared memory, a block has at most ${maxSharedOfBlock} on sm_86`);
    }
    if (ceiling.tensor) {
      for (const [architecture, used] of kernel.architectures) {
        if (used.opcodes.HMMA === 0) problems.push(`${label}: no tensor-core instruction on ${architecture}`);
      }
    }
  }
  const built = new Set(kernels.map((kernel) => `${kernel.file} ${kernel.name}`));
  for (const [file, names] of Object.entries(ceilings.kernels)) {
    for (const name of Object.keys(names)) {
      if (!built.has(`${file} ${name}`)) {
        problems.push(`${file} ${name}: is gone; take its ceiling out with npm run cuda:report -- --write`);
      }
    }
  }
  return problems;
}

/** Sets the dynamic shared memory of every kernel whose name begins so; returns how many there are. */
export function setDynamicShared(ceilings: Ceilings, beginning: string, bytes: number): number {
  let count = 0;
  for (const names of Object.values(ceilings.kernels)) {
    for (const [name, ceiling] of Object.entries(names)) {
      if (!name.startsWith(beginning) || ceiling.dynamic_shared === undefined) continue;
      ceiling.dynamic_shared = bytes;
      count++;
    }
  }
  return count;
}

/** New ceilings at what the kernels use now; what was written by hand stays. A new kernel's tensor cores become a duty. */
export function renew(kernels: Kernel[], old: Ceilings, nvcc: string): Ceilings {
  const renewed: Ceilings = { nvcc, kernels: {} };
  for (const kernel of kernels) {
    const before = old.kernels[kernel.file]?.[kernel.name];
    const ceiling: Ceiling = { registers: largest(kernel, "registers"), shared: largest(kernel, "shared") };
    const stack = largest(kernel, "stack");
    if (stack > 0) ceiling.stack = stack;
    if (kernel.dynamicShared) ceiling.dynamic_shared = before?.dynamic_shared ?? null;
    const everywhere = [...kernel.architectures.values()].every((used) => used.opcodes.HMMA > 0);
    if (before ? before.tensor : everywhere) ceiling.tensor = true;
    renewed.kernels[kernel.file] ??= {};
    renewed.kernels[kernel.file][kernel.name] = ceiling;
  }
  return renewed;
}

/** The file's text: a line a kernel, so that a change is a line of the diff. */
export function format({ nvcc, kernels }: Ceilings): string {
  const files = Object.keys(kernels).sort();
  const blocks = files.map((file) => {
    const names = Object.keys(kernels[file]).sort();
    const lines = names.map((name) => {
      const fields = Object.entries(kernels[file][name]).map(([key, value]) => `${JSON.stringify(key)}: ${value}`);
      return `      ${JSON.stringify(name)}: { ${fields.join(", ")} }`;
    });
    return `    ${JSON.stringify(file)}: {\n${lines.join(",\n")}\n    }`;
  });
  const body = blocks.length > 0 ? `{\n${blocks.join(",\n")}\n  }` : "{}";
  return `{\n  "nvcc": ${JSON.stringify(nvcc)},\n  "kernels": ${body}\n}\n`;
}
