import type { BenchDtype } from "../protocol.js";
import { attentionCases } from "./attention.js";
import type { KernelCase, Scale } from "./case.js";
import { convolutionCases, WIDEST } from "./convolution.js";
import { linearCases, matmulCases } from "./linear.js";
import { adamCases, copyCases, memoryCases, triadCases } from "./memory.js";
import { normCases } from "./norms.js";

/** What the fractions refer to: products, the widest convolutions, and last what needs the most memory. */
export const ceilingCases: readonly KernelCase[] = [
  ...matmulCases,
  ...convolutionCases.filter(({ op, problem }) => op === "conv3d" && WIDEST.includes(problem)),
  ...copyCases,
  ...triadCases,
];

const layers = [...attentionCases, ...convolutionCases, ...normCases, ...linearCases, ...memoryCases, ...adamCases];

/** Each problem in bf16 first, as training runs: where time is short, f32 is what goes. */
const others = layers.filter((given) => !ceilingCases.includes(given)).sort((a, b) => a.rank - b.rank);

export const allCases: readonly KernelCase[] = [...ceilingCases, ...others];

export const opNames: readonly string[] = [...new Set(allCases.map(({ op }) => op))];

/** The problems that a device takes in a moment. */
export function scalesOf(device: string, quick: boolean): readonly Scale[] {
  if (device.startsWith("cuda")) return quick ? ["small"] : ["small", "large"];
  return quick || device === "emulator" ? ["tiny"] : ["small", "cpu"];
}

/** Ceilings are measured on the largest problems alone; bytes count the same in every dtype. */
export function casesFor(
  scales: readonly Scale[],
  dtypes: readonly BenchDtype[] = ["bf16", "f32"],
): { ceilings: KernelCase[]; cases: KernelCase[] } {
  const largest = scales[scales.length - 1];
  return {
    ceilings: ceilingCases.filter(
      ({ scale, flops, dtype }) => scale === largest && (flops === 0 || dtypes.includes(dtype)),
    ),
    cases: others.filter(({ scale, dtype }) => scales.includes(scale) && dtypes.includes(dtype)),
  };
}
