/** All targets, in the order of the table, by the files that hold them: a child loads only the one it needs. */
import type { Target } from "../target.js";

type Family = () => Promise<Record<string, unknown>>;

const families: readonly [names: readonly string[], load: Family][] = [
  [["safetensors"], () => import("./safetensors.js")],
  [["pt-zip", "pt-legacy", "zip64"], () => import("./pytorch.js")],
  [["npz", "npy", "array-clips"], () => import("./numpy.js")],
  [["shards", "lora", "official", "model-config"], () => import("./weights.js")],
  [["tokenizer.json", "spiece.model", "t5-folder"], () => import("./tokenizer.js")],
  [["yaml-train", "yaml-pipeline", "yaml-scheme"], () => import("./config.js")],
  [["stored-config", "run", "caches"], () => import("./stored.js")],
  [["hub-cache"], () => import("./hub.js")],
  [["images", "animations", "comments", "ppm", "videos"], () => import("./media.js")],
  [["ops"], () => import("./ops.js")],
  [["native"], () => import("./native.js")],
  [["api"], () => import("./api.js")],
];

/** Without the planted faults, which run only when they are asked for. */
export const targetNames: readonly string[] = families.flatMap(([names]) => names);

const isTarget = (value: unknown): value is Target => typeof value === "object" && value !== null && "setup" in value;

export async function targetNamed(name: string): Promise<Target> {
  const family = families.find(([names]) => names.includes(name))?.[1];
  const found = name.startsWith("planted-")
    ? (await import("./planted.js")).planted
    : Object.values((await family?.()) ?? {}).filter(isTarget);
  const target = found.find((item) => item.name === name);
  if (!target) throw new Error(`unknown reader ${name}, expected one of ${targetNames.join(", ")}`);
  return target;
}
