import { device } from "../../lib/tensor/index.js";

export const agreementDevice = process.env.LTX_AGREEMENT_DEVICE || process.env.LTX_DEVICE || "cuda";

/** Why there is nothing to compare; null when there is. */
export function incomparable(name: string): string | null {
  return name === "cpu" ? "the CPU agrees with itself" : unavailable(name);
}

/** Why a device can't be used here; null when it can. */
export function unavailable(name: string): string | null {
  try {
    device(name);
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}
