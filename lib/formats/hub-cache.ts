/** Where the tools of Hugging Face keep what they downloaded. */
import { readdir, readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";

/** The folder in which a repository's revisions lie, such as `Lightricks/LTX-Video`. */
export function hubFolder(repository: string, env: NodeJS.ProcessEnv): string {
  const home = env.HF_HOME ?? join(env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "huggingface");
  return join(env.HF_HUB_CACHE ?? join(home, "hub"), `models--${repository.replaceAll("/", "--")}`, "snapshots");
}

/** The folders of those revisions: that of the main branch first. */
export async function hubSnapshots(repository: string, env: NodeJS.ProcessEnv): Promise<string[]> {
  const folder = hubFolder(repository, env);
  const main = await readFile(join(folder, "..", "refs", "main"), "utf8").catch(() => "");
  const names = (await readdir(folder).catch(() => [])).sort();
  return [...new Set([main.trim(), ...names])].filter((name) => name !== "").map((name) => join(folder, name));
}
