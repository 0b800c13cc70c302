import { stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { LtxError } from "../errors.js";
import { listCheckpoints, MANIFEST_FILE, MODEL_FILE, verifyCheckpoint } from "../formats/checkpoint.js";

/**
 * The model file that a path means: a safetensors or PyTorch file, a checkpoint's folder, or a run's folder (its newest
 * checkpoint; of a quickstart, that of the stage).
 * @throws LtxError `checkpoint` when nothing is there or the files are damaged
 */
export async function findModelFile(path: string, stage: "vae" | "flow"): Promise<string> {
  const info = await stat(path).catch((cause) => {
    throw new LtxError("checkpoint", `[checkpoint] ${path} does not exist`, { cause });
  });
  if (info.isFile()) {
    const inCheckpoint =
      basename(path) === MODEL_FILE && (await stat(join(dirname(path), MANIFEST_FILE)).catch(() => null));
    if (inCheckpoint) await verifyCheckpoint(dirname(path));
    return path;
  }
  for (const folder of [path, join(path, stage)]) {
    const checkpoints = await listCheckpoints(join(folder, "checkpoints"));
    const newest = checkpoints[checkpoints.length - 1];
    if (newest) {
      await verifyCheckpoint(newest.path);
      return join(newest.path, MODEL_FILE);
    }
  }
  if (await stat(join(path, MODEL_FILE)).catch(() => null)) {
    await verifyCheckpoint(path);
    return join(path, MODEL_FILE);
  }
  throw new LtxError("checkpoint", `[checkpoint] ${path} holds no complete checkpoint of a ${stage} run`);
}
