import { readFile } from "node:fs/promises";
import { LtxError } from "../errors.js";

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
