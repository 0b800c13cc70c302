import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { loadConfig } from "../../lib/config/index.js";
import { RunDirectory } from "../../lib/training/run-directory.js";

describe("run directory", () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "ltx-run-"));
  });
  afterEach(() => rm(folder, { recursive: true, force: true }));

  it("refuses to start anew when every checkpoint is damaged", async () => {
    const config = await loadConfig(join(__dirname, "..", "support", "tiny.yaml"));
    const run = await RunDirectory.create(join(folder, "run"), config, { version: "0" });
    expect(await run.latest()).toBeNull();
    await mkdir(join(run.checkpoints, "step-00000003"), { recursive: true });
    const warnings: string[] = [];
    await expect(run.latest((message) => warnings.push(message))).rejects.toMatchObject({
      code: "checkpoint",
      message: expect.stringContaining("every checkpoint in"),
    });
    expect(warnings).toEqual([expect.stringContaining("step-00000003 has no readable manifest.json")]);
  });
});
