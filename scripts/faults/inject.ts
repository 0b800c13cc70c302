/** Failures by count: the n-th call of a function fails as the operating system, or the device, would make it fail. */
import childProcess from "node:child_process";
import fs from "node:fs";
import fsp from "node:fs/promises";
import { packageRoot } from "../../lib/native.js";

/** A function that can be made to fail. */
export interface Point {
  target: object;
  property: string;
  /** Throws, or returns what the failing call returns. */
  fail(args: readonly unknown[]): unknown;
  /** Calls that count; all of them unless given. */
  counts?(args: readonly unknown[]): boolean;
}

export interface Armed {
  /** Calls so far. */
  calls: number;
  /** Whether the failure has come. */
  fired: boolean;
}

/**
 * Runs `body` while the `at`-th call (from 1) of any of the points fails; with 0 they are only counted.
 * @returns what `body` threw, or undefined, and how far the count came
 */
export async function armed(
  points: readonly Point[],
  at: number,
  body: () => unknown,
): Promise<Armed & { error: unknown }> {
  const state: Armed = { calls: 0, fired: false };
  const undo = points.map((point) => {
    const target = point.target as Record<string, (...args: unknown[]) => unknown>;
    const original = target[point.property];
    target[point.property] = function (this: unknown, ...args: unknown[]) {
      if (point.counts?.(args) === false) return original.apply(this, args);
      state.calls++;
      if (state.calls !== at) return original.apply(this, args);
      state.fired = true;
      return point.fail(args);
    };
    return () => {
      target[point.property] = original;
    };
  });
  let error: unknown;
  try {
    await body();
  } catch (thrown) {
    error = thrown ?? new Error("nothing was thrown but a rejection");
  } finally {
    for (const restore of undo) restore();
  }
  return { ...state, error };
}

const addon = (require("node-gyp-build") as (root: string) => object)(packageRoot);

const coded = (code: string, message: string): Error => Object.assign(new Error(message), { code });

/** No memory for a tensor. */
export const allocation: Point = {
  target: addon,
  property: "empty",
  fail: () => {
    throw coded("out_of_memory", "injected: no memory for this tensor");
  },
};

/** Values that can't be brought from the device, and waiting for it. */
export const readBack: readonly Point[] = ["read", "synchronize"].map((property) => ({
  target: addon,
  property,
  fail: () => Promise.reject(coded("native", `injected: ${property} failed`)),
}));

const ops = (addon as { ops(): [name: string][] }).ops().map(([name]) => name);
/** An update is one kernel for each optimizer: what comes after the first of them can't be taken back. */
const COMMITS = ["adam", "ema"];

/** A kernel that can't be queued. */
export const launch: Point = {
  target: addon,
  property: "run",
  counts: ([op]) => !COMMITS.includes(ops[op as number]),
  fail: ([op]) => {
    throw coded("native", `injected: ${ops[op as number]} could not be queued`);
  },
};

const refusal = (code: string, call: string): NodeJS.ErrnoException =>
  Object.assign(new Error(`${code}: injected, ${call}`), { code, syscall: call, errno: -5 });

let handles: object | null = null;
/** What file handles inherit their methods from. */
async function fileHandles(): Promise<object> {
  if (!handles) {
    const handle = await fsp.open(__filename);
    handles = Object.getPrototypeOf(handle) as object;
    await handle.close();
  }
  return handles;
}

/** Calls of the file system, by what they are for. */
export async function fileSystem(): Promise<Record<string, readonly Point[]>> {
  const handle = await fileHandles();
  const rejecting = (target: object, code: string, ...properties: string[]): Point[] =>
    properties.map((property) => ({
      target,
      property,
      fail: () => Promise.reject(refusal(code, property)),
    }));
  const streamRead: Point = {
    target: fs,
    property: "read",
    fail: (args) => (args[args.length - 1] as (error: Error) => void)(refusal("EIO", "read")),
  };
  return {
    open: rejecting(fsp, "EMFILE", "open", "mkdir"),
    write: [
      ...rejecting(handle, "ENOSPC", "write", "writeFile"),
      ...rejecting(fsp, "ENOSPC", "appendFile", "writeFile"),
    ],
    fsync: rejecting(handle, "EIO", "sync"),
    rename: rejecting(fsp, "EACCES", "rename"),
    remove: rejecting(fsp, "EBUSY", "rm", "unlink"),
    read: [...rejecting(handle, "EIO", "read"), ...rejecting(fsp, "EIO", "readFile", "readdir"), streamRead],
  };
}

type Spawn = typeof childProcess.spawn;
const { spawn } = childProcess;
const spawning = (fail: (...args: Parameters<Spawn>) => unknown): readonly Point[] => [
  { target: childProcess, property: "spawn", fail: (args) => fail(...(args as Parameters<Spawn>)) },
];
/** A child that runs in the place of the one that was asked for, with the same pipes. */
const instead =
  (script: string) =>
  (_: string, __: readonly string[], options: childProcess.SpawnOptions): unknown =>
    spawn("/bin/sh", ["-c", script], options);

/** Programs that can't be started, in the three ways in which Node says so, or that end before their work is done. */
export const programs: Readonly<Record<string, readonly Point[]>> = {
  "no memory": spawning((file) => {
    throw refusal("ENOMEM", `spawn ${file}`);
  }),
  "no process left": spawning((file, _, options) => {
    const child = spawn("/nowhere/at/all", [], options);
    const emit = child.emit.bind(child) as (name: string, ...args: unknown[]) => boolean;
    child.emit = (name: string, ...args: unknown[]) =>
      emit(name, ...(name === "error" ? [refusal("EAGAIN", `spawn ${file}`)] : args));
    return child;
  }),
  "no descriptor left": spawning((file) => {
    const child = new childProcess.ChildProcess();
    setImmediate(() => child.emit("error", refusal("EMFILE", `spawn ${file}`)));
    return child;
  }),
  killed: spawning(instead("kill -9 $$")),
  fails: spawning(instead("echo injected: the program fails >&2; exit 3")),
  "stops reading": spawning(instead("exec <&-; exit 1")),
};
