/** The ways in which a process may end while kernels run, each as a script with what it must end with. */
import { spawn, spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Compiled } from "./compiled.js";

export interface Way {
  name: string;
  /** Runs once kernels are in flight; sees `work()`, which queues more, and the modules. */
  body: string;
  code: number;
  /** What the parent does when the child has written a line. */
  meanwhile?: "closes stdout" | "SIGINT twice" | "SIGTERM";
  /** On standard error. */
  says?: RegExp;
  /** Rounds of work that are queued at the start; fewer where all of them are done before the end. */
  rounds?: number;
}

const THREAD = `
  const { Worker } = require("node:worker_threads");
  const thread = (end) => new Worker(prelude + "work(4);" + end, { eval: true });`;
const STAY = "setInterval(() => {}, 1000);";

export const WAYS: readonly Way[] = [
  { name: "process.exit", body: "process.exit(0);", code: 0 },
  {
    name: "process.exit with a code, in an exit listener that queues more",
    body: "process.on('exit', () => work()); process.exit(7);",
    code: 7,
  },
  {
    name: "an exception that nobody catches",
    body: "setTimeout(() => { throw new Error('planted'); });",
    code: 1,
    says: /Error: planted/,
  },
  {
    name: "a rejection that nobody handles",
    body: "Promise.reject(new Error('planted'));",
    code: 1,
    says: /Error: planted/,
  },
  {
    name: "by itself, with reads on their way",
    body: "for (let i = 0; i < 5; i++) last().read();",
    code: 0,
    rounds: 4,
  },
  {
    name: "a reader that closes the pipe (EPIPE)",
    body: `process.stdout.on("error", (error) => process.exit(error.code === "EPIPE" ? 0 : 1));
      setInterval(() => process.stdout.write("x".repeat(100) + "\\n"), 1);`,
    meanwhile: "closes stdout",
    code: 0,
  },
  {
    name: "Ctrl-C twice",
    body: `require(path("cli/interrupt.js")).interruptible(() => new Promise(() => {})); ${STAY}`,
    meanwhile: "SIGINT twice",
    code: 130,
  },
  {
    name: "a SIGTERM handler that exits",
    body: `process.on("SIGTERM", () => process.exit(5)); ${STAY}`,
    meanwhile: "SIGTERM",
    code: 5,
  },
  {
    name: "by itself after a worker thread was terminated",
    body: `${THREAD} const one = thread("require('node:worker_threads').parentPort.postMessage(1); setInterval(() => {}, 1000)");
      one.on("message", () => one.terminate());`,
    code: 0,
    rounds: 2,
  },
  {
    name: "process.exit while worker threads work",
    body: `${THREAD} for (let i = 0; i < 2; i++) thread("setInterval(() => work(3), 20)").on("message", () => {});
      setTimeout(() => process.exit(3), 300);`,
    code: 3,
  },
  {
    name: "process.exit in a worker thread, and the process by itself",
    body: `${THREAD} thread("process.exit(4)").on("exit", (code) => { process.exitCode = code; });`,
    code: 4,
    rounds: 2,
  },
];

/** Modules, and `work`, which queues bf16 and f32 convolutions and products, forward and backward. */
const prelude = (library: Compiled) => `
  const path = (module) => ${JSON.stringify(library.path("."))} + "/" + module;
  const tensor = require(path("tensor/index.js")), ops = require(path("ops/index.js"));
  let result = null;
  const last = () => result;
  const work = (rounds = 30) => {
    for (let i = 0; i < rounds; i++) {
      const y = tensor.scope(() => {
        const key = { seed: 1, step: i, purpose: 1 };
        const x = ops.cast(ops.normal([1, 5, 16, 16, 64], key), "bf16");
        const w = ops.normal([64, 3, 3, 3, 64], key), m = ops.normal([64, 64], key);
        for (const leaf of [x, w, m]) leaf.requiresGrad = true;
        const h = ops.linear(ops.conv3d(x, w), m);
        const f = ops.linear(ops.cast(h, "f32"), m);
        tensor.backward(ops.mean(ops.square(f)));
        return tensor.noGrad(() => ops.affine(f, 1));
      });
      result?.dispose();
      result = y;
    }
  };`;

/** A library for LD_PRELOAD that waits when static destructors have run: whatever still works then is caught at it. */
export function buildPause(folder: string): string {
  const [source, library] = [join(folder, "pause.c"), join(folder, "pause.so")];
  writeFileSync(
    source,
    "#include <unistd.h>\n__attribute__((destructor)) static void wait(void) { usleep(400000); }\n",
  );
  const { status, stderr } = spawnSync("gcc", ["-shared", "-fPIC", "-o", library, source], { encoding: "utf8" });
  if (status !== 0) throw new Error(`gcc: ${stderr}`);
  return library;
}

/** The environment of a process that loads it, beside what this one was started with (a sanitizer). */
export const preloaded = (library: string): NodeJS.ProcessEnv => ({
  LD_PRELOAD: [process.env.LD_PRELOAD, library].filter(Boolean).join(" "),
});

export interface Ending {
  code: number | null;
  signal: NodeJS.Signals | null;
  stderr: string;
}

export function end(way: Way, library: Compiled, env: NodeJS.ProcessEnv = {}): Promise<Ending> {
  const text = prelude(library);
  const script = `${text}
    const prelude = ${JSON.stringify(text)};
    work(${way.rounds ?? 30});
    setTimeout(() => {
      ${way.body}
      process.stdout.write("in flight\\n");
    }, ${20 + Math.floor(Math.random() * 60)});`;
  const child = spawn(process.execPath, ["-e", script], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stderr = "";
  child.stderr.on("data", (data) => {
    stderr += data;
  });
  child.stdout.once("data", () => {
    if (way.meanwhile === "closes stdout") child.stdout.destroy();
    if (way.meanwhile === "SIGTERM") child.kill("SIGTERM");
    if (way.meanwhile === "SIGINT twice") {
      // Again until it has gone: two that are on their way at once count as one.
      child.kill("SIGINT");
      const again = setInterval(() => child.kill("SIGINT"), 20);
      child.once("exit", () => clearInterval(again));
    }
  });
  return new Promise((resolve) => child.on("close", (code, signal) => resolve({ code, signal, stderr })));
}
