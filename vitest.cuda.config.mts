import { spawnSync } from "node:child_process";
import { availableParallelism } from "node:os";
import { defineConfig, mergeConfig } from "vitest/config";
import base from "./vitest.config.mts";

/**
 * The tests of all that runs on a device, on the one that LTX_DEVICE names, else on cuda: `npm run test:cuda`. Where it
 * can't be used a single test says why, skipped, or failed with LTX_REQUIRE_CUDA=1.
 */
const device = process.env.LTX_DEVICE || "cuda";
const probe = spawnSync(process.execPath, ["--import", "tsx", "test/cuda/probe.ts", device], { encoding: "utf8" });
const reason = probe.status === 0 ? probe.stdout : probe.stderr;
if (reason) console.warn(`Nothing can be tested on ${device}: ${reason}`);

const onDevice = [
  "test/{ops,tensor,nn,optim,models,losses}/**/*.test.ts",
  "test/golden/golden.test.ts",
  "test/training/{flow-trainer,adversarial,gradient-checkpointing,resume}.test.ts",
];

const config = mergeConfig(
  base,
  defineConfig({
    test: {
      env: { LTX_DEVICE: device },
      // Kernels run on the GPU, so that tests can share the machine; on the CPU they are one at a time.
      ...(device.startsWith("cuda") ? { maxWorkers: Math.min(4, availableParallelism()), fileParallelism: true } : {}),
    },
  }),
);
config.test.include = ["test/cuda/**/*.test.ts", ...(reason ? [] : onDevice)];
export default config;
