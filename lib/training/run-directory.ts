/**
 * A run's folder: `run.json` (what runs here), `events.jsonl` (what happened), `checkpoints/`, pictures. One run owns it:
 * another one needs `force`, the same one `resume`.
 */
import { appendFile, mkdir, readdir, readFile, rm, truncate } from "node:fs/promises";
import { join } from "node:path";
import type { RunConfig } from "../config/index.js";
import { LtxError } from "../errors.js";
import { listCheckpoints, verifyCheckpoint } from "../formats/checkpoint.js";
import { save } from "../formats/images.js";
import { exists } from "../formats/paths.js";
import type { TrainEvent } from "./events.js";

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

export class RunDirectory {
  private constructor(
    readonly path: string,
    readonly manifest: RunManifest,
  ) {}

  /**
   * @returns the names in a folder that a new run may take: none, or with `force` those of another run
   * @throws LtxError `file_exists` when the folder is not free, `io` when it cannot be read
   */
  static async checkFree(path: string, force = false): Promise<string[]> {
    const there = await readdir(path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return [] as string[];
      throw new LtxError("io", `[run] cannot use ${path} as a run directory: ${error.message}`, { cause: error });
    });
    const isRun = there.includes("run.json");
    if ((force && isRun) || there.every((name) => LEFTOVER.test(name))) return there;
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
    const { force, version, vae, init } = options;
    for (const name of await RunDirectory.checkFree(path, force))
      await rm(join(path, name), { recursive: true, force: true });
    await mkdir(path, { recursive: true }).catch((cause) => {
      throw new LtxError("io", `[run] cannot create ${path}: ${cause.message}`, { cause });
    });
    const manifest: RunManifest = { format: 1, version, config, vae, init };
    await save(join(path, "run.json"), Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`));
    return new RunDirectory(path, manifest);
  }

  /** Whether a run lives there. */
  static async exists(path: string): Promise<boolean> {
    return exists(join(path, "run.json"));
  }

  /**
   * A run to be continued; what an interrupted write left behind is removed.
   * @throws LtxError `checkpoint` when no run is there
   */
  static async open(path: string): Promise<RunDirectory> {
    let manifest: RunManifest;
    try {
      manifest = JSON.parse(await readFile(join(path, "run.json"), "utf8"));
    } catch (cause) {
      throw new LtxError("checkpoint", `[run] ${path} holds no run to continue (no readable run.json)`, { cause });
    }
    if (manifest.format !== 1 || typeof manifest.config !== "object") {
      throw new LtxError(
        "checkpoint",
        `[run] ${join(path, "run.json")} has format ${manifest.format}, this version reads 1`,
      );
    }
    const directory = new RunDirectory(path, manifest);
    await directory.tidy();
    return directory;
  }

  private async tidy(): Promise<void> {
    for (const folder of [this.path, this.checkpoints]) {
      const names = await readdir(folder).catch(() => [] as string[]);
      for (const name of names.filter((n) => LEFTOVER.test(n)))
        await rm(join(folder, name), { recursive: true, force: true });
    }
    const log = this.file("events.jsonl");
    const text = await readFile(log).catch(() => Buffer.alloc(0));
    const whole = text.lastIndexOf("\n") + 1;
    if (whole < text.length) await truncate(log, whole);
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
    await appendFile(path, events.map((event) => `${JSON.stringify(event)}\n`).join("")).catch((cause) => {
      throw new LtxError("io", `[run] cannot write ${path}: ${cause.message}`, { cause });
    });
  }

  /** Steps so far; where a resumed run repeated some, the later ones count. */
  async steps(): Promise<Extract<TrainEvent, { type: "step" }>[]> {
    const text = await readFile(this.file("events.jsonl"), "utf8").catch(() => "");
    const byStep = new Map<number, Extract<TrainEvent, { type: "step" }>>();
    for (const line of text.split("\n")) {
      if (!line.startsWith('{"type":"step"') || !line.endsWith("}")) continue;
      const event = JSON.parse(line);
      byStep.set(event.step, event);
    }
    return [...byStep.values()].sort((a, b) => a.step - b.step);
  }
}
