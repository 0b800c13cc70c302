/** Checks of an optimizer's numbers, where they are given and where they are used. */
import { finite, flag, show } from "../arguments.js";
import { check } from "../errors.js";

/** {@link import("./optimizer.js").AdamStep} without what changes from step to step. */
interface Hyperparameters {
  lr: number;
  betas: readonly [number, number];
  eps: number;
  weightDecay: number;
  decoupled: boolean;
  maxNorm: number;
}

export function checkAdam({ lr, betas, eps, weightDecay, decoupled, maxNorm }: Hyperparameters): void {
  finite("adam", "lr", lr, 0);
  const within =
    Array.isArray(betas) &&
    betas.length === 2 &&
    [...betas].every((beta) => typeof beta === "number" && beta >= 0 && beta < 1);
  check(within, "invalid_argument", () => `[adam] betas are ${show(betas)}, expected two numbers from 0 to below 1`);
  finite("adam", "eps", eps, 0);
  finite("adam", "weightDecay", weightDecay, 0);
  flag("adam", "decoupled", decoupled);
  check(typeof maxNorm === "number" && maxNorm >= 0, "invalid_argument", () => {
    return `[adam] the greatest norm is ${show(maxNorm)}, expected a number of at least 0`;
  });
}
