/** A hidden folder beside a result, where it is made: one for each result, so that two never make the same one. */
import { createHash } from "node:crypto";
import { mkdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { basename, dirname, join } from "node:path";
import { check, LtxError } from "../errors.js";
import { startOfProcess } from "../formats/process-start.js";

/** Who works in the folder. */
interface Owner {
  pid: number;
  host: string;
  /** When the process began, as the kernel counts: numbers of processes are given again. */
  began: string;
}
const OWNER = "owner.json";
/** A folder without an owner is being made at this moment, unless it is older. */
const MAKING_MS = 10_000;

/**
 * Runs `work` with a new empty folder on the disk of `to`, and removes that with what is left in it. One that a process
 * left which is no more is removed first.
 * @throws LtxError `file_exists` while another process makes the same result, `io`
 */
export async function withWorkFolder<T>(to: string, work: (folder: string) => Promise<T>): Promise<T> {
  const folder = join(dirname(to), workName(basename(to)));
  await take(folder, to);
  try {
    return await work(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Of a name of any length that a file can have. */
function workName(name: string): string {
  const plain = `.${name}.partial`;
  if (Buffer.byteLength(plain) <= 255) return plain;
  return `.${createHash("sha256").update(name).digest("hex").slice(0, 32)}.partial`;
}

async function take(folder: string, to: string): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      await mkdir(folder);
      const own: Owner = { pid: process.pid, host: hostname(), began: await startOfProcess(process.pid) };
      await writeFile(join(folder, OWNER), JSON.stringify(own));
      return;
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "EEXIST") {
        throw new LtxError("io", `[convert] cannot write ${to}: ${(cause as Error).message}`, { cause });
      }
      const other = await aliveIn(folder);
      check(!other && tries < 3, "file_exists", () => {
        return `[convert] ${to} is being written by ${other ?? "another process"}: wait for it, or choose another name (if that is not so, delete ${folder})`;
      });
      await rm(folder, { recursive: true, force: true });
    }
  }
}

/** Who works there, in words; null for a folder that nobody does. */
async function aliveIn(folder: string): Promise<string | null> {
  const text = await readFile(join(folder, OWNER), "utf8").catch(() => null);
  let owner: Partial<Owner> | null = null;
  try {
    owner = text === null ? null : JSON.parse(text);
  } catch {}
  if (!owner || typeof owner.pid !== "number") {
    const made = await stat(folder).catch(() => null);
    return made && Date.now() - made.mtimeMs < MAKING_MS ? "another process" : null;
  }
  if (owner.host !== hostname()) return `process ${owner.pid} on ${owner.host}`;
  return (await startOfProcess(owner.pid)) === owner.began ? `process ${owner.pid}` : null;
}
