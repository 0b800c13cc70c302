/** Where the peers are, and the Python that runs them. */
import { join } from "node:path";
import { torchVersion } from "./machine.js";

export type PeerChoice = "torch" | "none" | undefined;

export interface Peer {
  command: readonly string[] | null;
  note: string;
}

/** The command of bench/peers/`script`, where PyTorch can be imported. @throws {Error} when `torch` was asked for and can't. */
export function findPeer(script: string, choice: PeerChoice, cuda: boolean): Peer {
  if (choice === "none") return { command: null, note: "no peer" };
  const python = process.env.LTX_PYTHON ?? "python3";
  const found = torchVersion(python, cuda);
  if ("version" in found)
    return { command: [python, join(__dirname, "peers", script)], note: `PyTorch ${found.version}` };
  const hint = `${found.reason}: LTX_PYTHON may name another Python`;
  if (choice === "torch") throw new Error(hint);
  return { command: null, note: `no peer: ${hint}` };
}
