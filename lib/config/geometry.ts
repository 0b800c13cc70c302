/** Sizes that follow from a configuration: they need none of the schemas, which take long to load. */
import { integer } from "../arguments.js";
import { check } from "../errors.js";
import type { TextEncoderConfig } from "./diffusion.js";
import type { TransformerConfig } from "./transformer.js";
import type { VaeBlockParams, VaeConfig } from "./vae.js";

type Block = readonly [string, number | VaeBlockParams];

/** How much a VAE shrinks a clip, and the latent that comes of it. */
export interface VaeFactors {
  /** Frames per latent frame after the first: F = time * k + 1 frames become k + 1. */
  readonly time: number;
  /** Pixels per latent pixel, patching included. */
  readonly space: number;
  /**
   * The latent [frames, height, width] of a clip.
   * @throws LtxError `invalid_argument` when the VAE cannot take that clip
   */
  latentShape(frames: number, height: number, width: number): [number, number, number];
}

/** The factors by which a VAE's blocks divide or multiply time and space. */
export function strides(blocks: readonly Block[]): { time: number; space: number } {
  const of = (...axes: string[]) =>
    2 ** blocks.filter(([name]) => axes.some((axis) => name.startsWith(`compress_${axis}`))).length;
  return { time: of("time", "all"), space: of("space", "all") };
}

/** The factors of `vae`, read from the blocks of its encoder. */
export function vaeFactors(vae: Pick<VaeConfig, "encoder_blocks" | "patch_size">): VaeFactors {
  const { time, space: strided } = strides(vae.encoder_blocks);
  const space = strided * vae.patch_size;
  return {
    time,
    space,
    latentShape(frames, height, width) {
      const fault =
        framesFault("frames", frames, time) ?? sizeFault("height", height, space) ?? sizeFault("width", width, space);
      check(fault === undefined, "invalid_argument", () => `[vae] ${fault}`);
      return [(frames - 1) / time + 1, height / space, width / space];
    },
  };
}

/** Why a VAE that divides time by `time` cannot take so many frames, and which it could. */
export function framesFault(name: string, frames: number, time: number): string | undefined {
  if (Number.isInteger(frames) && frames >= 1 && (frames - 1) % time === 0) return undefined;
  return `${name} ${frames}: needs ${time}k+1, nearest ${nearest(frames - 1, time, 1)}`;
}

/** The same for height or width. */
export function sizeFault(name: string, size: number, space: number): string | undefined {
  if (Number.isInteger(size) && size >= 1 && size % space === 0) return undefined;
  return `${name} ${size}: needs a multiple of ${space}, nearest ${nearest(size, space, 0)}`;
}

/** The multiples of `step` around `value`, each plus `offset`, of which only positive ones are sizes. */
function nearest(value: number, step: number, offset: number): string {
  const below = Math.max(0, Math.floor(Number.isFinite(value) ? value / step : 0)) * step + offset;
  return [below, below + step].filter((size) => size >= 1).join(" or ");
}

/** Layers of a model: a thousand are twenty times as many as any has, and a million would be built for hours. */
export const MAX_LAYERS = 1000;

/** The width of the token stream. */
export const innerDim = (config: Pick<TransformerConfig, "num_attention_heads" | "attention_head_dim">): number =>
  integer("transformer", "num_attention_heads", config.num_attention_heads, 0) *
  integer("transformer", "attention_head_dim", config.attention_head_dim, 0);

// Width of the encoder output of the released T5 v1.1 sizes.
const T5_WIDTHS = new Map(Object.entries({ small: 512, base: 768, large: 1024, xl: 2048, xxl: 4096 }));

/** The width of a text encoder's output, or undefined for a T5 that is not one of the released sizes. */
export function textWidth(text: TextEncoderConfig): number | undefined {
  if (text.kind === "byte") return integer("byte encoder", "width", text.width, 1);
  return T5_WIDTHS.get(/^(?:google|DeepFloyd|PixArt-alpha)\/.*t5-v1_1-(\w+)$/.exec(text.version)?.[1] ?? "");
}
