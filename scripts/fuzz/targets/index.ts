/** All targets, in the order of the table. */
import type { Target } from "../target.js";
import { yamlPipeline, yamlScheme, yamlTrain } from "./config.js";
import { hubCache } from "./hub.js";
import { animations, comments, images, ppm, videos } from "./media.js";
import { arrayClips, npy, npz } from "./numpy.js";
import { planted } from "./planted.js";
import { ptLegacy, ptZip, zip64 } from "./pytorch.js";
import { safetensors } from "./safetensors.js";
import { caches, runs, storedConfig } from "./stored.js";
import { sentencePiece, t5Folder, tokenizerJson } from "./tokenizer.js";
import { lora, modelConfig, official, shards } from "./weights.js";

export const targets: readonly Target[] = [
  safetensors,
  shards,
  ptZip,
  ptLegacy,
  zip64,
  npz,
  npy,
  arrayClips,
  lora,
  official,
  modelConfig,
  tokenizerJson,
  sentencePiece,
  t5Folder,
  yamlTrain,
  yamlPipeline,
  yamlScheme,
  storedConfig,
  runs,
  caches,
  hubCache,
  images,
  animations,
  comments,
  ppm,
  videos,
];

/** One of them, or a planted fault, which runs only when it is asked for. */
export function targetNamed(name: string): Target {
  const found = [...targets, ...planted].find((target) => target.name === name);
  if (!found)
    throw new Error(`unknown reader ${name}, expected one of ${targets.map((target) => target.name).join(", ")}`);
  return found;
}
