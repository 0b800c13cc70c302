/** Puts together what compiler, PTX and machine code say about each kernel. */
import { execFileSync } from "node:child_process";
import type { Compiled } from "./compile.js";
import { countOpcodes, type OpcodeCounts } from "./cubin.js";
import { parsePtx, parsePtxas, type Resources, shortName } from "./ptxas.js";

export interface Kernel {
  /** As in `conv3d.cu`. */
  file: string;
  /** As in `conv_forward<bf16, 128, 64>`: one of these per instantiation. */
  name: string;
  threads?: number;
  dynamicShared: boolean;
  /** By architecture, as in `sm_86`. */
  architectures: Map<string, Resources & { opcodes: OpcodeCounts }>;
}

/** By mangled name. c++filt comes with every g++. */
function demangle(names: string[]): Map<string, string> {
  const output = execFileSync("c++filt", { input: names.join("\n"), encoding: "utf8" }).split("\n");
  return new Map(names.map((name, index) => [name, output[index]]));
}

/** The kernels of one source; `compiled` is by architecture. */
export function kernelsOf(file: string, compiled: Map<string, Compiled>): Kernel[] {
  const kernels = new Map<string, Kernel>();
  for (const [architecture, { ptx, cubin, log }] of compiled) {
    const entries = parsePtx(ptx);
    const opcodes = countOpcodes(cubin);
    const resources = parsePtxas(log);
    const demangled = demangle([...resources.keys()]);
    const names = new Map([...demangled].map(([mangled, full]) => [mangled, shortName(full)]));
    for (const [mangled, used] of resources) {
      const entry = entries.get(mangled);
      const counts = opcodes.get(mangled);
      if (!entry || !counts) throw new Error(`${file}: ${mangled} is missing in the ${entry ? "cubin" : "PTX"}`);
      const short = names.get(mangled)!;
      const alone = [...names.values()].filter((other) => other === short).length === 1;
      const name = alone ? short : demangled.get(mangled)!;
      let kernel = kernels.get(name);
      if (!kernel) {
        kernel = { file, name, ...entry, architectures: new Map() };
        kernels.set(name, kernel);
      }
      kernel.architectures.set(architecture, { ...used, opcodes: counts });
    }
  }
  return [...kernels.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}
