/**
 * Exclusive use of a run's folder by one process: `run.lock` says which. A lock that a process left behind when it was
 * killed is recognised and taken over: on the same machine by the process's number and the time it started, so that another
 * process of the same number is not taken for it; from elsewhere (another machine or container that sees the folder) by
 * the lock's age, since its holder touches it every few seconds.
 */
import { randomBytes } from "node:crypto";
import { type FileHandle, link, open, readFile, readlink, stat, unlink } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { LtxError } from "../errors.js";
import { temporaryName } from "../formats/atomic-file.js";
import { startOfProcess } from "../formats/process-start.js";

export const LOCK_FILE = "run.lock";

/** Milliseconds between two signs of life. */
const TOUCH_EVERY = 15_000;
/** Milliseconds without one after which a holder elsewhere counts as ended. */
const SILENT_AFTER = 180_000;
/** Whoever takes over a lock that was left behind makes this file first, so that only one does. */
const GUARD_FILE = `.${LOCK_FILE}.taking.tmp`;
/** Milliseconds after which whoever made it was killed. */
const GUARD_AGE = 10_000;
/** How often, and after how many milliseconds, it is tried while another process takes the lock over. */
const TRIES = 100;
const RETRY_AFTER = 20;

interface Holder {
  pid: number;
  host: string;
  /** Of the running system, and of the container: within both a process's number means one process. */
  boot: string;
  namespace: string;
  /** When the process started, in the system's ticks. */
  started: string;
  since: string;
  token: string;
}

const textOf = (path: string): Promise<string> => readFile(path, "utf8").catch(() => "");

async function ownHolder(): Promise<Holder> {
  return {
    pid: process.pid,
    host: hostname(),
    boot: (await textOf("/proc/sys/kernel/random/boot_id")).trim(),
    namespace: await readlink("/proc/self/ns/pid").catch(() => ""),
    started: await startOfProcess(process.pid),
    since: new Date().toISOString(),
    token: randomBytes(8).toString("hex"),
  };
}

/** What is in a lock's file; null where that can't be told. */
function parseHolder(text: string): Holder | null {
  try {
    const value = JSON.parse(text);
    const texts = ["host", "boot", "namespace", "started", "since", "token"];
    return Number.isSafeInteger(value?.pid) && texts.every((key) => typeof value[key] === "string") ? value : null;
  } catch {
    return null;
  }
}

export class RunLock {
  private readonly timer: NodeJS.Timeout;

  private constructor(
    private readonly path: string,
    private readonly file: FileHandle,
    private readonly text: string,
  ) {
    this.timer = setInterval(() => this.touch(), TOUCH_EVERY);
    this.timer.unref();
  }

  /**
   * @throws LtxError `file_exists` naming the process that uses the folder, `io` when no lock can be written
   */
  static async acquire(folder: string): Promise<RunLock> {
    const path = join(folder, LOCK_FILE);
    const temporary = join(folder, temporaryName(LOCK_FILE, "tmp"));
    const own = await ownHolder();
    const text = `${JSON.stringify(own)}\n`;
    let file: FileHandle | null = null;
    try {
      file = await open(temporary, "wx");
      await file.writeFile(text);
      for (let left = TRIES; left > 0; left--) {
        const made = await place(temporary, path, text, file);
        if (made) {
          file = made;
          await unlink(temporary).catch(() => {}); // removed when the run is next opened
          return new RunLock(path, file, text);
        }
        await refuseIfUsed(folder, file);
        if (!(await removeAbandoned(folder, file))) await setTimeout(RETRY_AFTER);
      }
      throw new LtxError("file_exists", `[run] ${folder} is in use: other processes keep taking it`);
    } catch (error) {
      await file?.close().catch(() => {});
      await unlink(temporary).catch(() => {});
      if (error instanceof LtxError) throw error;
      throw new LtxError("io", `[run] cannot lock ${folder}: ${(error as Error).message}`, { cause: error });
    }
  }

  /** @throws LtxError `file_exists` when a process uses the folder */
  static async check(folder: string): Promise<void> {
    await refuseIfUsed(folder, null);
  }

