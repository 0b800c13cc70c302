/**
 * A run's folder: `run.json` (what runs here), `events.jsonl` (what happened), `checkpoints/`, pictures. One run owns it:
 * another one needs `force`, the same one `resume`.
 */
import { createReadStream } from "node:fs";
import { appendFile, open, readdir, readFile, rm, truncate } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { isDeepStrictEqual } from "node:util";
import type { RunConfig } from "../config/index.js";
import { LtxError } from "../errors.js";
import { listCheckpoints, verifyCheckpoint } from "../formats/checkpoint.js";
import { save } from "../formats/images.js";
import { exists, makeFolder } from "../formats/paths.js";
import type { TrainEvent } from "./events.js";
import { LOCK_FILE, RunLock } from "./run-lock.js";

export interface RunManifest {
  format: 1;
  version: string;
  config: RunConfig;
  /** Of a flow run: where its VAE came from, for a run that is continued before its first checkpoint. */
  vae?: string;
  /** The trained model whose values it started from, for the same case. */
  init?: string;
}

/** What an interrupted write left behind. */
const LEFTOVER = /^\..*\.(tmp|partial)$/;

/** A run's folder, used by this process alone until {@link close}. */
export class RunDirectory {
  private torn = false;

  private constructor(
    readonly path: string,
    private current: RunManifest,
    private readonly lock: RunLock,
  ) {}

  get manifest(): RunManifest {
    return this.current;
  }

  /**
   * @throws LtxError `file_exists` when a new run can't take the folder: it is not empty (with `force`: holds no run), or
   *   in use; `io` when it cannot be read
   */
  static async checkFree(path: string, force = false): Promise<void> {
    await RunDirectory.takeable(path, force);
    // A quickstart's stages may be continued by themselves.
    for (const stage of ["", "vae", "flow"]) await RunLock.check(join(path, stage));
  }

