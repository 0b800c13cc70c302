import { Worker } from "../worker.js";
import type { CaseSpec } from "./case.js";
import type { LabGreeting, LabReply, LabSetup } from "./protocol.js";

/** One framework's worker, started when it is needed and anew after each failure. */
export class Lab {
  about: LabGreeting["about"] | null = null;
  private worker: Worker<LabGreeting, LabReply> | null = null;
  /** Why it can't be started: then nothing is measured any more. */
  private broken: string | null = null;

  constructor(
    private readonly name: string,
    private readonly command: readonly string[],
    private readonly setup: LabSetup,
    private readonly timeoutSeconds: number,
  ) {}

  /** Never throws: what goes wrong is the answer. */
  async measure({ id, op, problem, dtype, sizes }: CaseSpec): Promise<LabReply> {
    if (this.broken) return { id, error: this.broken };
    try {
      this.worker ??= await this.start();
    } catch (error) {
      this.broken = (error as Error).message;
      return { id, error: this.broken };
    }
    let reply: LabReply;
    try {
      reply = await this.worker.ask(JSON.stringify({ id, op, problem, dtype, sizes } satisfies CaseSpec));
    } catch (error) {
      reply = { id, error: (error as Error).message };
    }
    if ("error" in reply) {
      await this.worker.kill();
      this.worker = null;
    }
    return reply;
  }

  async stop(): Promise<void> {
    await this.worker?.stop();
    this.worker = null;
  }

  private async start(): Promise<Worker<LabGreeting, LabReply>> {
    const { name, timeoutSeconds } = this;
    const worker = await Worker.start<LabGreeting, LabReply>(this.command, this.setup, { name, timeoutSeconds });
    this.about = worker.first.about;
    return worker;
  }
}
