/** A case of the lab by ours and by the peer, and the machine's ceilings. */
import type { Ceilings } from "../floor.js";
import type { KernelCase } from "./case.js";
import { Lab } from "./lab.js";
import { ceilingsOf, type KernelLine, lineOf } from "./lines.js";
import type { LabSetup } from "./protocol.js";

export interface LabCommands {
  ours: readonly string[];
  peer: readonly string[] | null;
}

/** Longest wait for one case: compilation by the peer is part of it. */
const CASE_SECONDS = 60;

/** Both frameworks' workers. */
export class Labs {
  private readonly ours: Lab;
  private readonly peer: Lab | null;

  constructor({ ours, peer }: LabCommands, setup: LabSetup) {
    this.ours = new Lab("ltx-native", ours, setup, CASE_SECONDS);
    this.peer = peer && new Lab("PyTorch", peer, setup, CASE_SECONDS);
  }

  /** What they say of themselves; null before the first case. */
  get about() {
    return { ours: this.ours.about, peer: this.peer?.about ?? null };
  }

  async measure(given: KernelCase, ceilings: Ceilings | null): Promise<KernelLine> {
    const mine = await this.ours.measure(given);
    return lineOf(given, mine, (await this.peer?.measure(given)) ?? null, ceilings);
  }

  async stop(): Promise<void> {
    await Promise.all([this.ours.stop(), this.peer?.stop()]);
  }
}

/** What products and copies of the largest size reach, by workers of their own: their memory is free again after it. */
export async function measureCeilings(commands: LabCommands, setup: LabSetup, cases: readonly KernelCase[]) {
  const labs = new Labs(commands, setup);
  try {
    const lines: KernelLine[] = [];
    for (const given of cases) lines.push(await labs.measure(given, null));
    return { lines, ceilings: ceilingsOf(lines), about: labs.about };
  } finally {
    await labs.stop();
  }
}
