import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { LtxError } from "../errors.js";
import { save } from "../formats/images.js";
import type { Output } from "./output.js";

/**
 * The prompts of a text file, one a line; blank lines are skipped.
 * @throws LtxError `config` when it cannot be read or holds none
 */
export async function readPrompts(path: string): Promise<string[]> {
  const bytes = await readFile(path).catch((cause) => {
    throw new LtxError("config", `[prompts] cannot read ${path}: ${cause.message}`, { cause });
  });
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new LtxError("config", `[prompts] ${path} is not UTF-8 text`, { cause });
  }
  const prompts = text.split(/\r?\n/).filter((line) => line.trim() !== "");
  if (prompts.length === 0) throw new LtxError("config", `[prompts] ${path} holds no prompt: write one a line`);
  return prompts;
}

/** Writes the prompts of `name.gif` beside it, one a line in the order of the clips. */
export async function writePrompts(
  output: Output,
  folder: string,
  name: string,
  prompts: readonly string[],
): Promise<void> {
  const path = join(folder, `${name}.txt`);
  const lines = prompts.map((prompt) => `${prompt.replace(/[\r\n]+/g, " ")}\n`);
  await save(path, Buffer.from(lines.join("")));
  output.out(output.json ? JSON.stringify({ type: "prompts", what: name, path }) : path);
}
