import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc32 as zlibCrc } from "node:zlib";
import { afterAll, describe, expect, it } from "vitest";
import { crc32 } from "../../lib/formats/crc.js";
import { openNpz } from "../../lib/formats/npy.js";
import { openTensorFile } from "../../lib/formats/tensor-file.js";
import { openZip, type ZipArchive } from "../../lib/formats/zip.js";
import { failure } from "../support/failure.js";
import { npyBytes } from "../support/npy.js";
import { PtTensor, writePt, writeZip } from "../support/pytorch.js";

const folder = mkdtempSync(join(tmpdir(), "ltx-zip-"));
afterAll(() => rmSync(folder, { recursive: true }));
const at = (name: string) => join(folder, name);

/** The end of an archive without entries whose fields say what they are told. */
function endRecord({ locator, count = 0, offset = 0, comment = 0 }: Record<string, number | bigint>): Buffer {
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(Number(count), 10);
  end.writeUInt32LE(Number(offset), 16);
  end.writeUInt16LE(Number(comment), 20);
  if (locator === undefined) return end;
  const zip64 = Buffer.alloc(20);
  zip64.writeUInt32LE(0x07064b50, 0);
  zip64.writeBigUInt64LE(BigInt(locator), 8);
  return Buffer.concat([zip64, end]);
}

/** A zip64 record behind the signature that says what it is told, and the locator that points at it. */
function zip64Record(entries: bigint, offset: bigint): Buffer {
  const record = Buffer.alloc(56);
  record.writeUInt32LE(0x06064b50, 0);
  record.writeBigUInt64LE(entries, 32);
  record.writeBigUInt64LE(offset, 48);
  return Buffer.concat([record, endRecord({ locator: 4, count: 0xffff, offset: 0xffffffff })]);
}

const signature = Buffer.from("PK\x03\x04", "latin1");
const far = [2n ** 31n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];

describe("damaged lists of entries", () => {
  it.each<[string, Buffer]>([
    ...far.map((locator): [string, Buffer] => [`a locator at ${locator}`, endRecord({ locator, count: 0xffff })]),
    ...far.map((offset): [string, Buffer] => [`a directory at ${offset}`, zip64Record(1n, offset)]),
    ...far.map((count): [string, Buffer] => [`${count} entries`, zip64Record(count, 0n)]),
    ["a locator that points at itself", endRecord({ locator: 4 })],
    ["a directory past the end", endRecord({ count: 3, offset: 0xfffffff0 })],
    ["a directory that is something else", endRecord({ count: 1, offset: 0 })],
    ["a comment that is not there", endRecord({ comment: 500 })],
    ["no directory at all", Buffer.alloc(0)],
  ])("%s", async (_, bytes) => {
    writeFileSync(at("bad.pt"), Buffer.concat([signature, bytes]));
    for (const open of [openTensorFile, openNpz]) {
      expect(await failure(() => open(at("bad.pt")))).toMatchObject({ code: "file_format" });
    }
  });

  it("an archive cut at any byte of its list", async () => {
    await writeZip(
      at("whole.zip"),
      new Map([
        ["a/b", Buffer.from("hello")],
        ["c", Buffer.alloc(70)],
      ]),
      { zip64: true },
    );
    const bytes = readFileSync(at("whole.zip"));
    for (let length = 0; length < bytes.length; length++) {
      writeFileSync(at("cut.zip"), bytes.subarray(0, length));
      const error = await failure(() => openZip(at("cut.zip"), "test"));
      expect([length, error.code]).toEqual([length, "file_format"]);
    }
  });
});

async function withZip<T>(path: string, body: (zip: ZipArchive) => Promise<T>): Promise<T> {
  const zip = await openZip(path, "test");
  try {
    return await body(zip);
  } finally {
    await zip.close();
  }
}
const entryOf = (zip: ZipArchive, name: string) => {
  const entry = zip.entries.get(name);
  if (!entry) throw new Error(`no ${name}`);
  return entry;
};

