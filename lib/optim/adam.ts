import { checkOptions, list } from "../arguments.js";
import { check } from "../errors.js";
import type { Parameter } from "../nn/index.js";
import { checkAdam } from "../ops/hyperparameters.js";
import { adamUpdate, globalNorm } from "../ops/index.js";
import { checkLists, empty, keep, launch, scope, type Tensor } from "../tensor/index.js";

export interface AdamOptions {
  lr: number;
  betas?: readonly [number, number];
  eps?: number;
  weightDecay?: number;
  /** AdamW: the decay acts on the weights, not on the gradients. */
  decoupled?: boolean;
  /** Gradients are clipped to this global L2 norm; 0 for none. */
  maxGradNorm?: number;
}

const OPTIONS = ["lr", "betas", "eps", "weightDecay", "decoupled", "maxGradNorm"] as const;

function filled(options: AdamOptions) {
  const { lr, betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0, decoupled = false, maxGradNorm = 0 } = options;
  return { lr, betas, eps, weightDecay, decoupled, maxNorm: maxGradNorm };
}

/** Adam or AdamW over a fixed list of parameters, as torch.optim's; all of it one kernel a step. */
export class Adam {
  /** Counted from 0: the number of updates done. */
  steps = 0;
  readonly m: Tensor[];
  readonly v: Tensor[];

  constructor(
    readonly parameters: readonly Parameter[],
    readonly options: AdamOptions,
  ) {
    check(list("adam", "parameters", parameters).length > 0, "invalid_argument", () => {
      return "[adam] no parameters to optimize";
    });
    checkLists("adam", { parameters });
    checkOptions("adam", options, OPTIONS);
    checkAdam(filled(options));
    const zeros = (p: Parameter) => {
      const t = empty(p.shape, { device: p.device, group: "optimizer" });
      launch("fill", [t], [0]);
      return t;
    };
    // Kept when all are there: those of a constructor that fails go with the scope.
    const [m, v] = scope(() => [parameters.map(zeros), parameters.map(zeros)]);
    this.m = m.map(keep);
    this.v = v.map(keep);
  }

  /** The gradients that backward left. */
  gradients(): Tensor[] {
    return this.parameters.flatMap(({ grad }) => grad ?? []);
  }

  /**
   * One update with the gradients that backward left, which are freed. Parameters without a gradient stay as they are.
   * @param norm the norm to clip by where it is not that of these gradients alone
   * @returns the global norm before clipping, (1) f32, owned by the enclosing scope or the caller. When it is not finite
   * nothing was changed. When the update throws it was not counted, and the gradients are still there.
   */
  step(lr = this.options.lr, norm = globalNorm(this.gradients())): Tensor {
    const active = this.parameters.map((p, i) => ({ p, i })).filter(({ p }) => p.grad !== null);
    const grads = active.map(({ p }) => p.grad as Tensor);
    if (active.length > 0) {
      adamUpdate(
        {
          params: active.map(({ p }) => p),
          grads,
          m: active.map(({ i }) => this.m[i]),
          v: active.map(({ i }) => this.v[i]),
        },
        { ...filled(this.options), lr, step: this.steps + 1, norm },
      );
    }
    this.steps++;
    this.zeroGrad();
    return norm;
  }

  /** Frees the gradients. */
  zeroGrad(): void {
    for (const parameter of this.parameters) parameter.zeroGrad();
  }

  dispose(): void {
    for (const t of [...this.m, ...this.v]) t.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
