import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { crc32c } from "../../lib/formats/crc.js";
import { EventWriter } from "../../lib/formats/tensorboard.js";

const folder = mkdtempSync(join(tmpdir(), "ltx-events-"));
afterAll(() => rmSync(folder, { recursive: true }));

// Records that TensorBoard's own writer makes of the same events at this time.
const TIME = 1700000000500;
const VERSION = "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b353110";
const SCALAR = "2100000000000000017becf60900002040fc54d94110ac022a130a110a0a747261696e2f6c6f7373150000803e0da12f0e";
const IMAGE =
  "2500000000000000eabc36f30900002040fc54d941108080808080202a130a110a02c3a4220b080410d804220489504e47123f91b6";

const hex = (path: string) => readFileSync(path).toString("hex");

beforeEach(() => {
  vi.spyOn(Date, "now").mockReturnValue(TIME);
});
afterEach(() => {
  vi.restoreAllMocks();
});

describe("crc32c", () => {
  // The check value of the Castagnoli polynomial, and those of RFC 3720, B.4.
  it.each<[string, Uint8Array, number]>([
    ["digits", Buffer.from("123456789"), 0xe3069283],
    ["nothing", new Uint8Array(0), 0],
    ["zeros", new Uint8Array(32), 0x8a9136aa],
    ["ones", new Uint8Array(32).fill(255), 0x62a8ab43],
    ["rising bytes", Uint8Array.from({ length: 32 }, (_, i) => i), 0x46dd794e],
  ])("of %s", (_, bytes, sum) => {
    expect(crc32c(bytes)).toBe(sum);
  });
});

describe("EventWriter", () => {
  it("writes the bytes that TensorBoard's own writer writes", async () => {
    const writer = await EventWriter.open(join(folder, "bytes"));
    writer.scalar("train/loss", 300, 0.25);
    writer.image("ä", 2 ** 40, Buffer.from("89504e47", "hex"), 600, 4);
    await writer.close();
    expect(hex(writer.path)).toBe(VERSION + SCALAR + IMAGE);
  });

  it("says from which step on a resumed run draws anew", async () => {
    const writer = await EventWriter.open(join(folder, "session"));
    writer.restart(300);
    await writer.close();
    // Step 300 (field 2), then a SessionLog (field 7) whose status (field 1) is START (1).
    const [record] = [hex(writer.path).slice(VERSION.length)];
    expect(record.slice(24, -8)).toBe(`0900002040fc54d941${"10ac02"}${"3a020801"}`);
    expect(() => writer.restart(-1)).toThrow(/whole number from 0/);
  });

  it("shows what was flushed, and keeps the order of what is added meanwhile", async () => {
    const writer = await EventWriter.open(join(folder, "flush"));
    expect(hex(writer.path)).toBe("");
    await writer.flush();
    expect(hex(writer.path)).toBe(VERSION);
    writer.scalar("train/loss", 300, 0.25);
    const flushing = writer.flush();
    writer.image("ä", 2 ** 40, Buffer.from("89504e47", "hex"), 600, 4);
    await Promise.all([flushing, writer.flush()]);
    expect(hex(writer.path)).toBe(VERSION + SCALAR + IMAGE);
    await writer.close();
    await writer.close();
    expect(() => writer.scalar("a", 1, 1)).toThrow(/closed/);
    await expect(writer.flush()).rejects.toMatchObject({ code: "disposed" });
  });

  it("opens a file of its own each time, named as TensorBoard expects", async () => {
    const run = join(folder, "resumed");
    for (let i = 0; i < 2; i++) await (await EventWriter.open(run)).close();
    const names = readdirSync(run);
    expect(names).toHaveLength(2);
    for (const name of names) {
      expect(name.startsWith(`events.out.tfevents.1700000000.${hostname()}.${process.pid}.`)).toBe(true);
    }
  });

  it("takes what floats can be, and refuses tags and steps that are none", async () => {
    const writer = await EventWriter.open(join(folder, "values"));
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, -0]) writer.scalar("a", 0, value);
    expect(() => writer.scalar("", 0, 1)).toThrow(/tag must be a text/);
    expect(() => writer.scalar("a", -1, 1)).toThrow(/whole number from 0, got -1/);
    expect(() => writer.scalar("a", 0.5, 1)).toThrow(/got 0.5/);
    await writer.close();
    const bytes = readFileSync(writer.path);
    const floats = [1, 2, 3].map((end) => bytes.readFloatLE(bytes.length - ((3 - end) * (bytes.length - 40)) / 3 - 8));
    expect(floats).toEqual([Number.NaN, Number.POSITIVE_INFINITY, -0]);
  });

  it("says where it cannot write", async () => {
    mkdirSync(join(folder, "taken"), { recursive: true });
    writeFileSync(join(folder, "taken", "file"), "");
    await expect(EventWriter.open(join(folder, "taken", "file"))).rejects.toMatchObject({ code: "io" });
  });
});
