import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** The names of all kernels that the CUDA sources define. */
export function declaredKernels(root: string): string[] {
  const folder = join(root, "cuda");
  const names = new Set<string>();
  for (const file of readdirSync(folder).filter((name) => /\.cuh?$/.test(name))) {
    const text = readFileSync(join(folder, file), "utf8").replace(/\/\/.*$/gm, "");
    const bounds = String.raw`(?:__launch_bounds__\([^)]*\)\s*)?`;
    for (const [, before, behind] of text.matchAll(
      new RegExp(String.raw`__global__\s+(?:void\s+${bounds}(\w+)|${bounds}void\s+(\w+))\s*\(`, "g"),
    )) {
      names.add(before ?? behind);
    }
  }
  return [...names].sort();
}
