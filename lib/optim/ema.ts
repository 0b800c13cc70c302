import { finite } from "../arguments.js";
import type { Parameter } from "../nn/index.js";
import { emaUpdate } from "../ops/index.js";
import { alias, checkLists, empty, keep, launch, scope, type Tensor } from "../tensor/index.js";

/** An exponential moving average of parameters. */
export class Ema {
  readonly averages: Tensor[];

  constructor(
    readonly parameters: readonly Parameter[],
    readonly decay: number,
  ) {
    checkLists("ema", { parameters });
    finite("ema", "decay", decay, 0, 1);
    const copy = (p: Parameter) => {
      const t = empty(p.shape, { device: p.device, group: "optimizer" });
      launch("cast", [p, t], [1, 0]);
      return t;
    };
    // Kept when all are there: those of a constructor that fails go with the scope.
    this.averages = scope(() => parameters.map(copy)).map(keep);
  }

  /** Moves the averages; early on by min(decay, (1 + k) / (10 + k)) at update k, so that the start is forgotten. */
  update(k: number): void {
    finite("ema", "k", k, 0);
    emaUpdate(this.averages, this.parameters, Math.min(this.decay, (1 + k) / (10 + k)));
  }

  /**
   * Runs `body` while the parameters hold the averages; nothing may train meanwhile. Whatever it does, the parameters hold
   * their own values afterwards.
   */
  async swapped<T>(body: () => T | Promise<T>): Promise<T> {
    // The room for the way back is taken before the way there.
    const room = this.room();
    try {
      this.swap(room);
      try {
        return await body();
      } finally {
        this.back(room);
      }
    } finally {
      room?.dispose();
    }
  }

  private room(): Tensor | null {
    if (this.parameters.length === 0) return null;
    const largest = this.parameters.reduce((a, b) => (b.size > a.size ? b : a));
    return keep(empty([largest.size], { device: largest.device }));
  }

  /** Exchanges parameters and averages: all of them, or none when it throws. */
  private swap(room: Tensor | null): void {
    const exchanged: number[] = [];
    try {
      for (const i of this.parameters.keys()) {
        this.exchange(i, room as Tensor);
        exchanged.push(i);
      }
    } catch (error) {
      for (const i of exchanged) this.exchange(i, room as Tensor);
      throw error;
    }
  }

  /** A failure here would leave the parameters with foreign values, so it is not taken for an answer at once. */
  private back(room: Tensor | null): void {
    try {
      this.swap(room);
    } catch {
      this.swap(room);
    }
  }

  private exchange(i: number, room: Tensor): void {
    const [p, average] = [this.parameters[i], this.averages[i]];
    scope(() => {
      const kept = alias(room, p.shape);
      launch("cast", [p, kept], [1, 0]);
      try {
        launch("cast", [average, p], [1, 0]);
        launch("cast", [kept, average], [1, 0]);
      } catch (error) {
        launch("cast", [kept, p], [1, 0]);
        throw error;
      }
    });
  }

  dispose(): void {
    for (const t of this.averages) t.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
