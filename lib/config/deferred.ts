/**
 * What reads and checks configurations, loaded at the first call: with zod and yaml it takes more time than all the rest
 * of this package.
 */
import type * as config from "./index.js";

export const loadConfig: typeof config.loadConfig = async (path) => (await import("./load.js")).loadConfig(path);

export const loadPipelineConfig: typeof config.loadPipelineConfig = async (...args) =>
  (await import("./load.js")).loadPipelineConfig(...args);

export const loadSamplingScheme: typeof config.loadSamplingScheme = async (path) =>
  (await import("./load.js")).loadSamplingScheme(path);

// Those that answer at once must load at once too, which works in the compiled package only: inside lib/, import them.
const loaded = (): typeof config => require("./index.js");

export const parseConfig: typeof config.parseConfig = (...args) => loaded().parseConfig(...args);
export const parseLossParams: typeof config.parseLossParams = (...args) => loaded().parseLossParams(...args);
export const parseOfficialUpsampler: typeof config.parseOfficialUpsampler = (...args) =>
  loaded().parseOfficialUpsampler(...args);
export const parseOfficialVae: typeof config.parseOfficialVae = (...args) => loaded().parseOfficialVae(...args);
export const parseOfficialTransformer: typeof config.parseOfficialTransformer = (...args) =>
  loaded().parseOfficialTransformer(...args);
export const parseStoredConfig: typeof config.parseStoredConfig = (...args) => loaded().parseStoredConfig(...args);
export const parseTransformerParams: typeof config.parseTransformerParams = (...args) =>
  loaded().parseTransformerParams(...args);
export const parseVaeParams: typeof config.parseVaeParams = (...args) => loaded().parseVaeParams(...args);
