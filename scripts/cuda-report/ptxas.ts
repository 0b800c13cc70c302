/** What the compiler says about a kernel: ptxas' report, and the launch bounds and shared memory that stand in the PTX. */

/** One kernel on one architecture; sizes in bytes. */
export interface Resources {
  registers: number;
  /** Static shared memory of a block. */
  shared: number;
  stack: number;
  spillStores: number;
  spillLoads: number;
}

/** Reads what `ptxas -v` printed, by mangled name. */
export function parsePtxas(log: string): Map<string, Resources> {
  const kernels = new Map<string, Resources>();
  let current: Resources | undefined;
  for (const line of log.split("\n")) {
    const entry = /Compiling entry function '(.+)' for 'sm_\w+'/.exec(line)?.[1];
    if (entry !== undefined) {
      current = { registers: 0, shared: 0, stack: 0, spillStores: 0, spillLoads: 0 };
      kernels.set(entry, current);
    }
    if (!current) continue;
    // A device function that was not inlined has properties of its own: its stack counts, wherever it is called from.
    const properties = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (properties) {
      const [stack, stores, loads] = properties.slice(1).map(Number);
      current.stack = Math.max(current.stack, stack);
      current.spillStores += stores;
      current.spillLoads += loads;
    }
    const registers = /Used (\d+) registers/.exec(line);
    if (registers) {
      current.registers = Number(registers[1]);
      current.shared = Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0);
    }
  }
  for (const [name, { registers }] of kernels) {
    if (registers === 0)
      throw new Error(`ptxas reported no registers for ${name}: has the format of its report changed?`);
  }
  return kernels;
}

export interface Entry {
  /** Threads of a block by __launch_bounds__, or undefined where the kernel has none. */
  threads?: number;
  /** Whether it reads shared memory whose size the launch decides. */
  dynamicShared: boolean;
}

/** The kernels of a PTX text, by mangled name. */
export function parsePtx(ptx: string): Map<string, Entry> {
  const dynamic = [...ptx.matchAll(/^\s*\.extern \.shared .*?([\w$]+)\[\];/gm)].map((match) => match[1]);
  const kernels = new Map<string, Entry>();
  for (const part of ptx.split(/^(?=(?:\.\w+ )*\.entry )/m).slice(1)) {
    const name = /\.entry ([\w$]+)/.exec(part)![1];
    const end = part.indexOf("\n}");
    const text = part.slice(0, end < 0 ? undefined : end);
    const threads = /^\.(?:maxntid|reqntid) ([\d, ]+)$/m.exec(text)?.[1];
    const words = new Set(text.slice(text.indexOf("{")).match(/[\w$]+/g));
    kernels.set(name, {
      threads: threads?.split(",").reduce((product, size) => product * Number(size), 1),
      dynamicShared: dynamic.some((symbol) => words.has(symbol)),
    });
  }
  return kernels;
}

/**
 * A demangled kernel as the report names it: no return type, no namespaces of the project, no parameters. Independent of
 * the hashes that nvcc puts into the names of an anonymous namespace.
 */
export function shortName(demangled: string): string {
  let name = demangled
    .replace(/^void /, "")
    .replaceAll("(anonymous namespace)::", "")
    .replaceAll("ltx::cuda::", "")
    .replaceAll("__nv_bfloat16", "bf16")
    .replace(/>(?: >)+/g, (closing) => closing.replaceAll(" ", ""));
  if (name.endsWith(")")) {
    let depth = 0;
    let at = name.length - 1;
    do {
      if (name[at] === ")") depth++;
      if (name[at] === "(") depth--;
      at--;
    } while (depth > 0 && at >= 0);
    name = name.slice(0, at + 1);
  }
  return name;
}
