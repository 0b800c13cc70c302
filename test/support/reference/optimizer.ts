/** Adam and AdamW, one parameter at a time, as their papers write them. */
export interface AdamReference {
  lr: number;
  betas: readonly [number, number];
  eps: number;
  weightDecay: number;
  decoupled: boolean;
  maxNorm: number;
}

export interface AdamState {
  param: Float64Array;
  m: Float64Array;
  v: Float64Array;
}

/** Updates the states in place with their gradients; `step` counts from 1. Returns the norm before clipping. */
export function adamStep(states: AdamState[], grads: ArrayLike<number>[], step: number, o: AdamReference): number {
  let squares = 0;
  for (const grad of grads) for (let i = 0; i < grad.length; i++) squares += grad[i] ** 2;
  const norm = Math.sqrt(squares);
  const clip = o.maxNorm > 0 ? Math.min(1, o.maxNorm / (norm + 1e-6)) : 1;
  states.forEach(({ param, m, v }, k) => {
    for (let i = 0; i < param.length; i++) {
      let g = grads[k][i] * clip;
      if (o.decoupled) param[i] -= o.lr * o.weightDecay * param[i];
      else g += o.weightDecay * param[i];
      m[i] = o.betas[0] * m[i] + (1 - o.betas[0]) * g;
      v[i] = o.betas[1] * v[i] + (1 - o.betas[1]) * g * g;
      const mean = m[i] / (1 - o.betas[0] ** step);
      const variance = v[i] / (1 - o.betas[1] ** step);
      param[i] -= (o.lr * mean) / (Math.sqrt(variance) + o.eps);
    }
  });
  return norm;
}
