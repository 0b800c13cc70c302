/**
 * A run's folder: `run.json` (what runs here), `events.jsonl` (what happened), `checkpoints/`, pictures. One run owns it:
 * another one needs `force`, the same one `resume`.
 */
import { appendFile, mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import type { RunConfig } from "../config/index.js";
import { LtxError } from "../errors.js";
import { save } from "../formats/images.js";
import { listCheckpoints, verifyCheckpoint } from "../formats/checkpoint.js";
import type { TrainEvent } from "./events.js";

export interface RunManifest {
  format: 1;
  version: string;
  config: RunConfig;
}

export class RunDirectory {
  private constructor(
    readonly path: string,
    readonly manifest: RunManifest,
  ) {}

  /**
   * Takes a new or empty folder.
   * @throws LtxError `file_exists` when something is in it and `force` is not set
   */
  static async create(path: string, config: RunConfig, options: { force?: boolean; version: string }): Promise<RunDirectory> {
    const there = await readdir(path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return [] as string[];
      throw new LtxError("io", `[run] cannot use ${path} as a run directory: ${error.message}`, { cause: error });
    });
    if (there.length > 0) {
      const isRun = there.includes("run.json");
      if (!options.force || !isRun) {
        throw new LtxError(
          "file_exists",
          isRun
            ? `[run] ${path} holds another run: continue it with --resume ${path}, replace it with --force, or choose another --out`
            : `[run] ${path} is not empty and holds no run (${there.slice(0, 3).join(", ")}): choose another --out`,
        );
      }
      for (const name of there) await rm(join(path, name), { recursive: true, force: true });
    }
    await mkdir(join(path, "checkpoints"), { recursive: true }).catch((cause) => {
      throw new LtxError("io", `[run] cannot create ${path}: ${cause.message}`, { cause });
    });
    const manifest: RunManifest = { format: 1, version: options.version, config };
    await save(join(path, "run.json"), Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`));
    return new RunDirectory(path, manifest);
  }

  /** @throws LtxError `checkpoint` when no run is there. */
  static async open(path: string): Promise<RunDirectory> {
    let manifest: RunManifest;
    try {
      manifest = JSON.parse(await readFile(join(path, "run.json"), "utf8"));
    } catch (cause) {
      throw new LtxError("checkpoint", `[run] ${path} holds no run to continue (no readable run.json)`, { cause });
    }
    if (manifest.format !== 1 || typeof manifest.config !== "object") {
      throw new LtxError("checkpoint", `[run] ${join(path, "run.json")} has format ${manifest.format}, this version reads 1`);
    }
    return new RunDirectory(path, manifest);
  }

  get checkpoints(): string {
    return join(this.path, "checkpoints");
  }

  file(name: string): string {
    return join(this.path, name);
  }

  /** The newest checkpoint that is whole, or null; damaged ones are passed over with a message to `warn`. */
  async latest(warn: (message: string) => void = () => {}): Promise<{ path: string; step: number } | null> {
    for (const candidate of (await listCheckpoints(this.checkpoints)).reverse()) {
      try {
        await verifyCheckpoint(candidate.path);
        return candidate;
      } catch (error) {
        warn((error as Error).message);
      }
    }
    return null;
  }

  async append(events: readonly TrainEvent[]): Promise<void> {
    if (events.length === 0) return;
    await appendFile(this.file("events.jsonl"), events.map((event) => `${JSON.stringify(event)}\n`).join(""));
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
