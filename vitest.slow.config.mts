import { defineConfig, mergeConfig } from "vitest/config";
import base from "./vitest.config.mts";

/** What takes minutes, or measures time and so wants a quiet machine: `npm run test:slow`. */
const config = mergeConfig(base, defineConfig({ test: { testTimeout: 600_000, hookTimeout: 600_000 } }));
config.test.include = ["test/slow/**/*.slow.ts"];
export default config;
