import { attentionCases } from "./attention.js";
import type { KernelCase, Scale } from "./case.js";
import { convolutionCases } from "./convolution.js";
import { linearCases, matmulCases } from "./linear.js";
import { adamCases, copyCases, memoryCases } from "./memory.js";
import { normCases } from "./norms.js";

/** What the fractions refer to. */
export const ceilingCases: readonly KernelCase[] = [...copyCases, ...matmulCases];

const others = [...attentionCases, ...convolutionCases, ...normCases, ...linearCases, ...memoryCases, ...adamCases];

/** Each problem in bf16 first, as training runs: where time is short, f32 is what goes. */
const inOrder = [...others].sort((a, b) => a.rank - b.rank);

export const allCases: readonly KernelCase[] = [...ceilingCases, ...inOrder];

export const opNames: readonly string[] = [...new Set(allCases.map(({ op }) => op))];

/** The problems that a device takes in a moment. */
export function scalesOf(device: string, quick: boolean): readonly Scale[] {
  if (device.startsWith("cuda")) return quick ? ["small"] : ["small", "large"];
  return quick || device === "emulator" ? ["tiny"] : ["small"];
}

/** Ceilings are measured on the largest problem alone. */
export function casesFor(scales: readonly Scale[]): { ceilings: KernelCase[]; cases: KernelCase[] } {
  const largest = scales[scales.length - 1];
  return {
    ceilings: ceilingCases.filter(({ scale }) => scale === largest),
    cases: inOrder.filter(({ scale }) => scales.includes(scale)),
  };
}
