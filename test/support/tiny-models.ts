/** Trained tiny models, made once in a test file. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { findModelFile } from "../../lib/pipelines/index.js";
import { train } from "../../lib/training/index.js";
import { collect, tinyConfig, tinyVae } from "./tiny.js";

/** The model file of a tiny VAE, trained below `folder` unless it is there. */
export async function trainTinyVae(folder: string): Promise<string> {
  const out = join(folder, "tiny-vae");
  if (!existsSync(out)) await collect(train({ out, config: tinyVae() }));
  return findModelFile(out, "vae");
}

/** The folder of a tiny quickstart, trained below `folder` unless it is there. */
export async function trainTiny(folder: string): Promise<string> {
  const out = join(folder, "tiny");
  if (!existsSync(out)) await collect(train({ out, config: tinyConfig() }));
  return out;
}
