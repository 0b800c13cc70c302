import type { Parameter } from "../nn/index.js";
import { emaUpdate } from "../ops/index.js";
import { empty, keep, launch, type Tensor } from "../tensor/index.js";

/** An exponential moving average of parameters. */
export class Ema {
  readonly averages: Tensor[];

  constructor(
    readonly parameters: readonly Parameter[],
    readonly decay: number,
  ) {
    this.averages = parameters.map((p) => {
      const t = keep(empty(p.shape, { device: p.device, group: "optimizer" }));
      launch("cast", [p, t], [1, 0]);
      return t;
    });
  }

  /** Moves the averages; early on by min(decay, (1 + k) / (10 + k)) at update k, so that the start is forgotten. */
  update(k: number): void {
    emaUpdate(this.averages, this.parameters, Math.min(this.decay, (1 + k) / (10 + k)));
  }

  /** Runs `body` while the parameters hold the averages. */
  swapped<T>(body: () => T): T {
    this.swap();
    try {
      return body();
    } finally {
      this.swap();
    }
  }

  /** Exchanges parameters and averages. */
  swap(): void {
    for (const [i, p] of this.parameters.entries()) {
      const t = empty(p.shape, { device: p.device });
      launch("cast", [p, t], [1, 0]);
      launch("cast", [this.averages[i], p], [1, 0]);
      launch("cast", [t, this.averages[i]], [1, 0]);
      t.dispose();
    }
  }

  dispose(): void {
    for (const t of this.averages) t.dispose();
  }
}
