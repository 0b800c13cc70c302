/** The random numbers of a video, all of them from one place: a program, or a test, may bring its own. */
import { integer } from "../../arguments.js";
import { normal, type RandomKey } from "../../ops/index.js";
import type { Device, Shape, Tensor } from "../../tensor/index.js";
import { Purpose } from "../../training/purposes.js";

/**
 * What a draw is for: the start, the posterior of encoded media, the tokens that media further on become, what stirs
 * given tokens at each step, the steps of stochastic sampling, and what the decoder's input gets.
 */
export const DRAWS = ["init", "posterior", "cond_item", "image_cond", "stochastic", "decode"] as const;
export type Draw = (typeof DRAWS)[number];

/** Where standard normal values come from. Draws are asked for in an order that depends on the options alone. */
export interface NoiseSource {
  /** Values of a shape, channels last; the tensor belongs to the current scope. */
  draw(what: Draw, shape: Shape): Tensor;
  /** What a decoder that injects noise draws from: planes in the order of their use, or a key. */
  planes(): readonly Tensor[] | RandomKey;
}

/** Draws that are a pure function of the seed, on every device the same. */
export class SeededNoise implements NoiseSource {
  private readonly drawn = new Map<Draw | "planes", number>();

  constructor(
    private readonly seed: number,
    private readonly device: Device,
  ) {
    integer("noise", "seed", seed, 0);
  }

  private key(what: Draw | "planes", purpose: number): RandomKey {
    const step = this.drawn.get(what) ?? 0;
    this.drawn.set(what, step + 1);
    return { seed: this.seed, step, purpose };
  }

  draw(what: Draw, shape: Shape): Tensor {
    return normal(shape, this.key(what, Purpose.officialDraw + DRAWS.indexOf(what)), { device: this.device });
  }

  planes(): RandomKey {
    return this.key("planes", Purpose.officialPlanes);
  }
}
