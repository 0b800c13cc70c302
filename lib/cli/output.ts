/** What commands print: events as JSON lines, or text and a progress bar for people. */
import type { SingleBar } from "cli-progress";
import { save } from "../formats/images.js";
import { checkOutputFolder, reserveName } from "../formats/output-folder.js";
import type { Video } from "../pipelines/index.js";
import { saveOrKeep } from "../pipelines/keep.js";
import type { TrainEvent } from "../training/events.js";
import { writeError, writeOutput } from "./streams.js";

/** Where a command writes; tests give their own. */
export interface Output {
  json: boolean;
  out(line: string): void;
  err(line: string): void;
  /** Whether standard error is a terminal. */
  terminal: boolean;
}

export function standardOutput(json: boolean): Output {
  return {
    json,
    out: writeOutput,
    err: writeError,
    terminal: process.stderr.isTTY === true,
  };
}

export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  const pad = (n: number) => String(n).padStart(2, "0");
  return s >= 3600
    ? `${Math.floor(s / 3600)}:${pad(Math.floor((s % 3600) / 60))}:${pad(s % 60)}`
    : `${Math.floor(s / 60)}:${pad(s % 60)}`;
}

/** What pictures of a run take on the disk, roughly. */
const PICTURE_BYTES = 2 ** 20;

/** Checks the folder that a command writes pictures into, before the work. @throws LtxError `io` */
export const pictureFolder = (command: string, folder: string): Promise<void> =>
  checkOutputFolder(folder, `[${command}] --out`, PICTURE_BYTES);

/**
 * Writes a video's pictures into a folder under the first free name, `what`, `what_1`, …, and names each. Prompts are
 * written beside them, one a line in the order of the clips.
 * @throws LtxError as {@link saveOrKeep}
 */
export async function writePictures(
  output: Output,
  folder: string,
  what: string,
  video: Video,
  { columns, prompts }: { columns?: number; prompts?: readonly string[] } = {},
): Promise<void> {
  const types = [".gif", ".png", ...(prompts ? [".txt"] : [])];
  const name = await reserveName(folder, (i) => (i === 0 ? what : `${what}_${i}`), types);
  const tell = (type: string, path: string) => output.out(output.json ? JSON.stringify({ type, what, path }) : path);
  try {
    for (const type of types.slice(0, 2)) {
      await saveOrKeep(video, name.path(type), { scale: video.pictureScale, columns });
      tell("picture", name.path(type));
    }
  } catch (error) {
    await name.release();
    throw error;
  }
  if (!prompts) return;
  const lines = prompts.map((prompt) => `${prompt.replace(/[\r\n]+/g, " ")}\n`);
  await save(name.path(".txt"), Buffer.from(lines.join("")));
  tell("prompts", name.path(".txt"));
}

/** Tells what a user should know. */
export function showNotice(output: Output, message: string): void {
  if (output.json) output.out(JSON.stringify({ type: "notice", message }));
  else output.err(message);
}

/** Reports how far `what` has come: an event, or a line that a terminal overwrites. */
export function showProgress(output: Output, event: object, what: string, done: number, total: number): void {
  if (output.json) output.out(JSON.stringify(event));
  else if (output.terminal) process.stderr.write(`\r${what} ${done}/${total}${done === total ? "\n" : ""}`);
}

/** Reports sampling steps. */
export function sampleSteps(output: Output): (done: number, total: number) => void {
  return (done, total) => showProgress(output, { type: "sample-step", step: done, steps: total }, "step", done, total);
}

/** Seconds between lines where no progress bar can be drawn. */
const LINE_EVERY = 15;

/** Columns that a step's numbers take, and those of the longest and the shortest bar worth drawing. */
const NUMBERS = 60;
const LONGEST_BAR = 40;
const SHORTEST_BAR = 8;

/** A progress bar for a terminal of that width; a narrow one shows the numbers alone. */
export function barFormat(columns = 80): { format: string; barsize: number } {
  const room = Math.min(LONGEST_BAR, columns - NUMBERS);
  return room < SHORTEST_BAR
    ? { format: "{value}/{total} {text}", barsize: SHORTEST_BAR }
    : { format: "{bar} {value}/{total} {text}", barsize: room };
}

/** Reports training events. */
export class TrainReport {
  private bar: SingleBar | null = null;
  private lastLine = performance.now() / 1000;

  constructor(private readonly output: Output) {}

  show(event: TrainEvent): void {
    const { output } = this;
    if (output.json) return output.out(JSON.stringify(event));
    switch (event.type) {
      case "start": {
        const from = event.step > 0 ? `, from step ${event.step}` : "";
        return this.line(
          `${event.stage}: ${(event.parameters / 1e6).toFixed(2)} M parameters on ${event.device}, ${event.steps} steps${from}`,
        );
      }
      case "notice":
        return this.output.err(`${event.stage}: ${event.message}`);
      case "prepare":
        return this.progress(event.done, event.total, `encoding ${event.what}`);
      case "step": {
        const text = `loss ${event.loss.toPrecision(4)}  ${event.stepsPerSecond.toFixed(1)} steps/s  ${duration(event.secondsLeft)} left`;
        return this.progress(event.step, event.steps, `${event.stage} ${text}`);
      }
      case "validate": {
        const metrics = Object.entries(event.metrics).map(([name, value]) => `${name} ${value.toPrecision(4)}`);
        return this.line(`${event.stage} step ${event.step}: held-out ${metrics.join(", ")}`);
      }
      case "checkpoint":
        return;
      case "picture":
        return this.line(`${event.what}: ${event.path}`);
      case "end":
        return this.line(`${event.stage}: ${event.reason} at step ${event.step} after ${duration(event.seconds)}`);
    }
  }

  private progress(done: number, total: number, text: string): void {
    if (!this.output.terminal) {
      const now = performance.now() / 1000;
      if (now - this.lastLine < LINE_EVERY) return;
      this.lastLine = now;
      return this.output.err(`${done}/${total} ${text}`);
    }
    if (!this.bar) {
      // Loaded here: only a training run on a terminal has a bar.
      const { Presets, SingleBar } = require("cli-progress") as typeof import("cli-progress");
      const options = { ...barFormat(process.stderr.columns), stream: process.stderr };
      this.bar = new SingleBar({ ...options, clearOnComplete: true, hideCursor: true }, Presets.shades_classic);
      this.bar.start(total, done, { text });
    }
    this.bar.setTotal(total);
    this.bar.update(done, { text });
  }

  private line(text: string): void {
    this.stop();
    this.output.out(text);
  }

  /** Takes the bar away. */
  stop(): void {
    this.bar?.stop();
    this.bar = null;
  }
}
