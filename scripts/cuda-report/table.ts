/** The report as a Markdown table: a line a kernel. */
import type { Ceilings } from "./ceilings.js";
import type { Kernel } from "./kernels.js";
import { occupancy } from "./occupancy.js";

const unique = (values: number[]) => (new Set(values).size === 1 ? [values[0]] : values).join(" / ");

function row(kernel: Kernel, ceilings: Ceilings, architectures: string[]): string[] {
  const used = architectures.map((name) => kernel.architectures.get(name)!);
  const dynamic = kernel.dynamicShared ? ceilings.kernels[kernel.file]?.[kernel.name]?.dynamic_shared : 0;
  const a10 = kernel.architectures.get("sm_86");
  let fits = "?";
  if (a10 && kernel.threads !== undefined && typeof dynamic === "number") {
    const { blocks, warps, fraction, limit } = occupancy(kernel.threads, a10.registers, a10.shared + dynamic);
    fits = `${Math.round(fraction * 100)} % (${blocks} × ${warps / Math.max(blocks, 1)} warps, ${limit})`;
  }
  const { HMMA, LDSM, LDGSTS } = (a10 ?? used[0]).opcodes;
  return [
    kernel.file,
    `\`${kernel.name}\``,
    String(kernel.threads ?? "?"),
    unique(used.map(({ registers }) => registers)),
    unique(used.map(({ shared }) => shared)),
    kernel.dynamicShared ? String(dynamic ?? "?") : "0",
    unique(used.map(({ stack }) => stack)),
    unique(used.map(({ spillStores, spillLoads }) => spillStores + spillLoads)),
    fits,
    [HMMA, LDSM, LDGSTS].join(" / "),
  ];
}

export function markdown(kernels: Kernel[], ceilings: Ceilings, architectures: string[], nvcc: string): string {
  const columns = [
    "file",
    "kernel",
    "threads",
    "registers",
    "shared",
    "dynamic",
    "stack",
    "spills",
    "occupancy on sm_86",
    "HMMA / LDSM / LDGSTS",
  ];
  const line = (cells: string[]) => `| ${cells.join(" | ")} |`;
  return [
    `# CUDA kernels as nvcc ${nvcc} compiles them`,
    "",
    `Architectures: ${architectures.join(", ")}; where their numbers differ they stand in this order. Threads of a block by launch bounds, registers of a thread, the rest in bytes: shared memory of a block (static; dynamic at its largest), stack and spills of a thread. Occupancy: warps of an A10's SM (48) that hold work at once, and what limits them. Instructions in the code for sm_86: tensor-core products, matrix loads from shared memory, asynchronous copies.`,
    "",
    line(columns),
    line(columns.map(() => "---")),
    ...kernels.map((kernel) => line(row(kernel, ceilings, architectures))),
    "",
  ].join("\n");
}
