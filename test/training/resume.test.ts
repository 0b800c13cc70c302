import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { PhiloxRandom } from "../../lib/data/philox.js";
import { call, eventsOf, newestCheckpoint, start, testFolder, tinyFile, tinyYaml, writeYaml } from "../support/tiny.js";

const folder = testFolder();
const stages = ["vae", "flow"] as const;
type State = Record<(typeof stages)[number], ReturnType<typeof newestCheckpoint>>;
const stateOf = (run: string): State => ({
  vae: newestCheckpoint(join(run, "vae")),
  flow: newestCheckpoint(join(run, "flow")),
});

let whole: State;
beforeAll(async () => {
  const done = await call("train", "--config", tinyFile, "--out", join(folder, "whole"));
  expect(done).toMatchObject({ code: 0, stderr: "" });
  whole = stateOf(join(folder, "whole"));
});

/** Starts a run and sends the signal when an event is reached; resolves with how it ended. */
async function interrupt(
  run: string,
  signal: NodeJS.Signals,
  at: (event: Record<string, unknown>) => boolean,
  argv?: string[],
) {
  let sent = false;
  const started = start(argv ?? ["train", "--config", tinyFile, "--out", run, "--json"], {
    onLine: (line) => {
      if (sent || !at(JSON.parse(line))) return;
      sent = true;
      started.child.kill(signal);
    },
  });
  const ended = await started.done;
  expect(sent).toBe(true);
  return ended;
}

const atStep = (stage: string, step: number) => (e: Record<string, unknown>) =>
  e.type === "step" && e.stage === stage && e.step === step;

async function expectResumed(run: string) {
  const resumed = await call("train", "--resume", run, "--json");
  expect(resumed).toMatchObject({ code: 0, stderr: "" });
  expect(stateOf(run)).toEqual(whole);
  for (const name of ["vae/reconstructions.gif", "vae/loss.png", "flow/samples.gif", "flow/loss.png"]) {
    expect(readFileSync(join(run, name))).toEqual(readFileSync(join(folder, "whole", name)));
  }
  return eventsOf(resumed.stdout);
}

describe("a killed run", () => {
  // Any step will do; a new one each time unless LTX_TEST_SEED says otherwise, which is told in the test's name.
  const seed = Number(process.env.LTX_TEST_SEED ?? Math.floor(Math.random() * 1e6));
  const drawn = new PhiloxRandom(seed, 0, 0);
  const random = () => 1 + drawn.int(11);
  for (const stage of stages) {
    const step = random();
    it(`continues to the same bits after kill -9 at ${stage} step ${step} (LTX_TEST_SEED=${seed})`, async () => {
      const run = join(folder, `kill-${stage}`);
      expect(await interrupt(run, "SIGKILL", atStep(stage, step))).toMatchObject({ code: null, signal: "SIGKILL" });
      await expectResumed(run);
    });
  }

  it("continues to the same bits when it is killed twice in one stage", async () => {
    const run = join(folder, "twice");
    await interrupt(run, "SIGKILL", atStep("flow", 5));
    await interrupt(run, "SIGKILL", atStep("flow", 10), ["train", "--resume", run, "--json"]);
    const events = await expectResumed(run);
    expect(events[0]).toMatchObject({ type: "start", stage: "flow", step: 8, steps: 12 });
  });

  it("encodes the latents anew when it is killed while encoding them", async () => {
    const run = join(folder, "latents");
    await interrupt(run, "SIGKILL", (event) => event.type === "prepare");
    const cached = existsSync(join(run, "flow", "latents.safetensors"));
    // As a kill in the middle of writing the cache leaves it.
    writeFileSync(join(run, "flow", ".latents.safetensors.123.abcd.tmp"), "half");
    const events = await expectResumed(run);
    expect(events.some((event) => event.type === "prepare")).toBe(!cached);
    expect(readdirSync(join(run, "flow")).filter((name) => name.startsWith("."))).toEqual([]);
  });

  it("ignores and removes a checkpoint whose writing was cut off", async () => {
    const run = join(folder, "partial");
    await interrupt(run, "SIGKILL", atStep("vae", 6));
    const checkpoints = join(run, "vae", "checkpoints");
    const partial = join(checkpoints, ".step-00000006.partial");
    mkdirSync(partial);
    const bytes = readFileSync(join(checkpoints, "step-00000004", "model.safetensors"));
    writeFileSync(join(partial, "model.safetensors"), bytes.subarray(0, bytes.length / 2));
    const events = await expectResumed(run);
    expect(events[0]).toMatchObject({ type: "start", stage: "vae", step: 4 });
    expect(readdirSync(checkpoints).sort()).toEqual(["step-00000008", "step-00000012"]);
  });

  it("cuts off a torn last line of events.jsonl", async () => {
    const run = join(folder, "torn");
    await interrupt(run, "SIGKILL", atStep("vae", 10));
    const log = join(run, "vae", "events.jsonl");
    writeFileSync(log, `${readFileSync(log, "utf8")}{"type":"step","stage":"vae","st`);
    await expectResumed(run);
    const events = eventsOf(readFileSync(log, "utf8"));
    expect(events.filter((event) => event.type === "start").map((event) => event.step)).toEqual([0, 8]);
  });
});

