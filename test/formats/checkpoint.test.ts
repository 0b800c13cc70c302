import { chmodSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import fs from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { writeFileAtomic } from "../../lib/formats/atomic-file.js";
import { checkRoom, listCheckpoints, saveCheckpoint, verifyCheckpoint } from "../../lib/formats/checkpoint.js";
import { testFolder } from "../support/folder.js";

const folder = testFolder();
/** Makes what was spied on in node:fs/promises hold for those who import its functions by name. */
const pass = () => syncBuiltinESMExports();
const restore = () => {
  vi.restoreAllMocks();
  pass();
};
afterEach(restore);

const tensor = (name: string, bytes: number) => ({
  name,
  dtype: "U8" as const,
  shape: [bytes],
  data: new Uint8Array(bytes),
});
const contents = (step: number, bytes = 8) => ({
  step,
  model: [tensor("model", bytes)],
  training: [tensor("training", bytes)],
  metadata: {},
});

describe("saveCheckpoint", () => {
  it("leaves the newest ones, and tells of an old one that can't be removed", async () => {
    const place = join(folder, "old");
    for (const step of [1, 2]) await saveCheckpoint(place, contents(step));
    const { rm } = fs;
    vi.spyOn(fs, "rm").mockImplementation(async (path, options) => {
      if (String(path).endsWith("step-00000001")) throw new Error("EBUSY: it is open in a viewer");
      return rm(path, options);
    });
    pass();
    const warnings: string[] = [];
    const path = await saveCheckpoint(place, contents(3), { warn: (message) => warnings.push(message) });
    await verifyCheckpoint(path);
    expect(warnings).toEqual([expect.stringMatching(/the old checkpoint .*step-00000001 could not be removed: EBUSY/)]);
    restore();
    await saveCheckpoint(place, contents(4));
    expect(readdirSync(place)).toEqual(["step-00000003", "step-00000004"]);
  });

  it("of two writers at once leaves one whole checkpoint of each step, and nothing else", async () => {
    const place = join(folder, "two");
    const saving = Array.from({ length: 12 }, (_, i) => saveCheckpoint(place, contents(1 + (i % 2), 100_000)));
    await Promise.all(saving);
    for (const { path } of await listCheckpoints(place)) await verifyCheckpoint(path);
    expect(readdirSync(place)).toEqual(["step-00000001", "step-00000002"]);
  });

  it("removes what a writer of the same step left that was killed, and not what one that lives is writing", async () => {
    const place = join(folder, "killed");
    const names = {
      dead: `.step-00000001.${2 ** 22 + 1}.0123abcd.partial`,
      alive: `.step-00000001.${process.ppid}.0123abcd.partial`,
    };
    for (const name of Object.values(names)) mkdirSync(join(place, name), { recursive: true });
    await saveCheckpoint(place, contents(1));
    expect(readdirSync(place)).toEqual([names.alive, "step-00000001"]);
  });
});

describe("checkRoom", () => {
  it("refuses before the work what does not fit, with both sizes, in a folder that is not there yet too", async () => {
    const large = { ...contents(1), model: [{ ...tensor("model", 0), shape: [2 ** 49] }] };
    await expect(checkRoom(join(folder, "a", "b"), large)).rejects.toMatchObject({
      code: "io",
      message: expect.stringMatching(
        /^\[checkpoint\] a checkpoint takes about 5\.63e\+5 GB, the disk of .* has \d.* free: make room/,
      ),
    });
    await checkRoom(join(folder, "a", "b"), contents(1));
  });

  it("refuses nothing where the file system does not tell", async () => {
    vi.spyOn(fs, "statfs").mockResolvedValue({ blocks: 0, bavail: 0, bsize: 4096 } as Awaited<
      ReturnType<typeof fs.statfs>
    >);
    pass();
    await checkRoom(folder, { ...contents(1), model: [{ ...tensor("model", 0), shape: [2 ** 49] }] });
  });
});

describe("writeFileAtomic", () => {
  it("takes names as long as the file system does", async () => {
    for (const name of ["x".repeat(255), "é".repeat(127)]) {
      await writeFileAtomic(join(folder, name), async (file) => void (await file.write("1")));
      expect(readdirSync(folder)).toContain(name);
    }
  });

  it("names the folder that is missing, and what the file system says elsewhere", async () => {
    const missing = join(folder, "nowhere");
    await expect(writeFileAtomic(join(missing, "x"), async () => {})).rejects.toMatchObject({
      code: "io",
      message: `[write] cannot write ${missing}/x: there is no folder ${missing}`,
    });
    writeFileSync(join(folder, "file"), "");
    chmodSync(join(folder, "file"), 0o600);
    await expect(writeFileAtomic(join(folder, "file", "x"), async () => {})).rejects.toMatchObject({
      message: expect.stringContaining("ENOTDIR"),
    });
  });
});
