import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

export interface WorkerOptions {
  /** What errors call it. */
  name: string;
  /** Longest wait for one answer; for ever unless given. */
  timeoutSeconds?: number;
}

/** A process that answers each line on its standard input with a line of JSON. The first answer is `First`. */
export class Worker<First, Reply> {
  /** The answer to the first line. */
  first!: First;
  private readonly lines: AsyncIterator<string>;
  private errors = "";

  private constructor(
    private readonly process: ChildProcessWithoutNullStreams,
    private readonly options: WorkerOptions,
  ) {
    this.lines = createInterface({ input: process.stdout })[Symbol.asyncIterator]();
    process.stderr.on("data", (chunk) => {
      this.errors = (this.errors + chunk).slice(-2000);
    });
    process.stdin.on("error", () => {}); // a worker that died is reported by the answer that does not come
  }

  /** Resolves when it has answered the first line. @throws {Error} with what the process said when it fails. */
  static async start<First, Reply>(
    command: readonly string[],
    setup: object,
    options: WorkerOptions,
  ): Promise<Worker<First, Reply>> {
    const [program, ...args] = command;
    const child = spawn(program, args, { stdio: "pipe" });
    await once(child, "spawn");
    const worker = new Worker<First, Reply>(child, options);
    worker.first = (await worker.line(JSON.stringify(setup))) as First;
    return worker;
  }

  ask(line: string): Promise<Reply> {
    return this.line(line) as Promise<Reply>;
  }

  private async line(line: string): Promise<unknown> {
    const { timeoutSeconds } = this.options;
    let late = false;
    const timer = timeoutSeconds
      ? setTimeout(() => {
          late = true;
          this.process.kill("SIGKILL");
        }, timeoutSeconds * 1000)
      : undefined;
    try {
      this.process.stdin.write(`${line}\n`);
      const { value, done } = await this.lines.next();
      if (!done) return JSON.parse(value);
    } finally {
      clearTimeout(timer);
    }
    await this.stop();
    const { signalCode: signal, exitCode } = this.process;
    const killed = late ? `no answer in ${timeoutSeconds} s` : "was killed, probably for want of memory";
    const why = signal === "SIGKILL" ? killed : this.errors.trim() || (signal ?? `exit code ${exitCode}`);
    throw new Error(`${this.options.name} ended early: ${why}`);
  }

  /** Ends the process and waits until its memory is free. */
  async stop(): Promise<void> {
    const { process: child } = this;
    child.stdin.end();
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  }

  /** Ends it at once, in the middle of whatever it does. */
  kill(): Promise<void> {
    this.process.kill("SIGKILL");
    return this.stop();
  }
}
