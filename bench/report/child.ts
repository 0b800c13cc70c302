import { spawn } from "node:child_process";
import type { WriteStream } from "node:fs";
import { createInterface } from "node:readline";

export interface ChildOptions {
  cwd: string;
  env?: Record<string, string>;
  /** Then it is killed, and all that it started. */
  limitSeconds: number;
  /** Where its standard error goes, and its standard output too unless `onValue` takes it. */
  log: WriteStream;
  /** Takes each line of JSON; what is none, as the last one of a process that was killed, goes to the log. */
  onValue?: (value: unknown) => void;
}

export interface ChildResult {
  /** null when it ended by itself with exit code 0. */
  failure: string | null;
  late: boolean;
  seconds: number;
}

/** Those at work now: the report's own end is theirs. */
const running = new Set<() => void>();
export const killAll = (): void => {
  for (const kill of running) kill();
};

/** Runs a command to its end or its limit. Never rejects. */
export function runChild([program, ...args]: readonly string[], options: ChildOptions): Promise<ChildResult> {
  const { cwd, env, limitSeconds, log, onValue } = options;
  const begun = performance.now();
  return new Promise((resolve) => {
    // A process group of its own: its workers end with it.
    const child = spawn(program, args, {
      cwd,
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    let late = false;
    const kill = () => {
      try {
        if (child.pid) process.kill(-child.pid, "SIGKILL");
      } catch {
        // It is gone already.
      }
    };
    running.add(kill);
    const timer = setTimeout(() => {
      late = true;
      kill();
    }, limitSeconds * 1000);
    let last = "";
    child.stderr.on("data", (chunk) => {
      log.write(chunk);
      last = (last + chunk).slice(-2000);
    });
    const take = (line: string) => {
      const value = parsed(line);
      if (value === undefined) log.write(`${line}\n`);
      else onValue?.(value);
    };
    if (onValue) createInterface({ input: child.stdout }).on("line", take);
    else child.stdout.on("data", (chunk) => log.write(chunk));
    const end = (failure: string | null) => {
      clearTimeout(timer);
      running.delete(kill);
      resolve({ failure, late, seconds: (performance.now() - begun) / 1000 });
    };
    child.on("error", (error) => end(error.message));
    child.on("close", (code, signal) => {
      if (late) end(`cut off after ${limitSeconds.toFixed(0)} s`);
      else if (code === 0) end(null);
      else end(`${signal ?? `exit code ${code}`}: ${complaint(last)}`);
    });
  });
}

/** The line that says what went wrong: a stack's head, else the last one. */
function complaint(text: string): string {
  const lines = text.trim().split("\n");
  return lines.find((line) => /error/i.test(line))?.trim() ?? lines[lines.length - 1];
}

function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