  /** The names in a folder that a new run may take: none, or with `force` those of another run. */
  private static async takeable(path: string, force: boolean): Promise<string[]> {
    const there = await readdir(path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return [] as string[];
      throw new LtxError("io", `[run] cannot use ${path} as a run directory: ${error.message}`, { cause: error });
    });
    const isRun = there.includes("run.json");
    const own = there.filter((name) => name !== LOCK_FILE);
    if ((force && isRun) || own.every((name) => LEFTOVER.test(name))) return own;
    throw new LtxError(
      "file_exists",
      isRun
        ? `[run] ${path} holds another run: continue it with --resume ${path}, replace it with --force, or choose another --out`
        : `[run] ${path} is not empty and holds no run (${there.slice(0, 3).join(", ")}): choose another --out`,
    );
  }

  /**
   * Takes a new or empty folder, or with `force` that of another run, which is removed.
   * @throws LtxError `file_exists`, `io`
   */
  static async create(
    path: string,
    config: RunConfig,
    options: { force?: boolean; version: string; vae?: string; init?: string },
  ): Promise<RunDirectory> {
    const { force = false, version, vae, init } = options;
    await RunDirectory.checkFree(path, force);
    await makeFolder(path).catch((cause) => {
      throw new LtxError("io", `[run] cannot create ${path}: ${cause.message}`, { cause });
    });
    return RunDirectory.locked(path, async (lock) => {
      // Only now nobody else can change what is there.
      for (const name of await RunDirectory.takeable(path, force)) {
        await rm(join(path, name), { recursive: true, force: true });
      }
      const directory = new RunDirectory(path, { format: 1, version, config, vae, init }, lock);
      await directory.write();
      return directory;
    });
  }

  private static async locked(path: string, body: (lock: RunLock) => Promise<RunDirectory>): Promise<RunDirectory> {
    const lock = await RunLock.acquire(path);
    try {
      return await body(lock);
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  private async write(): Promise<void> {
    await save(this.file("run.json"), Buffer.from(`${JSON.stringify(this.current, null, 2)}\n`));
  }

  /** Notes another configuration, with which the run goes on. @throws LtxError `io` */
  async reconfigure(config: RunConfig): Promise<void> {
    this.current = { ...this.current, config };
    await this.write();
  }

  /** Lets others use the folder. */
  async close(): Promise<void> {
    await this.lock.release();
  }

  /** Whether a run lives there. */
  static async exists(path: string): Promise<boolean> {
    return exists(join(path, "run.json"));
  }

  /**
   * A run to be continued; what an interrupted write left behind is removed.
   * @throws LtxError `checkpoint` when no run is there, or its run.json is damaged; `file_exists` when it goes on
   */
  static async open(path: string): Promise<RunDirectory> {
    const manifest = await readManifest(path);
    return RunDirectory.locked(path, async (lock) => {
      const directory = new RunDirectory(path, manifest, lock);
      await directory.tidy();
      return directory;
    });
  }

  private async tidy(): Promise<void> {
    for (const folder of [this.path, this.checkpoints]) {
      const names = await readdir(folder).catch(() => [] as string[]);
      for (const name of names.filter((n) => LEFTOVER.test(n)))
        await rm(join(folder, name), { recursive: true, force: true });
    }
    await cutTornLine(this.file("events.jsonl"));
  }

  get checkpoints(): string {
    return join(this.path, "checkpoints");
  }

  file(name: string): string {
    return join(this.path, name);
  }

  has(name: string): Promise<boolean> {
    return exists(this.file(name));
  }

  /**
   * The newest checkpoint that is whole, or null when none was written yet; damaged ones are passed over with a message
   * to `warn`.
   * @throws LtxError `checkpoint` when all are damaged: a run never silently starts anew
   */
  async latest(warn: (message: string) => void = () => {}): Promise<{ path: string; step: number } | null> {
    const all = await listCheckpoints(this.checkpoints);
    for (const candidate of all.reverse()) {
      try {
        await verifyCheckpoint(candidate.path);
        return candidate;
      } catch (error) {
        warn((error as Error).message);
      }
    }
    if (all.length > 0) {
      throw new LtxError(
        "checkpoint",
        `[run] every checkpoint in ${this.checkpoints} is damaged: restore one of them, or start anew with --force`,
      );
    }
    return null;
  }

  async append(events: readonly TrainEvent[]): Promise<void> {
    if (events.length === 0) return;
    const path = this.file("events.jsonl");
    const text = events.map((event) => `${JSON.stringify(event)}\n`).join("");
    try {
      // An earlier write may have ended in the middle of a line.
      if (this.torn) await cutTornLine(path);
      this.torn = true;
      await appendFile(path, text);
      this.torn = false;
    } catch (cause) {
      throw new LtxError("io", `[run] cannot write ${path}: ${(cause as Error).message}`, { cause });
    }
  }

  /** Number and loss of the steps so far; where a resumed run repeated some, the later ones count. */
  async losses(): Promise<[step: number, loss: number][]> {
    const log = this.file("events.jsonl");
    const byStep = new Map<number, number>();
    if (!(await exists(log))) return [];
    // Line by line: a long run's file is larger than any string may be.
    for await (const line of createInterface({ input: createReadStream(log), crlfDelay: Number.POSITIVE_INFINITY })) {
      const found = line.startsWith('{"type":"step"') ? parseStep(line) : null;
      if (found) byStep.set(...found);
    }
    return [...byStep].sort(([a], [b]) => a - b);
  }
}

/** Null for a line that a full disk, or an editor, has damaged. */
function parseStep(line: string): [number, number] | null {
  try {
    const { step, loss } = JSON.parse(line);
    return Number.isSafeInteger(step) && typeof loss === "number" ? [step, loss] : null;
  } catch {
    return null;
  }
}

/** Shortens a file to its last line's end, by looking at its end alone. */
async function cutTornLine(path: string): Promise<void> {
  const file = await open(path, "r").catch(() => null);
  if (!file) return;
  let whole = 0;
  let size = 0;
  try {
    ({ size } = await file.stat());
    const part = Buffer.alloc(1 << 16);
    for (let end = size; end > 0 && whole === 0; ) {
      const from = Math.max(0, end - part.length);
      const { bytesRead } = await file.read(part, 0, end - from, from);
      whole = from + part.subarray(0, bytesRead).lastIndexOf("\n") + 1;
      if (whole === from) whole = 0;
      end = from;
    }
  } finally {
    await file.close();
  }
  if (whole < size) await truncate(path, whole);
}

async function readManifest(path: string): Promise<RunManifest> {
  const file = join(path, "run.json");
  const fault = (reason: string, cause?: unknown) =>
    new LtxError("checkpoint", `[run] ${file} ${reason}: restore it, or start anew with --force`, { cause });
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (cause) {
    throw new LtxError("checkpoint", `[run] ${path} holds no run to continue (no readable run.json)`, { cause });
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw fault("is damaged: it is no JSON", cause);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw fault("is damaged: it holds no object");
  }
  const { format, version, config, vae, init } = value as Record<string, unknown>;
  if (format !== 1) {
    throw new LtxError("checkpoint", `[run] ${file} has format ${JSON.stringify(format)}, this version reads 1`);
  }
  for (const [name, given] of Object.entries({ vae, init })) {
    if (given !== undefined && typeof given !== "string") throw fault(`is damaged: ${name} is no path`);
  }
  const { parseRunConfig } = await import("../config/stored.js");
  const parsed = parseRunConfig(config, file);
  // As it was written, unless something had to be filled in: checkpoints hold it, and are to be the same to the byte.
  const whole = isDeepStrictEqual(JSON.parse(JSON.stringify(parsed)), config);
  return {
    format,
    version: String(version),
    config: whole ? (config as RunConfig) : parsed,
    vae: vae as string | undefined,
    init: init as string | undefined,
  };
}