describe("an interrupted run", () => {
  for (const stage of stages) {
    it(`writes a checkpoint on SIGINT in the ${stage} stage, exits with 130 and continues to the same bits`, async () => {
      const run = join(folder, `int-${stage}`);
      const ended = await interrupt(run, "SIGINT", atStep(stage, 5));
      expect(ended).toMatchObject({ code: 130, signal: null });
      expect(ended.stderr).toContain(`continue with: ltx-native train --resume ${run}`);
      const events = eventsOf(ended.stdout);
      const [checkpoint] = events.filter((event) => event.type === "checkpoint").slice(-1);
      const end = events.find((event) => event.type === "end" && event.reason === "aborted");
      expect(end).toMatchObject({ stage });
      expect(checkpoint).toMatchObject({ stage, step: (end as { step: number }).step });
      const resumed = await expectResumed(run);
      expect(resumed[0]).toMatchObject({ type: "start", stage, step: (end as { step: number }).step });
    });
  }

  it("writes a checkpoint when it is interrupted while drawing samples", async () => {
    const run = join(folder, "int-sample");
    // The step before the samples is told before they are drawn; 400 sampling steps leave time for the signal.
    const config = writeYaml(
      folder,
      "long.yaml",
      tinyYaml((file) => {
        file.flow.diffusion.sampling.steps = 400;
      }),
    );
    const ended = await interrupt(run, "SIGINT", atStep("flow", 6), [
      "train",
      "--config",
      config,
      "--out",
      run,
      "--json",
    ]);
    expect(ended.code).toBe(130);
    const events = eventsOf(ended.stdout);
    expect(
      events.filter((event) => event.type === "picture" && event.stage === "flow" && event.what !== "loss"),
    ).toEqual([]);
    const last = newestCheckpoint(join(run, "flow")).step;
    expect(["step-00000006", "step-00000007"]).toContain(last);
  });
});

describe("a finished run", () => {
  it("has nothing left to do", async () => {
    const done = await call("train", "--resume", join(folder, "whole"));
    expect(done).toEqual({ code: 0, stdout: `nothing left to do in ${join(folder, "whole")}\n`, stderr: "" });
    expect(stateOf(join(folder, "whole"))).toEqual(whole);
  });

  it("is the same whatever the name of the folder, and differs by the seed", async () => {
    const other = join(folder, "seed");
    expect((await call("train", "--config", tinyFile, "--out", other, "--seed", "2")).code).toBe(0);
    expect(stateOf(other).vae.model).not.toBe(whole.vae.model);
    expect(stateOf(other).flow.model).not.toBe(whole.flow.model);
  });
});
