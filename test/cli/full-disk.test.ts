/** A disk that fills up while a run writes. */
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { readSafetensors } from "../../lib/formats/safetensors.js";
import { call, eventsOf, start, testFolder, tinyFile, tinyVaeYaml, writeYaml } from "../support/tiny.js";

const folder = testFolder();

it("ends with a message when a file may not grow, and leaves no half checkpoint", async () => {
  const run = join(folder, "limited");
  // 300 KiB: the model's file fits, the optimizer's does not. The signal that comes with the limit is ignored, as for a
  // quota: the write fails with EFBIG.
  const shell = "trap '' XFSZ; ulimit -f 300";
  const ended = await start(["train", "--config", tinyFile, "--out", run, "--json"], { shell }).done;
  expect(ended.code).toBe(1);
  expect(ended.stderr).toMatch(
    /^ltx-native: \[checkpoint\] cannot write .*step-00000004: EFBIG: file too large, write; earlier checkpoints are untouched\n$/,
  );
  expect(readdirSync(join(run, "vae", "checkpoints"))).toEqual([]);
  expect(eventsOf(ended.stdout).filter(({ type }) => type === "step")).toHaveLength(4);
  // With room again the run goes on.
  expect((await call("train", "--resume", run)).code).toBe(0);
});

describe("a small file system", () => {
  const disk = join(folder, "disk");
  let mounted = false;
  try {
    mkdirSync(disk);
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], { stdio: "ignore" });
    mounted = true;
  } catch {
    // Told below.
  }
  afterAll(() => {
    if (mounted) execFileSync("umount", [disk]);
  });

  it.skipIf(!mounted)(
    `keeps the last good checkpoint when it is full${mounted ? "" : " (skipped: only root may mount a file system)"}`,
    async () => {
      const run = join(disk, "run");
      // A checkpoint has 575 kB: the second does not fit beside the first.
      const config = writeYaml(folder, "vae.yaml", tinyVaeYaml());
      const { code, stderr } = await call("train", "--config", config, "--out", run);
      expect(stderr.replace(/^\d+\/12 vae .*\n/gm, "")).toMatch(
        /^ltx-native: \[checkpoint\] cannot write .*step-00000008: ENOSPC: no space left on device, write; earlier checkpoints are untouched\n$/,
      );
      expect(code).toBe(1);
      expect(readdirSync(join(run, "checkpoints"))).toEqual(["step-00000004"]);
      const model = await readSafetensors(join(run, "checkpoints", "step-00000004", "model.safetensors"));
      expect(model.tensors.size).toBeGreaterThan(10);
      await model.close();
      const out = join(folder, "pictures");
      expect((await call("reconstruct", "--checkpoint", run, "--out", out)).code).toBe(0);
      // On a larger disk the run goes on from there.
      execFileSync("mount", ["-o", "remount,size=16m", disk]);
      const resumed = await call("train", "--resume", run, "--json");
      expect(resumed.code).toBe(0);
      expect(eventsOf(resumed.stdout)[0]).toMatchObject({ type: "start", step: 4 });
    },
  );
});
