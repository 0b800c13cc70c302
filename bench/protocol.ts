/** What bench/run.ts and its workers (bench/steps.ts, bench/peers/steps.py) say to each other, a line of JSON each. */
import type { TransformerConfig, VaeConfig, VaeLossConfig } from "../lib/config/index.js";

export type BenchDtype = "f32" | "bf16";

interface Common {
  dtype: BenchDtype;
  batch: number;
  /** The peer's variant, once it is known: it is tried out only where it is not given. */
  variant?: readonly string[];
}

export interface VaeSetup extends Common {
  name: "vae-step";
  /** shape: a clip's (F, H, W, C). */
  config: { vae: VaeConfig; loss: VaeLossConfig; shape: readonly number[] };
}

export interface FlowSetup extends Common {
  name: "flow-step";
  /** shape: a latent's (F, H, W, C); text: an embedding's (L, C), of which the first `words` tokens count. */
  config: { transformer: TransformerConfig; shape: readonly number[]; text: readonly [number, number]; words: number };
}

export type Setup = VaeSetup | FlowSetup;

export interface Reply {
  /** Of one step, on average. */
  seconds: number;
  loss?: number;
  rss_bytes: number;
  /** The rest is said once, or by our worker alone. */
  peak_bytes?: number;
  flops?: number;
  parameters?: number;
  variant?: string[];
  about?: Record<string, string | number>;
  profile?: { op: string; seconds: number; calls: number }[];
}
