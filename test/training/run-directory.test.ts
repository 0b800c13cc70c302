import { existsSync, mkdirSync, readdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { loadConfig } from "../../lib/config/index.js";
import { RunDirectory } from "../../lib/training/run-directory.js";
import { RunLock } from "../../lib/training/run-lock.js";
import { call, start, testFolder, tinyFile } from "../support/tiny.js";

const folder = testFolder();
let made = 0;
const opened: { close(): Promise<void> }[] = [];
afterEach(async () => {
  for (const directory of opened.splice(0)) await directory.close();
});

const config = () => loadConfig(tinyFile);
const fresh = () => join(folder, `run-${made++}`);

async function create(path = fresh()): Promise<RunDirectory> {
  const directory = await RunDirectory.create(path, await config(), { version: "0" });
  opened.push(directory);
  return directory;
}

async function open(path: string): Promise<RunDirectory> {
  const directory = await RunDirectory.open(path);
  opened.push(directory);
  return directory;
}

describe("run directory", () => {
  it("refuses to start anew when every checkpoint is damaged", async () => {
    const run = await create();
    expect(await run.latest()).toBeNull();
    mkdirSync(join(run.checkpoints, "step-00000003"), { recursive: true });
    const warnings: string[] = [];
    await expect(run.latest((message) => warnings.push(message))).rejects.toMatchObject({
      code: "checkpoint",
      message: expect.stringContaining("every checkpoint in"),
    });
    expect(warnings).toEqual([expect.stringContaining("step-00000003 has no readable manifest.json")]);
  });

  it("gives back the configuration that it was made with, to the order of its keys", async () => {
    const run = await create();
    await run.close();
    const again = await open(run.path);
    expect(JSON.stringify(again.manifest.config)).toBe(JSON.stringify(await config()));
  });

  const damages: [string, unknown, string][] = [
    ["nothing", null, "holds no object"],
    ["a list", [1], "holds no object"],
    ["another format", { format: 2 }, "has format 2, this version reads 1"],
    ["no configuration", { format: 1, version: "0" }, "its configuration cannot be read"],
    ["an empty configuration", { format: 1, config: {} }, "its configuration cannot be read"],
    ["null for the configuration", { format: 1, config: null }, "its configuration cannot be read"],
    ["a kind that there is not", { format: 1, config: { kind: "VAE" } }, "kind"],
    ["a kind without its sections", { format: 1, config: { kind: "flow" } }, "its configuration cannot be read"],
    ["a quickstart of two VAEs", { format: 1, config: { kind: "quickstart", vae: 1, flow: 2 } }, "cannot be read"],
    ["a path that is a number", { format: 1, vae: 3 }, "vae is no path"],
  ];
  for (const [name, manifest, message] of damages) {
    it(`says what is wrong with a run.json with ${name}`, async () => {
      const path = fresh();
      mkdirSync(path);
      writeFileSync(join(path, "run.json"), JSON.stringify(manifest));
      await expect(RunDirectory.open(path)).rejects.toMatchObject({
        code: "checkpoint",
        message: expect.stringContaining(message),
      });
      const { code, stderr } = await call("train", "--resume", path);
      expect(code).toBe(1);
      expect(stderr).toMatch(/^ltx-native: \[.*\n$/);
      expect(readdirSync(path)).toEqual(["run.json"]);
    });
  }

  it("says where no folder can be made", async () => {
    // Nobody may make folders there, root neither.
    await expect(create("/proc/ltx-native/run")).rejects.toMatchObject({
      code: "io",
      message: expect.stringMatching(
        /^\[run\] cannot create \/proc\/ltx-native\/run: E[A-Z]+: .*mkdir '\/proc\/ltx-native'$/,
      ),
    });
  });

  it("draws the losses of a log with damaged lines, the later of repeated steps", async () => {
    const run = await create();
    const step = (step: number, loss: unknown) => JSON.stringify({ type: "step", step, loss });
    const lines = [step(1, 5), step(2, 4), '{"type":"step","st', step(3, "high"), "{}", step(2, 3), ""];
    writeFileSync(run.file("events.jsonl"), lines.join("\n"));
    expect(await run.losses()).toEqual([
      [1, 5],
      [2, 3],
    ]);
  });

  it("cuts off a torn last line, however long it is and whatever is before it", async () => {
    const run = await create();
    const log = run.file("events.jsonl");
    await run.close();
    for (const whole of ["", "{}\n", `${"x".repeat(1 << 17)}\n{}\n`]) {
      for (const torn of ["", "{", "y".repeat(200_000)]) {
        writeFileSync(log, whole + torn);
        await (await RunDirectory.open(run.path)).close();
        expect(readFileSync(log, "utf8")).toBe(whole);
      }
    }
  });
});

describe("the lock of a run", () => {
  const holder = (path: string) => JSON.parse(readFileSync(join(path, "run.lock"), "utf8"));
  const leave = (path: string, changes: object, age = 0) => {
    writeFileSync(join(path, "run.lock"), JSON.stringify({ ...holder(path), ...changes }));
    const time = Date.now() / 1000 - age;
    utimesSync(join(path, "run.lock"), time, time);
  };
  /** A run's folder with the lock of its own process in it, which nobody holds open any more. */
  async function left(): Promise<string> {
    const run = await create();
    const text = readFileSync(join(run.path, "run.lock"));
    await run.close();
    writeFileSync(join(run.path, "run.lock"), text);
    return run.path;
  }

  it("names the process that holds it, and is gone with it", async () => {
    const run = await create();
    expect(holder(run.path)).toMatchObject({ pid: process.pid, host: hostname() });
    await expect(RunDirectory.open(run.path)).rejects.toMatchObject({
      code: "file_exists",
      message: expect.stringContaining("is in use: this process has been training in it since 2"),
    });
    await run.close();
    expect(existsSync(join(run.path, "run.lock"))).toBe(false);
    expect((await open(run.path)).path).toBe(run.path);
  });

  it("keeps --force from removing what is in use, and other runs from beginning there", async () => {
    const run = await create();
    for (const more of [["--force"], []]) {
      const { code, stderr } = await call("train", "--config", tinyFile, "--out", run.path, ...more);
      expect(code).toBe(2);
      expect(stderr).toContain(more.length > 0 ? "is in use" : "holds another run");
    }
    expect(existsSync(run.file("run.json"))).toBe(true);
  });

  it("keeps --force away from a quickstart of which a stage is in use", async () => {
    const run = await create();
    await run.close();
    const stage = await create(join(run.path, "flow"));
    const { code, stderr } = await call("train", "--config", tinyFile, "--out", run.path, "--force");
    expect({ code, stderr }).toEqual({ code: 2, stderr: expect.stringContaining(`${stage.path} is in use`) });
  });

  it("is taken over from a process that is gone, and from one whose number another one has now", async () => {
    for (const changes of [{ pid: 2 ** 22 + 1 }, { pid: process.ppid, started: "1" }, { started: "12" }]) {
      const path = await left();
      leave(path, changes);
      const run = await open(path);
      expect(holder(path)).toMatchObject({ pid: process.pid });
      expect(readdirSync(path).filter((name) => name.startsWith("."))).toEqual([]);
      await run.close();
    }
  });

  it("is not taken from a living process, even if that has not touched it for hours", async () => {
    const path = await left();
    leave(path, { token: "another" }, 20_000);
    await expect(open(path)).rejects.toMatchObject({ code: "file_exists" });
  });

  it.each([
    ["another machine", { host: "elsewhere", boot: "b" }],
    ["another container of this machine", { namespace: "pid:[1]" }],
  ])("is taken from %s only after minutes without a sign of life", async (_, changes) => {
    const path = await left();
    leave(path, changes, 60);
    await expect(open(path)).rejects.toMatchObject({
      code: "file_exists",
      message: expect.stringMatching(/is in use: process \d+ on .*last sign of life was (59|6\d) s ago/),
    });
    leave(path, changes, 600);
    expect((await open(path)).path).toBe(path);
  });

  it.each(["", "{}", '{"pid":"x"}', "null"])("that holds %j counts until it is old", async (text) => {
    const path = await left();
    writeFileSync(join(path, "run.lock"), text);
    await expect(open(path)).rejects.toMatchObject({ code: "file_exists" });
    utimesSync(join(path, "run.lock"), 1, 1);
    expect((await open(path)).path).toBe(path);
  });

  it("goes to exactly one of many who find it left behind", async () => {
    const path = await left();
    leave(path, { pid: 2 ** 22 + 1 });
    const tries = await Promise.allSettled(Array.from({ length: 16 }, () => RunLock.acquire(path)));
    const locks = tries.flatMap((it) => (it.status === "fulfilled" ? [it.value] : []));
    expect(locks).toHaveLength(1);
    for (const it of tries) if (it.status === "rejected") expect(it.reason).toMatchObject({ code: "file_exists" });
    await locks[0].release();
    expect(readdirSync(path)).toEqual(["run.json"]);
  });

  it("lets a running training be neither resumed nor replaced, which goes on unharmed", async () => {
    const path = fresh();
    let second: Promise<{ code: number | null; stderr: string }> | null = null;
    const first = start(["train", "--config", tinyFile, "--out", path, "--json"], {
      onLine: (line) => {
        if (JSON.parse(line).type === "step") second ??= call("train", "--resume", path);
      },
    });
    const ended = await first.done;
    const refused = await (second as unknown as Promise<{ code: number | null; stderr: string }>);
    expect(refused.code).toBe(2);
    expect(refused.stderr).toContain(`is in use: process ${first.child.pid} on ${hostname()} has been training in it`);
    expect(ended).toMatchObject({ code: 0, stderr: "" });
  });
});
