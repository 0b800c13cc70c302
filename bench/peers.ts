/** Where the peers are, and the Python that runs them. */
import { join } from "node:path";
import { torchVersion } from "./machine.js";

export type PeerChoice = "torch" | "none" | undefined;

export interface Peer {
  command: readonly string[] | null;
  note: string;
}

/**
 * PyTorch's memory on a CPU at its best: freed blocks stay with the process, in huge pages. By itself glibc hands each
 * large block back to the system, and each step pays for its pages anew. What is set already stays.
 */
const HEAP: Record<string, string> = {
  MALLOC_MMAP_THRESHOLD_: String(2 ** 34),
  MALLOC_TRIM_THRESHOLD_: String(2 ** 34),
  THP_MEM_ALLOC_ENABLE: "1",
};

function peerCommand(python: string, script: string, cuda: boolean): readonly string[] {
  const settings = Object.entries(HEAP).map(([name, value]) => `${name}=${process.env[name] ?? value}`);
  return [...(cuda ? [] : ["env", ...settings]), python, join(__dirname, "peers", script)];
}

/** The command of bench/peers/`script`, where PyTorch can be imported. @throws {Error} when `torch` was asked for and can't. */
export function findPeer(script: string, choice: PeerChoice, cuda: boolean): Peer {
  if (choice === "none") return { command: null, note: "no peer" };
  const python = process.env.LTX_PYTHON ?? "python3";
  const found = torchVersion(python, cuda);
  if ("version" in found) return { command: peerCommand(python, script, cuda), note: `PyTorch ${found.version}` };
  const hint = `${found.reason}: LTX_PYTHON may name another Python`;
  if (choice === "torch") throw new Error(hint);
  return { command: null, note: `no peer: ${hint}` };
}
