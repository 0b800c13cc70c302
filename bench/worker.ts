import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import type { Reply, Setup } from "./protocol.js";

/** A process that holds one training step of one framework. */
export class Worker {
  /** The answer to the setup: everything that is said once. */
  first!: Reply;
  private readonly lines: AsyncIterator<string>;
  private errors = "";

  private constructor(
    private readonly process: ChildProcessWithoutNullStreams,
    private readonly name: string,
  ) {
    this.lines = createInterface({ input: process.stdout })[Symbol.asyncIterator]();
    process.stderr.on("data", (chunk) => {
      this.errors = (this.errors + chunk).slice(-2000);
    });
    process.stdin.on("error", () => {}); // a worker that died is reported by the answer that does not come
  }

  /** Resolves when the model is built and warm. @throws {Error} with what the process said when it fails. */
  static async start(command: readonly string[], setup: Setup): Promise<Worker> {
    const [program, ...args] = command;
    const child = spawn(program, args, { stdio: "pipe" });
    await once(child, "spawn");
    const worker = new Worker(child, `${args[args.length - 1]} (${setup.name} ${setup.dtype} batch ${setup.batch})`);
    worker.first = await worker.ask(JSON.stringify(setup));
    return worker;
  }

  async ask(line: string): Promise<Reply> {
    this.process.stdin.write(`${line}\n`);
    const { value, done } = await this.lines.next();
    if (!done) return JSON.parse(value);
    await this.stop();
    const signal = this.process.signalCode;
    const why = signal === "SIGKILL" ? "was killed, probably for want of memory" : this.errors.trim();
    throw new Error(`${this.name} ended early: ${why || (signal ?? `exit code ${this.process.exitCode}`)}`);
  }

  /** Ends the process and waits until its memory is free. */
  async stop(): Promise<void> {
    const { process: child } = this;
    child.stdin.end();
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  }
}
