import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { LtxError } from "../../lib/errors.js";
import { DTYPE_BITS, type SafetensorsDtype } from "../../lib/formats/dtypes.js";
import {
  openSafetensorsBuffer,
  parseSafetensorsHeader,
  readSafetensors,
  type SafetensorsTensor,
  writeSafetensors,
} from "../../lib/formats/safetensors.js";
import { failure } from "../support/failure.js";

const folder = mkdtempSync(join(tmpdir(), "ltx-safetensors-"));
afterAll(() => rmSync(folder, { recursive: true }));
const at = (name: string) => join(folder, name);

/** A file of the given header text (or bytes) and `data` bytes of content. */
function build(header: string | Uint8Array, data = 0, length?: bigint): Uint8Array {
  const json = typeof header === "string" ? Buffer.from(header) : Buffer.from(header);
  const start = Buffer.alloc(8);
  start.writeBigUInt64LE(length ?? BigInt(json.length));
  return Buffer.concat([start, json, Buffer.alloc(data, 7)]);
}

const entry = (dtype: string, shape: unknown, begin: unknown, end: unknown) =>
  JSON.stringify({ dtype, shape, data_offsets: [begin, end] });

describe("parseSafetensorsHeader", () => {
  it("reads names, types, shapes, places and metadata", () => {
    const header = `{"__metadata__":{"k":"v"},"b":${entry("F32", [2], 2, 10)},"a":${entry("BF16", [], 0, 2)}}  `;
    const file = build(header, 10);
    const { metadata, tensors } = parseSafetensorsHeader(file);
    expect(metadata).toEqual({ k: "v" });
    expect([...tensors]).toEqual([
      ["a", { dtype: "BF16", shape: [], offset: 8 + header.length, byteLength: 2 }],
      ["b", { dtype: "F32", shape: [2], offset: 10 + header.length, byteLength: 8 }],
    ]);
  });

  it.each(Object.entries(DTYPE_BITS))("knows %s of %i bits", (dtype, bits) => {
    expect(
      parseSafetensorsHeader(build(`{"a":${entry(dtype, [8], 0, bits)}}`, bits)).tensors.get("a")?.byteLength,
    ).toBe(bits);
  });

  it("takes empty files, empty tensors and names that JavaScript finds odd", () => {
    expect(parseSafetensorsHeader(build("{}")).tensors.size).toBe(0);
    const odd = ["__proto__", "constructor", "", "0", "ä\\u0000\\\\"].map(
      (name) => `"${name}":${entry("F32", [0, 3], 0, 0)}`,
    );
    expect(parseSafetensorsHeader(build(`{${odd.join()}}`)).tensors.size).toBe(5);
    const metadata = parseSafetensorsHeader(build('{"__metadata__":{"__proto__":"x"}}')).metadata;
    expect(Object.entries(metadata)).toEqual([["__proto__", "x"]]);
  });

  const one = entry("F32", [2], 0, 8);
  it.each<[string, Uint8Array, string]>([
    ["an empty file", new Uint8Array(0), "0 bytes are too few"],
    ["a file under 8 bytes", new Uint8Array(7), "7 bytes are too few"],
    ["a header over 100 MB", build("{}", 0, 100_000_001n), "over the limit of 100000000 bytes"],
    ["the greatest header length", build("{}", 0, 2n ** 64n - 1n), "over the limit"],
    ["a header past the end", build("{}", 0, 3n), "header length 3 reaches past the 10 bytes there are"],
    ["an empty header", build(""), 'must begin with "{", found ""'],
    ["bytes that are no UTF-8", build(Uint8Array.of(0x7b, 0xff, 0x7d)), "not UTF-8"],
    ["a byte order mark", build("\ufeff{}"), 'must begin with "{"'],
    ["leading space", build(" {}"), 'must begin with "{", found " "'],
    ["an array", build("[]"), 'must begin with "{"'],
    ["broken JSON", build('{"a":'), "no valid JSON"],
    ["text after the JSON", build("{}x"), "no valid JSON"],
    ["NaN", build('{"a":NaN}'), "no valid JSON"],
    ["metadata that is no object", build('{"__metadata__":["a"]}'), "__metadata__ must be an object"],
    ["null metadata", build('{"__metadata__":null}'), "__metadata__ must be an object"],
    ["a metadata number", build('{"__metadata__":{"step":1}}'), '__metadata__ "step" must be a string, found 1'],
    ["nested metadata", build('{"__metadata__":{"a":{}}}'), '__metadata__ "a" must be a string'],
    ["a tensor twice", build(`{"a":${one},"a":${one}}`, 8), 'duplicate key "a"'],
    ["a tensor twice, once escaped", build(`{"a":${one},"\\u0061":${one}}`, 8), 'duplicate key "a"'],
    ["metadata twice", build('{"__metadata__":{},"__metadata__":{}}'), 'duplicate key "__metadata__"'],
    ["a metadata key twice", build('{"__metadata__":{"x":"1" , "y":"{" , "x" :"2"}}'), 'duplicate key "x"'],
    [
      "a field twice",
      build('{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
      'duplicate key "dtype"',
    ],
    ["half a surrogate pair", build(`{"\\ud800":${one}}`, 8), "no valid Unicode"],
    ["a tensor that is no object", build('{"a":3}'), 'tensor "a" must be an object'],
    ["a null tensor", build('{"a":null}'), 'tensor "a" must be an object'],
    ["no dtype", build('{"a":{"shape":[],"data_offsets":[0,4]}}', 4), "unknown dtype nothing"],
    ["an unknown dtype", build(`{"a":${entry("F31", [2], 0, 8)}}`, 8), 'unknown dtype "F31"'],
    ["a dtype of Object's", build(`{"a":${entry("constructor", [2], 0, 8)}}`, 8), 'unknown dtype "constructor"'],
    ["no shape", build('{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4), "impossible shape nothing"],
    ["a shape of text", build(`{"a":${entry("F32", ["2"], 0, 8)}}`, 8), 'impossible shape ["2"]'],
    ["a negative shape", build(`{"a":${entry("F32", [-2], 0, 8)}}`, 8), "number -2 is no plain non-negative integer"],
    ["a fraction", build(`{"a":${entry("F32", [1.5], 0, 6)}}`, 6), "number 1.5 is no plain"],
    [
      "an integer written as a float",
      build('{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', 1),
      "number 1.0",
    ],
    ["minus zero", build('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), "number -0 is no plain"],
    [
      "a size over 2^53",
      build('{"a":{"dtype":"U8","shape":[9007199254740993],"data_offsets":[0,1]}}', 1),
      "impossible shape",
    ],
    ["a shape that overflows", build(`{"a":${entry("U8", [2 ** 40, 2 ** 40], 0, 8)}}`, 8), "too large"],
    ["an overflow times zero", build(`{"a":${entry("U8", [2 ** 40, 2 ** 40, 0], 0, 0)}}`), "too large"],
    ["four-bit numbers that end inside a byte", build(`{"a":${entry("F4", [3], 0, 2)}}`, 2), "ends inside a byte"],
    ["no offsets", build('{"a":{"dtype":"F32","shape":[1]}}', 4), "impossible data_offsets nothing"],
    [
      "three offsets",
      build('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}', 1),
      "impossible data_offsets [0,1,2]",
    ],
    ["negative offsets", build(`{"a":${entry("U8", [1], -1, 0)}}`, 1), "number -1"],
    ["reversed offsets", build(`{"a":${entry("F32", [2], 8, 0)}}`, 8), "ends at data byte 0, before it begins at 8"],
    ["too few bytes for the shape", build(`{"a":${entry("F32", [3], 0, 8)}}`, 8), "takes 12 bytes, not 8"],
    ["too many bytes for the shape", build(`{"a":${entry("F32", [], 0, 8)}}`, 8), "takes 4 bytes, not 8"],
    ["a start after 0", build(`{"a":${entry("F32", [1], 4, 8)}}`, 8), "leaves a hole before it"],
    [
      "a hole",
      build(`{"a":${entry("U8", [1], 0, 1)},"b":${entry("U8", [1], 2, 3)}}`, 3),
      'tensor "b" begins at data byte 2 and leaves a hole',
    ],
    [
      "an overlap",
      build(`{"a":${entry("U8", [2], 0, 2)},"b":${entry("U8", [2], 1, 3)}}`, 3),
      'tensor "b" begins at data byte 1 and overlaps',
    ],
    ["two tensors in one place", build(`{"a":${one},"b":${one}}`, 8), "overlaps"],
    ["data past the end", build(`{"a":${one}}`, 7), "the tensors cover 8 bytes of data, the file has 7"],
    ["bytes of no tensor", build(`{"a":${one}}`, 9), "the tensors cover 8 bytes of data, the file has 9"],
    ["data without tensors", build("{}", 1), "the tensors cover 0 bytes of data, the file has 1"],
    ["nesting without end", build(`{"a":{"dtype":${"[".repeat(1e5)}${"]".repeat(1e5)}}}`), "unknown dtype"],
  ])("rejects %s", async (_, file, message) => {
    const error = await failure(() => openSafetensorsBuffer(file, "model.safetensors"));
    expect(error.code).toBe("file_format");
    expect(error.message).toContain("[safetensors] model.safetensors: ");
    expect(error.message).toContain(message);
    expect(error.message.length).toBeLessThan(500);
  });

  it("lets nothing but valid files and LtxErrors out, whatever the bytes", () => {
    const tensor = `{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}`;
    const valid = build(`{"__metadata__":{"a":"b"},"x":${tensor},"y":${entry("U8", [3], 8, 11)}}`, 11);
    const change = fc.record({
      at: fc.nat(valid.length - 1),
      byte: fc.oneof(fc.nat(255), fc.constantFrom(...Buffer.from('{}[]",:0129-'))),
    });
    fc.assert(
      fc.property(fc.array(change, { maxLength: 4 }), fc.nat(3), (changes, cut) => {
        const bytes = Uint8Array.from(valid);
        for (const { at, byte } of changes) bytes[at] = byte;
        const file = bytes.subarray(0, bytes.length - cut);
        try {
          let end = file.length - 11;
          for (const { offset, byteLength, dtype, shape } of parseSafetensorsHeader(file).tensors.values()) {
            expect(offset).toBe(end);
            expect(byteLength * 8).toBe(shape.reduce((a, b) => a * b, DTYPE_BITS[dtype]));
            end = offset + byteLength;
          }
          expect(end).toBe(file.length);
        } catch (error) {
          expect(error).toBeInstanceOf(LtxError);
          expect((error as LtxError).code).toBe("file_format");
        }
      }),
      { seed: 7, numRuns: 2000 },
    );
  });
});

describe("readF32", () => {
  const cases: [SafetensorsDtype, ArrayBufferView, number[]][] = [
    ["F32", Float32Array.of(1.5, -0, 3e38), [1.5, -0, Math.fround(3e38)]],
    ["F64", Float64Array.of(0.1, 1e300), [Math.fround(0.1), Infinity]],
    ["BF16", Uint16Array.of(0x3f80, 0xc049, 0x7f80, 0x0001), [1, -3.140625, Infinity, 2 ** -133]],
    ["F16", Uint16Array.of(0x3c00, 0xc248, 0x0001, 0x7bff, 0xfc00), [1, -3.140625, 2 ** -24, 65504, -Infinity]],
    ["F8_E4M3", Uint8Array.of(0x38, 0x7e, 0x01, 0xff), [1, 448, 2 ** -9, NaN]],
    ["F8_E5M2", Uint8Array.of(0x3c, 0x7b, 0x01, 0xfc, 0x7d), [1, 57344, 2 ** -16, -Infinity, NaN]],
    ["I64", BigInt64Array.of(-5n, 2n ** 40n), [-5, 2 ** 40]],
    ["U64", BigUint64Array.of(2n ** 63n), [2 ** 63]],
    ["I32", Int32Array.of(-7), [-7]],
    ["U32", Uint32Array.of(2 ** 31), [2 ** 31]],
    ["I16", Int16Array.of(-300), [-300]],
    ["U16", Uint16Array.of(65535), [65535]],
    ["I8", Int8Array.of(-128), [-128]],
    ["U8", Uint8Array.of(255), [255]],
    ["BOOL", Uint8Array.of(0, 1), [0, 1]],
  ];
  it.each(cases)("reads %s", async (dtype, values, expected) => {
    const data = new Uint8Array(values.buffer);
    const path = at(`${dtype}.safetensors`);
    await writeSafetensors(path, [
      // Leaves the tensor behind at an odd place when it is narrower than 8 bytes.
      { name: "0", dtype, shape: [expected.length], data },
      { name: "z", dtype: "U8", shape: [1], data: Uint8Array.of(9) },
    ]);
    const file = await readSafetensors(path);
    expect(Array.from(await file.readF32("0"))).toEqual(expected);
    expect(await openSafetensorsBuffer(readFileSync(path)).readF32("0")).toEqual(await file.readF32("0"));
    expect(await file.read("0")).toEqual(data);
    await file.close();
  });

  it("says when a type has no float32 reading", async () => {
    const file = openSafetensorsBuffer(build(`{"a":${entry("F8_E8M0", [1], 0, 1)}}`, 1));
    const error = await failure(() => file.readF32("a"));
    expect([error.code, error.message]).toEqual([
      "dtype_mismatch",
      '[safetensors] buffer: tensor "a" of dtype F8_E8M0 cannot be read as float32',
    ]);
  });
});

describe("readSafetensors", () => {
  it("names the file in every error", async () => {
    const missing = await failure(() => readSafetensors(at("missing.safetensors")));
    expect(missing.code).toBe("io");
    expect(missing.message).toContain(at("missing.safetensors"));
    expect((await failure(() => readSafetensors(folder))).code).toBe("io");
    writeFileSync(at("bad.safetensors"), build("{}", 3));
    const bad = await failure(() => readSafetensors(at("bad.safetensors")));
    expect(bad.code).toBe("file_format");
    expect(bad.message).toContain(at("bad.safetensors"));
  });

  it("refuses unknown names and reads after close", async () => {
    const path = at("close.safetensors");
    await writeSafetensors(path, [{ name: "a", dtype: "U8", shape: [1], data: Uint8Array.of(1) }]);
    const file = await readSafetensors(path);
    expect((await failure(() => file.read("b"))).message).toContain('has no tensor "b" among its 1 ("a", ...)');
    await file.close();
    await file.close();
    expect((await failure(() => file.read("a"))).code).toBe("disposed");
  });

  it("gives copies that do not touch one another or the source", async () => {
    const source = build(`{"a":${entry("U8", [2], 0, 2)}}`, 2);
    const file = openSafetensorsBuffer(source);
    const copy = await file.read("a");
    copy.fill(0);
    expect(await file.read("a")).toEqual(Uint8Array.of(7, 7));
    expect(copy.byteOffset).toBe(0);
  });
});

describe("writeSafetensors", () => {
  const tensor = (name: string, values: number[], dtype: SafetensorsDtype = "U8"): SafetensorsTensor => ({
    name,
    dtype,
    shape: [values.length],
    data: Uint8Array.from(values),
  });

  it("round-trips any tensors and metadata", async () => {
    const path = at("round.safetensors");
    const name = fc.string({ unit: "grapheme", maxLength: 8 }).filter((s) => s !== "__metadata__");
    const anyTensor = fc
      .record({
        name,
        dtype: fc.constantFrom<SafetensorsDtype>("F32", "BF16", "U8", "I64", "F8_E4M3"),
        shape: fc.array(fc.nat(3), { maxLength: 4 }),
        fill: fc.nat(255),
        lazy: fc.boolean(),
      })
      .map(({ name, dtype, shape, fill, lazy }) => {
        const bytes = new Uint8Array(shape.reduce((a, b) => a * b, DTYPE_BITS[dtype] / 8)).fill(fill);
        return { name, dtype, shape, bytes, data: lazy ? async () => bytes : bytes };
      });
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(anyTensor, { selector: (t) => t.name, maxLength: 6 }),
        fc.dictionary(name, fc.string({ unit: "grapheme" })),
        async (tensors, metadata) => {
          await writeSafetensors(path, tensors, metadata);
          const file = await readSafetensors(path);
          expect(Object.entries(file.metadata)).toEqual(Object.entries(metadata));
          expect(file.tensors.size).toBe(tensors.length);
          for (const { name, dtype, shape, bytes } of tensors) {
            const entry = file.tensors.get(name);
            expect([entry?.dtype, entry?.shape]).toEqual([dtype, shape]);
            expect((entry?.offset ?? 1) % (DTYPE_BITS[dtype] / 8)).toBe(0);
            expect(await file.read(name)).toEqual(bytes);
          }
          await file.close();
        },
      ),
      { seed: 3, numRuns: 40 },
    );
  });

  it("gives equal files for equal contents in any order", async () => {
    const tensors = [tensor("b", [1]), tensor("c", [1, 0, 0, 0, 0, 0, 0, 0]), tensor("a", [2])];
    await writeSafetensors(at("1.safetensors"), tensors);
    await writeSafetensors(at("2.safetensors"), tensors.reverse());
    expect(readFileSync(at("1.safetensors"))).toEqual(readFileSync(at("2.safetensors")));
    expect(readFileSync(at("1.safetensors")).readBigUInt64LE() % 8n).toBe(0n);
  });

  it("leaves the old file and no other when a tensor fails on the way", async () => {
    const home = mkdtempSync(join(folder, "atomic-"));
    const path = join(home, "model.safetensors");
    await writeSafetensors(path, [tensor("a", [1])]);
    const before = readFileSync(path);
    const late = (data: () => Promise<Uint8Array>) =>
      failure(() => writeSafetensors(path, [tensor("a", [2]), { ...tensor("b", [1]), data }]));

    const thrown = await late(() => Promise.reject(new Error("device lost")));
    expect([thrown.code, thrown.message]).toEqual(["io", `[write] cannot write ${path}: device lost`]);
    const short = await late(async () => new Uint8Array(0));
    expect([short.code, short.message]).toEqual([
      "shape_mismatch",
      `[safetensors] cannot write tensor "b" to ${path}: got 0 bytes, its shape needs 1`,
    ]);
    expect(readFileSync(path)).toEqual(before);
    expect(readdirSync(home)).toEqual(["model.safetensors"]);
  });

  it("names the file when the folder is missing", async () => {
    const path = join(folder, "nowhere", "x.safetensors");
    const error = await failure(() => writeSafetensors(path, []));
    expect([error.code, error.message.includes(path)]).toEqual(["io", true]);
  });

  it.each<[string, SafetensorsTensor[], Record<string, string>, string]>([
    ["two tensors of one name", [tensor("a", [1]), tensor("a", [1])], {}, 'two tensors are named "a"'],
    ["the reserved name", [tensor("__metadata__", [1])], {}, "cannot be a tensor's name"],
    ["an unknown dtype", [tensor("a", [1], "F33" as "F32")], {}, 'unknown dtype "F33"'],
    ["a wrong shape", [{ ...tensor("a", [1]), shape: [-1] }], {}, "impossible shape [-1]"],
    ["wrong lengths", [tensor("a", [1, 2, 3], "F32")], {}, "got 3 bytes, its shape needs 12"],
    ["metadata that is no text", [], { step: 3 as unknown as string }, 'metadata "step" must be text, got 3'],
    ["text that is no Unicode", [tensor("\ud800", [1])], {}, "cannot be a tensor's name"],
  ])("refuses %s before it touches the disk", async (_, tensors, metadata, message) => {
    const error = await failure(() => writeSafetensors(join(folder, "nowhere", "x"), tensors, metadata));
    expect(error.code).not.toBe("io");
    expect(error.message).toContain(message);
  });
});
