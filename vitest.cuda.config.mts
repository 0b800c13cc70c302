import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { configDefaults, defineConfig, mergeConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";
import base from "./vitest.config.mts";

/**
 * The tests of all that runs on a device, on the one that LTX_DEVICE names, else on cuda: `npm run test:cuda`. Where it
 * can't be used a single test says why, skipped, or failed with LTX_REQUIRE_CUDA=1.
 */
const device = process.env.LTX_DEVICE || "cuda";
const probe = spawnSync(process.execPath, ["--import", "tsx", "test/cuda/probe.ts", device], { encoding: "utf8" });
const reason = probe.status === 0 ? probe.stdout : probe.stderr;
if (reason) console.warn(`Nothing can be tested on ${device}: ${reason}`);

/** In the order in which they run: small things first, so that a run which is cut off has shown the most. */
const folders = ["ops", "tensor", "cuda", "nn", "optim", "losses", "models", "golden", "training"];
const onDevice = ["test/{ops,tensor,nn,optim,models,losses}/**/*.test.ts", "test/golden/golden.test.ts"];
const trainings = "test/training/{flow-trainer,adversarial,gradient-checkpointing,resume}.test.ts";

/** Whole runs draw pictures of samples. An archive of gpu-report may lack what draws them. */
function drawsPictures(): boolean {
  try {
    return Boolean(createRequire(import.meta.url).resolve("sharp"));
  } catch {
    console.warn("Whole trainings are left out: the package sharp is not installed");
    return false;
  }
}

class FoldersInOrder extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification) => folders.findIndex((name) => moduleId.includes(`/test/${name}/`));
    return [...files].sort((a, b) => place(a) - place(b) || a.moduleId.localeCompare(b.moduleId));
  }
}

const config = mergeConfig(
  base,
  defineConfig({
    test: {
      env: { LTX_DEVICE: device },
      sequence: { sequencer: FoldersInOrder },
      // Kernels run on the GPU, so that tests can share the machine; on the CPU they are one at a time.
      ...(device.startsWith("cuda") ? { maxWorkers: Math.min(4, availableParallelism()), fileParallelism: true } : {}),
    },
  }),
);
// A classifier that learns to read is too much for the emulator.
if (device === "emulator") config.test.exclude = [...configDefaults.exclude, "test/models/digit-classifier.test.ts"];
config.test.include = [
  "test/cuda/**/*.test.ts",
  ...(reason ? [] : onDevice),
  ...(reason || !drawsPictures() ? [] : [trainings]),
];
export default config;
