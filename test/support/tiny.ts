/** The smallest runs there are, and the command line as a test calls it. */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parse, stringify } from "yaml";
import { main } from "../../lib/cli/main.js";
import { type FlowRunConfig, parseConfig, type QuickstartConfig, type VaeRunConfig } from "../../lib/config/index.js";
import type { TrainEvent } from "../../lib/training/index.js";
import { root } from "./folder.js";

export { root, testFolder } from "./folder.js";

// Kernels this small are all barrier: threads that spin at it would stop each other on a busy machine.
process.env.OMP_WAIT_POLICY ??= "passive";

export const tinyFile = join(__dirname, "tiny.yaml");

// biome-ignore lint/suspicious/noExplicitAny: a YAML file that tests change at will.
type Loose = any;

/** tiny.yaml as text after a change to its plain object. */
export function tinyYaml(change: (file: Loose) => void = () => {}): string {
  const file = parse(readFileSync(tinyFile, "utf8"));
  change(file);
  return stringify(file);
}

export function tinyConfig(change?: (file: Loose) => void): QuickstartConfig {
  return parseConfig(tinyYaml(change), "tiny.yaml") as QuickstartConfig;
}

export const tinyVae = (change?: (file: Loose) => void): VaeRunConfig => tinyConfig(change).vae;
export const tinyFlow = (change?: (file: Loose) => void): FlowRunConfig => tinyConfig(change).flow;

/** The YAML file of the tiny VAE's run alone. */
export function tinyVaeYaml(change: (file: Loose) => void = () => {}): string {
  const { data, vae } = parse(readFileSync(tinyFile, "utf8"));
  const file = { data, ...vae };
  change(file);
  return stringify(file);
}

/** The YAML file of the tiny transformer's run alone. */
export function tinyFlowYaml(change: (file: Loose) => void = () => {}): string {
  const { data, vae, flow } = parse(readFileSync(tinyFile, "utf8"));
  const { loss_config: _, ...params } = vae.vae_config.params;
  const file = {
    data,
    ...flow,
    diffusion: { ...flow.diffusion, latent_encoder: { target: vae.vae_config.target, params } },
  };
  change(file);
  return stringify(file);
}

export function writeYaml(folder: string, name: string, text: string): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

export interface Outcome {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs the command line in this process. */
export async function call(...argv: string[]): Promise<Outcome> {
  const written = { stdout: "", stderr: "" };
  const streams = ["stdout", "stderr"] as const;
  const before = streams.map((name) => process[name].write);
  for (const name of streams) {
    process[name].write = ((text: string | Uint8Array) => {
      written[name] += text;
      return true;
    }) as typeof process.stdout.write;
  }
  try {
    return { code: await main(argv), ...written };
  } finally {
    for (const [i, name] of streams.entries()) process[name].write = before[i];
  }
}

export interface Started {
  child: ChildProcess;
  done: Promise<Outcome & { signal: NodeJS.Signals | null }>;
}

/** Starts the command line as a process of its own; `shell` is run before it in the same process. */
export function start(argv: string[], options: { onLine?: (line: string) => void; shell?: string } = {}): Started {
  const script = join(root, "test", "support", "run-cli.ts");
  const command = [process.execPath, "--import", "tsx", script, ...argv];
  const [file, ...args] = options.shell ? ["bash", "-c", `${options.shell}; exec "$@"`, "bash", ...command] : command;
  const child = spawn(file, args, { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
  const done = new Promise<Outcome & { signal: NodeJS.Signals | null }>((resolve, reject) => {
    let stdout = "";
    let stderr = "";
    let seen = 0;
    child.stdout.on("data", (chunk) => {
      stdout += chunk;
      for (let end = stdout.indexOf("\n", seen); end >= 0; end = stdout.indexOf("\n", seen)) {
        options.onLine?.(stdout.slice(seen, end));
        seen = end + 1;
      }
    });
    child.stderr.on("data", (chunk) => {
      stderr += chunk;
    });
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
  return { child, done };
}

/** Events of a `--json` run; throws where a line is no JSON. */
export function eventsOf(stdout: string): TrainEvent[] {
  const lines = stdout.split("\n");
  if (lines.pop() !== "") throw new Error("the output does not end with a line's end");
  return lines.map((line) => JSON.parse(line));
}

export async function collect<T>(events: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const event of events) all.push(event);
  return all;
}

/** SHA-256 of each file of the newest checkpoint below a run's stage, and its name. */
export function newestCheckpoint(folder: string): { step: string; model: string; training: string } {
  const names = readdirSync(join(folder, "checkpoints")).filter((name) => name.startsWith("step-"));
  const step = names.sort()[names.length - 1];
  const hash = (file: string) =>
    createHash("sha256")
      .update(readFileSync(join(folder, "checkpoints", step, file)))
      .digest("hex");
  return { step, model: hash("model.safetensors"), training: hash("training.safetensors") };
}
