/**
 * A file system that refuses the n-th call of a kind while a run trains in its folder: no room, no permission, damaged
 * disks. Afterwards every checkpoint that is there is whole, nothing half-written lies about, and the run, resumed, ends with
 * the same bytes as without the failure.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { listCheckpoints, verifyCheckpoint } from "../../lib/formats/checkpoint.js";
import { train } from "../../lib/training/index.js";
import { armed, fileSystem, type Point } from "./inject.js";
import { type Context, type FaultKind, filesBelow, isTold, liveBytes, picks, sha256, shown } from "./runner.js";
import { collect, tinyConfig } from "./tiny.js";

/** Checkpoints' files by their hash. */
async function resultOf(run: string): Promise<string> {
  const newest = (await listCheckpoints(join(run, "checkpoints"))).pop();
  if (!newest) return "no checkpoint";
  return ["model", "training"].map((name) => sha256(join(newest.path, `${name}.safetensors`))).join(" ");
}

async function sweep(context: Context, call: string, points: readonly Point[]): Promise<void> {
  const { vae: config } = tinyConfig();
  const begin = (out: string) => collect(train({ out, config }));
  const whole = join(context.folder, `${call}-whole`);
  const { calls } = await armed(points, 0, () => begin(whole));
  const expected = await resultOf(whole);
  for (const at of picks(calls, context.count, context.random)) {
    const run = join(context.folder, `${call}-${at}`);
    const before = await liveBytes();
    const { error, fired } = await armed(points, at, () => begin(run));
    if (!fired) continue;
    context.injected();
    const where = `${call} ${at} of ${calls}`;
    if (error !== undefined && !isTold(error)) context.wrong(`${where}: ${shown(error)}`);
    const left = (await liveBytes()) - before;
    if (left !== 0) context.wrong(`${where}: ${left} bytes left`);
    for (const { path } of await listCheckpoints(join(run, "checkpoints"))) {
      await verifyCheckpoint(path).catch((damage) => context.wrong(`${where}: ${shown(damage)}`));
    }
    const again = existsSync(join(run, "run.json")) ? () => collect(train({ out: run })) : () => begin(run);
    await again().catch((later) => context.wrong(`${where}: resumed, ${shown(later)}`));
    if ((await resultOf(run)) !== expected) context.wrong(`${where}: the resumed run ended with other bytes`);
    const litter = filesBelow(run).filter((name) => /(^|\/)\.|run\.lock/.test(name));
    if (litter.length > 0) context.wrong(`${where}: left ${litter.join(", ")}`);
  }
}

export const fileKinds: readonly FaultKind[] = ["open", "write", "fsync", "rename", "remove", "read"].map((call) => ({
  name: `run-${call}`,
  what: `a run's file system that refuses to ${call}`,
  run: async (context) => sweep(context, call, (await fileSystem())[call]),
}));
