import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // One file at a time in a process of its own: kernels use every core, and a crash in the addon names its file.
    // OMP_NUM_THREADS stays as the caller has it.
    pool: "forks",
    maxWorkers: 1,
    fileParallelism: false,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    reporters: ["default", "./test/plain-reporter.mjs"],
  },
});
