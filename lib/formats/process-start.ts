import { readFile } from "node:fs/promises";

/**
 * When a process started, in the system's ticks, since numbers of processes are given again; empty for none, and for one
 * that has ended and is only still listed because nobody asked how it ended.
 */
export async function startOfProcess(pid: number): Promise<string> {
  const status = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  // The name, in brackets, may hold spaces and brackets itself; the 20th field behind it is the start.
  const fields = status.slice(status.lastIndexOf(")") + 2).split(" ");
  return ["Z", "X", "x"].includes(fields[0]) ? "" : (fields[19] ?? "");
}
