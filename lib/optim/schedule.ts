import { checkOptions, choice, finite } from "../arguments.js";
import { check } from "../errors.js";

export interface ScheduleOptions {
  kind: "constant" | "cosine";
  /** Updates during which the rate grows linearly from 0: the k-th (from 0) has min(1, k / warmup). */
  warmup?: number;
  /** Of the cosine: updates in all, and the fraction of the rate that is left at the end. */
  total?: number;
  finalFraction?: number;
}

/** The learning rate's factor at update k = 0, 1, … */
export function scheduleFactor(options: ScheduleOptions, k: number): number {
  checkOptions("schedule", options, ["kind", "warmup", "total", "finalFraction"]);
  const { kind, warmup = 0, total = 0, finalFraction = 0 } = options;
  choice("schedule", "kind", kind, { constant: 0, cosine: 0 });
  for (const [name, value] of Object.entries({ warmup, total, finalFraction, k })) finite("schedule", name, value, 0);
  const ramp = warmup > 0 ? Math.min(1, k / warmup) : 1;
  if (kind === "constant") return ramp;
  check(total > warmup, "config", () => `a cosine schedule needs more steps (${total}) than its warm-up (${warmup})`);
  const progress = Math.min(1, Math.max(0, (k - warmup) / (total - warmup)));
  return ramp * (finalFraction + ((1 - finalFraction) * (1 + Math.cos(Math.PI * progress))) / 2);
}
