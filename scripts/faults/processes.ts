/** Whole processes that end, or meet: kill -9 at any moment of a run, and two runs in one folder. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { listCheckpoints, verifyCheckpoint } from "../../lib/formats/checkpoint.js";
import { type Context, type FaultKind, filesBelow, sha256, shown } from "./runner.js";
import { tinyYaml } from "./tiny.js";

const root = join(__dirname, "..", "..");
/** Runs whose killing takes seconds each are tried less often. */
const share = (count: number) => Math.max(2, Math.ceil(count / 2));

interface Started {
  child: ChildProcess;
  /** Resolves with the first event on standard output. */
  speaks: Promise<void>;
  done: Promise<{ code: number | null; signal: NodeJS.Signals | null; stderr: string }>;
}

function start(...argv: string[]): Started {
  const script = join(root, "test", "support", "run-cli.ts");
  const child = spawn(process.execPath, ["--import", "tsx", script, "train", "--json", ...argv], {
    cwd: root,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, OMP_WAIT_POLICY: "passive" },
  });
  let stderr = "";
  child.stderr?.on("data", (chunk) => {
    stderr += chunk;
  });
  const done: Started["done"] = new Promise((resolve) => {
    child.on("close", (code, signal) => resolve({ code, signal, stderr }));
  });
  const speaks = new Promise<void>((resolve) => {
    child.stdout?.once("data", () => resolve());
    child.on("close", () => resolve());
  });
  child.stdout?.resume();
  return { child, speaks, done };
}

async function checkpointsOf(run: string): Promise<{ path: string; step: number }[]> {
  const all = await Promise.all(["vae", "flow"].map((stage) => listCheckpoints(join(run, stage, "checkpoints"))));
  return all.flat();
}

async function resultOf(run: string): Promise<string> {
  const newest = (await checkpointsOf(run)).filter(({ step }) => step === 4);
  return newest
    .map(({ path }) => ["model", "training"].map((name) => sha256(join(path, `${name}.safetensors`))))
    .join();
}

/** Every step writes a checkpoint, so that most kills come in the middle of one. */
function configure(context: Context): string {
  const file = join(context.folder, "tiny.yaml");
  const text = tinyYaml(({ vae, flow }) => {
    for (const { training } of [vae, flow]) training.save_every = 1;
  });
  writeFileSync(file, text);
  return file;
}

async function finish(context: Context, config: string, run: string, expected: string, where: string): Promise<void> {
  const begun = existsSync(join(run, "run.json"));
  const ended = await start(...(begun ? ["--resume", run] : ["--config", config, "--out", run])).done;
  if (ended.code !== 0)
    context.wrong(`${where}: resumed, it ended with ${ended.code ?? ended.signal}: ${ended.stderr}`);
  if ((await resultOf(run)) !== expected) context.wrong(`${where}: the resumed run ended with other bytes`);
  const litter = filesBelow(run).filter((name) => /(^|\/)\.|run\.lock/.test(name));
  if (litter.length > 0) context.wrong(`${where}: left ${litter.join(", ")}`);
}

const kill: FaultKind = {
  name: "kill",
  what: "kill -9 at any moment, most of them in the middle of writing a checkpoint",
  async run(context) {
    const config = configure(context);
    const whole = join(context.folder, "whole");
    const begun = performance.now();
    const first = start("--config", config, "--out", whole);
    await first.speaks;
    const spoke = performance.now();
    const ended = await first.done;
    if (ended.code !== 0) throw new Error(`a run without faults ended with ${ended.code}: ${ended.stderr}`);
    const span = performance.now() - spoke;
    context.say(`a run takes ${((performance.now() - begun) / 1000).toFixed(1)} s`);
    const expected = await resultOf(whole);
    for (let i = 0; i < share(context.count); i++) {
      const run = join(context.folder, `run-${i}`);
      const started = start("--config", config, "--out", run);
      await started.speaks;
      const after = context.random() * span;
      await setTimeout(after);
      started.child.kill("SIGKILL");
      const killed = await started.done;
      if (killed.signal !== "SIGKILL") continue; // it was faster
      context.injected();
      const where = `kill ${after.toFixed(0)} ms after the first event`;
      for (const { path } of await checkpointsOf(run)) {
        await verifyCheckpoint(path).catch((damage) => context.wrong(`${where}: ${shown(damage)}`));
      }
      await finish(context, config, run, expected, where);
    }
  },
};

const together: FaultKind = {
  name: "two-processes",
  what: "a second process that resumes, replaces or begins a run in a folder in use",
  async run(context) {
    const config = configure(context);
    const whole = join(context.folder, "whole");
    await start("--config", config, "--out", whole).done;
    const expected = await resultOf(whole);
    for (let i = 0; i < share(context.count); i++) {
      const run = join(context.folder, `run-${i}`);
      const anew = ["--config", config, "--out", run];
      const [first, others] = [start(...anew), [["--resume", run], [...anew, "--force"], anew]];
      // Both at once at first, then while the other trains.
      if (i > 0) await first.speaks;
      const second = start(...(i === 0 ? anew : others[i % others.length]));
      const [one, two] = await Promise.all([first.done, second.done]);
      context.injected();
      const where = `pair ${i}`;
      const codes = [one.code, two.code].sort();
      const refusal = one.code === 2 ? one.stderr : two.stderr;
      if (codes.join() !== "0,2")
        context.wrong(`${where}: ended with ${codes.join(" and ")}: ${one.stderr}${two.stderr}`);
      else if (!/is in use|holds another run/.test(refusal)) context.wrong(`${where}: refused by ${refusal}`);
      if ((await resultOf(run)) !== expected) context.wrong(`${where}: the run ended with other bytes`);
    }
  },
};

export const processKinds: readonly FaultKind[] = [kill, together];