  private async touch(): Promise<void> {
    // Written, not touched: the time is then that of the file's own machine.
    await this.file.write(this.text, 0).catch(() => {});
  }

  async release(): Promise<void> {
    clearInterval(this.timer);
    // Told by the file itself, so that nothing need be read; never that of another process.
    const [own, there] = await Promise.all([this.file.stat().catch(() => null), stat(this.path).catch(() => null)]);
    await this.file.close().catch(() => {});
    if (own && there && own.ino === there.ino && own.dev === there.dev) {
      await unlink(this.path).catch(() => unlink(this.path).catch(() => {}));
    }
  }
}

/** What file systems answer that have no hard links. */
const NO_LINKS = ["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK"];

/**
 * Gives the lock its name, unless another one has it.
 * @returns the lock's open file, or null where there is one already
 */
async function place(temporary: string, path: string, text: string, file: FileHandle): Promise<FileHandle | null> {
  const nullIfThere = (error: NodeJS.ErrnoException): null => {
    if (error.code === "EEXIST") return null;
    throw error;
  };
  try {
    // Whole from the first moment on, and never over another one.
    await link(temporary, path);
    return file;
  } catch (error) {
    if (!NO_LINKS.includes((error as NodeJS.ErrnoException).code ?? "")) return nullIfThere(error as Error);
  }
  const made = await open(path, "wx").catch(nullIfThere);
  if (!made) return null;
  await made.writeFile(text);
  await file.close();
  return made;
}

/** What a lock's file says, and whether its holder still is. */
interface Found {
  holder: Holder | null;
  /** Milliseconds since its last sign of life. */
  silent: number;
  /** Whether its process can be looked at from here. */
  here: boolean;
  used: boolean;
}

/**
 * The lock of a folder, or null where there is none.
 * @param fresh a file just written in the same folder, which tells the time there
 */
async function look(folder: string, fresh: FileHandle | null): Promise<Found | null> {
  const path = join(folder, LOCK_FILE);
  const info = await stat(path).catch(() => null);
  if (!info) return null;
  const holder = parseHolder(await textOf(path));
  const own = await ownHolder();
  const now = fresh ? (await fresh.stat()).mtimeMs : Date.now();
  const silent = now - info.mtimeMs;
  const here = holder !== null && holder.boot !== "" && holder.boot === own.boot && holder.namespace === own.namespace;
  const lives = here && holder.started !== "" && (await startOfProcess(holder.pid)) === holder.started;
  return { holder, silent, here, used: here ? lives : silent < SILENT_AFTER };
}

async function refuseIfUsed(folder: string, fresh: FileHandle | null): Promise<void> {
  const found = await look(folder, fresh);
  if (found?.used) throw new LtxError("file_exists", `[run] ${folder} is in use${described(found)}`);
}

function described({ holder, silent, here }: Found): string {
  const ago = `${Math.max(0, Math.round(silent / 1000))} s ago`;
  const later = `its last sign of life was ${ago}, and ${SILENT_AFTER / 1000} s after it the folder is free`;
  if (!holder) return ` by a process that its ${LOCK_FILE} does not name: ${later}`;
  const { pid, host, since } = holder;
  if (here && pid === process.pid) return `: this process has been training in it since ${since}`;
  const who = `: process ${pid} on ${host} has been training in it since ${since}`;
  return here
    ? `${who}. Wait for it to end, or stop it (kill ${pid}): it will write a checkpoint`
    : `${who}. Wait for it to end, or stop it there: ${later}`;
}

/** Removes a lock that was left behind. @returns false while another process does so */
async function removeAbandoned(folder: string, fresh: FileHandle): Promise<boolean> {
  const guard = join(folder, GUARD_FILE);
  try {
    await (await open(guard, "wx")).close();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    const info = await stat(guard).catch(() => null);
    const now = (await fresh.stat()).mtimeMs;
    if (info && now - info.mtimeMs > GUARD_AGE) await unlink(guard).catch(() => {});
    return false;
  }
  try {
    // Judged again: it may be another one by now.
    const found = await look(folder, fresh);
    if (found && !found.used) await unlink(join(folder, LOCK_FILE));
    return true;
  } finally {
    await unlink(guard).catch(() => {});
  }
}
