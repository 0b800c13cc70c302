/** Case kind to the function that computes it: one file a family, one line here for each. */
import type { GoldenCase } from "../support/fixture.js";

export const cases: Readonly<Record<string, GoldenCase>> = {};
