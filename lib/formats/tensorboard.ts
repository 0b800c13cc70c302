/**
 * Event files for TensorBoard: TFRecords (length, checksum, bytes, checksum) of `Event` messages. Field numbers are those
 * of tensorflow's event.proto and summary.proto.
 */
import { type FileHandle, open } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import type { Writer } from "protobufjs/minimal.js";
import { path as checkPath, integer } from "../arguments.js";
import { check, LtxError } from "../errors.js";
import { writeAll } from "./atomic-file.js";
import { crc32c } from "./crc.js";
import { makeFolder } from "./paths.js";

const FILE_VERSION = "brain.Event:2";
/** Protobuf's wire types. */
const VARINT = 0;
const BITS_64 = 1;
const BYTES = 2;
const BITS_32 = 5;
/** SessionLog's status. */
const SESSION_START = 1;

const key = (field: number, wire: number) => (field << 3) | wire;

/** An empty message. The library is loaded with the first one. */
const message = (): Writer =>
  (require("protobufjs/minimal.js") as typeof import("protobufjs/minimal.js")).Writer.create();

/** Files of this process so far, which keeps their names apart. */
let files = 0;

/**
 * Writes scalars and images to an event file of its own in a run's folder. TensorBoard reads all event files of a folder
 * together, so a resumed run opens a new one beside the old.
 */
export class EventWriter {
  private waiting: Buffer[] = [];
  private position = 0;
  private closed = false;

  private constructor(
    readonly path: string,
    private readonly file: FileHandle,
  ) {}

  /** Makes the folder if it is missing. @throws LtxError `io` */
  static async open(folder: string): Promise<EventWriter> {
    checkPath("tensorboard", "folder", folder);
    const seconds = String(Math.floor(Date.now() / 1000)).padStart(10, "0");
    // The time comes first and with all its digits: TensorBoard reads the files in the order of their names.
    const path = join(folder, `events.out.tfevents.${seconds}.${hostname()}.${process.pid}.${files++}`);
    let file: FileHandle;
    try {
      await makeFolder(folder);
      file = await open(path, "wx");
    } catch (cause) {
      throw new LtxError("io", `[tensorboard] cannot create ${path}: ${(cause as Error).message}`, { cause });
    }
    const writer = new EventWriter(path, file);
    writer.add(message().uint32(key(3, BYTES)).string(FILE_VERSION));
    return writer;
  }

  /** One point of a curve. @throws LtxError `invalid_argument`, `disposed` */
  scalar(tag: string, step: number, value: number): void {
    this.summary(tag, step, (body) => body.uint32(key(2, BITS_32)).float(value));
  }

  /** A picture as the bytes of a PNG file. @throws LtxError `invalid_argument`, `disposed` */
  image(tag: string, step: number, png: Uint8Array, width: number, height: number): void {
    for (const [name, size] of Object.entries({ width, height })) integer("tensorboard", name, size, 1, 2 ** 31 - 1);
    const image = message().uint32(key(1, VARINT)).int32(height).uint32(key(2, VARINT)).int32(width);
    image.uint32(key(4, BYTES)).bytes(png);
    this.summary(tag, step, (body) => body.uint32(key(4, BYTES)).bytes(image.finish()));
  }

  /**
   * Says that a process begins anew: TensorBoard forgets what earlier files of the folder hold from this step on.
   * @throws LtxError `invalid_argument`, `disposed`
   */
  restart(step: number): void {
    checkStep(step);
    this.checkOpen();
    const session = message().uint32(key(1, VARINT)).int32(SESSION_START).finish();
    this.add(message().uint32(key(2, VARINT)).int64(step).uint32(key(7, BYTES)).bytes(session));
  }

  /** Hands everything so far to the operating system. @throws LtxError `io`, `disposed` */
  async flush(): Promise<void> {
    this.checkOpen();
    await this.write();
  }

  /** Flushes and closes; safe to call again. @throws LtxError `io` */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    try {
      await this.write();
    } finally {
      await this.file.close();
    }
  }

  private checkOpen(): void {
    check(!this.closed, "disposed", () => `[tensorboard] ${this.path} is closed`);
  }

  private async write(): Promise<void> {
    const records = this.waiting;
    const bytes = Buffer.concat(records);
    // Claimed before waiting: what is added meanwhile goes behind, with the next flush.
    const at = this.position;
    this.position += bytes.length;
    this.waiting = [];
    try {
      await writeAll(this.file, bytes, at);
    } catch (cause) {
      throw new LtxError("io", `[tensorboard] cannot write ${this.path}: ${(cause as Error).message}`, { cause });
    }
  }

  private summary(tag: string, step: number, body: (message: Writer) => Writer): void {
    check(typeof tag === "string" && tag.length > 0, "invalid_argument", () => {
      return `[tensorboard] a tag must be a text, got ${JSON.stringify(tag)}`;
    });
    checkStep(step);
    this.checkOpen();
    const value = body(message().uint32(key(1, BYTES)).string(tag)).finish();
    const summary = message().uint32(key(1, BYTES)).bytes(value).finish();
    this.add(message().uint32(key(2, VARINT)).int64(step).uint32(key(5, BYTES)).bytes(summary));
  }

  /** Queues an event that holds the fields of `body` besides the time. */
  private add(body: Writer): void {
    const time = message()
      .uint32(key(1, BITS_64))
      .double(Date.now() / 1000)
      .finish();
    this.waiting.push(record(Buffer.concat([time, body.finish()])));
  }
}

function checkStep(step: number): void {
  check(Number.isSafeInteger(step) && step >= 0, "invalid_argument", () => {
    return `[tensorboard] step must be a whole number from 0, got ${step}`;
  });
}

function record(data: Uint8Array): Buffer {
  const out = Buffer.alloc(12 + data.length + 4);
  out.writeBigUInt64LE(BigInt(data.length), 0);
  out.writeUInt32LE(masked(out.subarray(0, 8)), 8);
  out.set(data, 12);
  out.writeUInt32LE(masked(data), 12 + data.length);
  return out;
}

/** TensorFlow rotates its checksums, so that a record inside a record does not look like one. */
function masked(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}