describe("checksums", () => {
  it("are those of zlib, whatever the cut", () => {
    const bytes = Buffer.from(Array.from({ length: 1000 }, (_, i) => (i * 7) & 255));
    expect(crc32(Buffer.from("123456789"), 0)).toBe(0xcbf43926);
    for (const cut of [0, 1, 333, 1000]) {
      expect(crc32(bytes.subarray(cut), crc32(bytes.subarray(0, cut), 0))).toBe(zlibCrc(bytes));
    }
  });

  it.each([
    ["stored", false],
    ["compressed", true],
  ])("tell one changed byte, read whole or in part: %s", async (_, compress) => {
    const good = Buffer.from(Array.from({ length: 3_000_000 }, (_, i) => (i * i) & 255));
    await writeZip(at("good.zip"), new Map([["data", good]]), { compress });
    await withZip(at("good.zip"), async (zip) => {
      const entry = entryOf(zip, "data");
      expect(Buffer.from(await zip.read(entry)).equals(good)).toBe(true);
      expect([...(await zip.read(entry, 2_999_990, 4))]).toEqual([...good.subarray(2_999_990, 2_999_994)]);
      await zip.verify(entry);
    });
    // The checksum in the central directory, 30 bytes before the name: as if the data were other ones.
    const bytes = readFileSync(at("good.zip"));
    bytes[bytes.lastIndexOf("data") - 30] ^= 1;
    writeFileSync(at("changed.zip"), bytes);
    await withZip(at("changed.zip"), async (zip) => {
      const entry = entryOf(zip, "data");
      for (const read of [() => zip.read(entry), () => zip.read(entry, 0, 1), () => zip.verify(entry)]) {
        const error = await failure(read);
        expect(error.code).toBe("file_format");
        expect(error.message).toMatch(/"data" has the checksum [0-9a-f]{8}, not the [0-9a-f]{8} it was stored with/);
      }
    });
  });

  it.each([[false], [true]])("are compared in .npz (compressed: %s) and .pt files", async (compress) => {
    const pixels = Uint8Array.from({ length: 600 }, (_, i) => i & 255);
    await writeZip(at("videos.npz"), new Map([["arr_0.npy", npyBytes("|u1", [600], pixels)]]), { compress });
    await writePt(at("model.pt"), new Map([["w", PtTensor.f32([...pixels])]]), { compress });
    for (const [name, entry] of [
      ["videos.npz", "arr_0.npy"],
      ["model.pt", "archive/data/0"],
    ]) {
      const bytes = readFileSync(at(name));
      bytes[bytes.lastIndexOf(entry) - 30] ^= 0x40;
      writeFileSync(at(name), bytes);
    }
    expect((await failure(() => openNpz(at("videos.npz")))).message).toContain('arr_0.npy" has the checksum');
    const file = await openTensorFile(at("model.pt"));
    expect((await failure(() => file.read("w"))).message).toContain('data/0" has the checksum');
    await file.close();
  });

  it("of 0 count as none in .pt files, as torch writes them on request, and as checksums elsewhere", async () => {
    await writePt(at("none.pt"), new Map([["w", PtTensor.f32([1, 2])]]));
    await writeZip(at("none.npz"), new Map([["a.npy", npyBytes("|u1", [2], Uint8Array.of(1, 2))]]));
    for (const [name, entry] of [
      ["none.pt", "archive/data/0"],
      ["none.npz", "a.npy"],
    ]) {
      const bytes = readFileSync(at(name));
      bytes.writeUInt32LE(0, bytes.lastIndexOf(entry) - 30);
      writeFileSync(at(name), bytes);
    }
    const file = await openTensorFile(at("none.pt"));
    expect([...(await file.readF32("w"))]).toEqual([1, 2]);
    await file.close();
    expect(await failure(() => openNpz(at("none.npz")))).toMatchObject({ code: "file_format" });
  });
});

describe("compressed entries read in parts", () => {
  it("are inflated once, however many tensors lie on them", async () => {
    const base = PtTensor.f32(Array.from({ length: 1 << 20 }, (_, i) => i));
    const many = Array.from({ length: 3000 }, (_, i): [string, PtTensor] => [`t${i}`, base.view([1], [1], i * 300)]);
    await writePt(at("many.pt"), new Map(many), { compress: true });
    const file = await openTensorFile(at("many.pt"));
    expect([...(await file.readF32("t0"))]).toEqual([0]);
    // What the file holds now can't be inflated any more: the values come from what was kept.
    const bytes = readFileSync(at("many.pt"));
    writeFileSync(at("many.pt"), bytes.fill(0xff, 100, bytes.length >> 1));
    for (const [name, { offset }] of many) expect([...(await file.readF32(name))]).toEqual([offset]);
    await file.close();
  });

  it("are refused when they claim more than may be held", async () => {
    await writePt(at("huge.pt"), new Map([["a", PtTensor.f32(new Array(2_000_000).fill(0))]]), { compress: true });
    await withZip(at("huge.pt"), async (zip) => {
      const entry = entryOf(zip, "archive/data/0");
      const error = await failure(() => zip.read({ ...entry, size: 5 * 2 ** 30 }));
      expect(error.code).toBe("out_of_memory");
      expect(error.message).toMatch(/inflates to 5368709120 bytes, at most \d+ fit in memory; store it uncompressed/);
    });
  });
});
