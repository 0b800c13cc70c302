/** ffmpeg as a child process: the program of that name on the PATH, or the one that LTX_FFMPEG names. */
import { type ChildProcess, type ChildProcessWithoutNullStreams, type StdioOptions, spawn } from "node:child_process";
import type { Readable, Writable } from "node:stream";
import { type ErrorCode, LtxError } from "../../errors.js";

export const INSTALL =
  "install it (Debian and Ubuntu: apt-get install ffmpeg; Fedora: dnf install ffmpeg-free; others: " +
  "https://ffmpeg.org/download.html), or name it by the environment variable LTX_FFMPEG";

/** What of ffmpeg's complaints is kept: the end, where the reason stands. */
const MAX_COMPLAINT = 4000;

export interface FfmpegRun {
  /** What it is for, in messages: `writing a.mp4`. */
  what: string;
  /** What takes ffmpeg's place, in the message when it is missing. */
  instead?: string;
  /** Parts of its standard input. */
  input?: Iterable<Uint8Array>;
  /** Bytes that it finds at `pipe:3`. */
  extra?: Uint8Array;
  /** Takes what it writes to standard output. */
  onOutput?: (chunk: Buffer) => void;
  /** Takes what it writes to `pipe:4`. */
  onSide?: (chunk: Buffer) => void;
  /** Letters of its standard error that are kept, the last ones; 4000 unless given. */
  keep?: number;
  signal?: AbortSignal;
  /** The code of the error when it fails; `file_format` unless given. */
  failure?: ErrorCode;
}

/**
 * Runs ffmpeg until it ends.
 * @returns the end of what it wrote to standard error
 * @throws LtxError `unavailable` when there is none, `failure` with its last words when it fails, `io` when something
 *   ends it from outside, `aborted`
 */
export async function ffmpeg(args: readonly string[], run: FfmpegRun): Promise<string> {
  const { what, input, extra, onOutput = () => {}, onSide, signal, failure = "file_format" } = run;
  if (signal?.aborted) throw aborted(what);
  const program = process.env.LTX_FFMPEG || "ffmpeg";
  const started = start(program, ["-v", "error", "-nostdin", "-y", ...args], run, [
    "pipe",
    "pipe",
    "pipe",
    extra ? "pipe" : "ignore",
    onSide ? "pipe" : "ignore",
  ]);
  // Without a descriptor left for its pipes it has none.
  if (!started.stdin) throw cannotStart(program, run, await new Promise((resolve) => started.on("error", resolve)));
  const child = started as ChildProcessWithoutNullStreams;
  const kill = () => child.kill("SIGKILL");
  signal?.addEventListener("abort", kill, { once: true });
  let complaint = "";
  child.stderr.on("data", (chunk: Buffer) => {
    complaint = (complaint + chunk).slice(-(run.keep ?? MAX_COMPLAINT));
  });
  const ended = new Promise<number | NodeJS.Signals>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => resolve(code ?? (signal as NodeJS.Signals)));
  });
  try {
    // All at once: whoever fails first, the others end with the process.
    const feeding = [feed(child.stdin, input ?? [])];
    if (extra) feeding.push(feed(child.stdio[3] as unknown as Writable, [extra]));
    const draining = [drain(child.stdout, onOutput)];
    if (onSide) draining.push(drain(child.stdio[4] as unknown as Readable, onSide));
    const [end] = await Promise.all([ended, ...draining, ...feeding]);
    if (signal?.aborted) throw aborted(what);
    if (typeof end === "string") {
      const perhaps = end === "SIGKILL" ? ", perhaps by the system for lack of memory" : "";
      throw new LtxError("io", `[ffmpeg] ${what} failed: ffmpeg was ended by the signal ${end}${perhaps}`);
    }
    if (end !== 0) throw new LtxError(failure, `[ffmpeg] ${what} failed: ${lastWords(complaint, end)}`);
    return complaint.trim();
  } catch (cause) {
    kill();
    if (cause instanceof LtxError) throw cause;
    throw cannotStart(program, run, cause as NodeJS.ErrnoException);
  } finally {
    signal?.removeEventListener("abort", kill);
  }
}

function cannotStart(program: string, { what, instead }: FfmpegRun, cause: NodeJS.ErrnoException): LtxError {
  const missing = ["ENOENT", "EACCES", "ENOTDIR"].includes(cause.code ?? "");
  if (!missing) return new LtxError("io", `[ffmpeg] ${what}: ${cause.message}`, { cause });
  const other = instead ? `, or ${instead}` : "";
  const message = `[ffmpeg] ${what} needs ffmpeg, and ${program} was not found: ${INSTALL}${other}`;
  return new LtxError("unavailable", message, { cause });
}

/** Without memory for another process, or with arguments that are too long, Node throws. */
function start(program: string, args: string[], run: FfmpegRun, stdio: StdioOptions): ChildProcess {
  try {
    return spawn(program, args, { stdio });
  } catch (cause) {
    throw cannotStart(program, run, cause as NodeJS.ErrnoException);
  }
}

const aborted = (what: string) => new LtxError("aborted", `[ffmpeg] ${what} was aborted`);

function lastWords(complaint: string, code: number): string {
  const lines = complaint.split("\n").filter((line) => line.trim() !== "");
  return lines.length > 0 ? lines.slice(-3).join("; ") : `it ended with code ${code}`;
}

async function feed(stdin: Writable, parts: Iterable<Uint8Array>): Promise<void> {
  // A process that ends early closes its input: its exit code says why, not the broken pipe.
  let open = true;
  const closed = new Promise<void>((resolve) => {
    const stop = () => {
      open = false;
      resolve();
    };
    stdin.on("error", stop);
    stdin.on("close", stop);
  });
  for (const part of parts) {
    if (!open) return;
    if (!stdin.write(part)) await Promise.race([closed, new Promise((resolve) => stdin.once("drain", resolve))]);
  }
  stdin.end();
}

async function drain(stdout: Readable, onOutput: (chunk: Buffer) => void): Promise<void> {
  for await (const chunk of stdout) onOutput(chunk as Buffer);
}
