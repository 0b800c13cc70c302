/** What a run shows in TensorBoard: its losses, rates and scores as curves, its pictures as images. */
import { readFile } from "node:fs/promises";
import { EventWriter } from "../formats/tensorboard.js";
import { loadSharp } from "../formats/text.js";
import type { TrainEvent } from "./events.js";

/** Keeps a TensorBoard log of a run's events in a folder, which is made with the first of them. */
export class TensorBoard {
  private writer: EventWriter | null = null;

  /** @param every steps between two points of a curve */
  constructor(
    private readonly folder: string,
    private readonly every: number,
  ) {}

  async record(event: TrainEvent): Promise<void> {
    switch (event.type) {
      case "start":
        // What an interrupted run drew past its checkpoint is drawn again.
        if (event.step > 0) (await this.open()).restart(event.step + 1);
        return;
      case "step": {
        const { step, steps, loss, terms, learningRate, gradientNorm, stepsPerSecond } = event;
        if (step % this.every !== 0 && step !== steps && step !== 1) return;
        const values = { loss, ...terms, learning_rate: learningRate, gradient_norm: gradientNorm };
        await this.scalars("train", step, { ...values, steps_per_second: stepsPerSecond });
        return;
      }
      case "validate":
        return this.scalars("held_out", event.step, event.metrics);
      case "picture":
        if (event.path.endsWith(".png")) await this.image(event.what, event.step, event.path);
        return;
      default:
        return;
    }
  }

  private async open(): Promise<EventWriter> {
    this.writer ??= await EventWriter.open(this.folder);
    return this.writer;
  }

  private async scalars(group: string, step: number, values: Record<string, number>): Promise<void> {
    const writer = await this.open();
    for (const [name, value] of Object.entries(values)) {
      if (Number.isFinite(value)) writer.scalar(`${group}/${name}`, step, value);
    }
  }

  private async image(tag: string, step: number, path: string): Promise<void> {
    const png = await readFile(path);
    const { width, height } = await (await loadSharp())(png).metadata();
    // The step stands beside a picture in TensorBoard, so that the name need not carry it.
    (await this.open()).image(tag.replace(/-\d+$/, ""), step, png, width, height);
  }

  /** Brings everything recorded so far to disk. A file that can't be written is left, and another one begun. */
  async flush(): Promise<void> {
    try {
      await this.writer?.flush();
    } catch (error) {
      await this.close().catch(() => {});
      throw error;
    }
  }

  async close(): Promise<void> {
    const { writer } = this;
    this.writer = null;
    await writer?.close();
  }
}
