import { z } from "zod";
import { MAX_LAYERS } from "./geometry.js";

/** Whole numbers from 1; those of layers; from 0; numbers from 0; above 0; from 0 to 1. */
export const count = z.number().int().min(1);
export const layers = count.max(MAX_LAYERS);
export const whole = z.number().int().min(0);
export const weight = z.number().min(0);
export const positive = z.number().gt(0);
export const fraction = z.number().min(0).max(1);

/** An Adam beta: its average over the past needs a value below 1. */
export const beta = z.number().min(0).lt(1);

/** Python's `None` reaches YAML as a text; here it means null. */
export function orNone<T extends z.ZodType>(schema: T) {
  return z.preprocess((value) => (value === "None" ? null : value), schema.nullable());
}

/** A section that takes no keys: the reference writes `params: {}` where there is nothing to set. */
export const nothing = z.strictObject({}, { error: () => "takes no keys" }).optional();
