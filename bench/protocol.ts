/** What bench/run.ts and its workers (bench/steps.ts, bench/peers/steps.py) say to each other, a line of JSON each. */
import type { VaeConfig, VaeLossConfig } from "../lib/config/index.js";
import type { TransformerOptions } from "../lib/models/transformer/index.js";
import type { DecoderConfig } from "../lib/models/video-vae/decoder.js";
import type { EncoderConfig } from "../lib/models/video-vae/encoder.js";

export type BenchDtype = "f32" | "bf16";

interface Common {
  device: string;
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

/** A training step of the transformer, or its forward pass alone. */
export interface FlowSetup extends Common {
  name: "flow-step" | "flow-step-padded" | "ltx-forward";
  /** shape: a latent's (F, H, W, C); text: an embedding's (L, C), of which the first `words` tokens count. */
  config: {
    transformer: TransformerOptions;
    shape: readonly number[];
    text: readonly [number, number];
    words: number;
  };
}

/** A video to the posterior's moments, without gradients. */
export interface EncodeSetup extends Common {
  name: "vae-encode";
  /** shape: a clip's (F, H, W, C). */
  config: { encoder: EncoderConfig; shape: readonly number[] };
}

/** Latents to a video, without gradients. */
export interface DecodeSetup extends Common {
  name: "vae-decode";
  /** shape: a latent's (F, H, W, C). */
  config: { decoder: DecoderConfig; shape: readonly number[] };
}

/** Clips from noise: Euler steps of the transformer, then the decoder. */
export interface SampleSetup extends Common {
  name: "sample";
  /** The flow's fields, and the sampler's: of `steps` the last `initial_timestep` are the decoder's; guidance 1 is none. */
  config: FlowSetup["config"] & {
    decoder: DecoderConfig | null;
    steps: number;
    initial_timestep: number;
    guidance: number;
  };
}

export type Setup = VaeSetup | FlowSetup | EncodeSetup | DecodeSetup | SampleSetup;

export interface Reply {
  /** Of one step, on average. */
  seconds: number;
  loss?: number;
  rss_bytes: number;
  /** Most bytes of tensors on the device at once; PyTorch knows them on a GPU only. */
  peak_bytes?: number;
  /** The rest is said once, or by our worker alone. */
  flops?: number;
  /** What a step must read and write at least, beyond what it computes on: parameters, and the state of Adam. */
  least_bytes?: number;
  parameters?: number;
  variant?: string[];
  /** What became of the peer's other variants: seconds, or why there are none. */
  others?: Record<string, number | string>;
  about?: Record<string, string | number>;
  profile?: { op: string; seconds: number; calls: number; flops?: number }[];
}
