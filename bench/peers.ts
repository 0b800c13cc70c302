/** Where the peers are, and the Python that runs them. */
import { join } from "node:path";
import { torchVersion } from "./machine.js";

export type PeerChoice = "torch" | "none" | undefined;

export interface Peer {
  command: readonly string[] | null;
  note: string;
}

/**
 * PyTorch's large tensors in huge pages, on a CPU: glibc takes their memory from the system anew for each, and ordinary
 * pages then cost more than the work. What is set already stays.
 */
const HUGE_PAGES = `THP_MEM_ALLOC_ENABLE=${process.env.THP_MEM_ALLOC_ENABLE ?? 1}`;

const peerCommand = (python: string, script: string, cuda: boolean): readonly string[] => {
  return [...(cuda ? [] : ["env", HUGE_PAGES]), python, join(__dirname, "peers", script)];
};

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
