import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { LtxError } from "../../lib/errors.js";
import { openNpy, openNpz, parseNpyHeader } from "../../lib/formats/npy.js";
import { failure } from "../support/failure.js";
import { npyBytes, npyFile } from "../support/npy.js";
import { writeZip } from "../support/pytorch.js";

const folder = mkdtempSync(join(tmpdir(), "ltx-npy-"));
afterAll(() => rmSync(folder, { recursive: true }));
const at = (name: string) => join(folder, name);

/** All elements of the array in `bytes`. */
async function values(bytes: Uint8Array): Promise<number[]> {
  writeFileSync(at("values.npy"), bytes);
  const array = await openNpy(at("values.npy"));
  return [...(await array.read(0, array.size))];
}

describe("what NumPy writes", () => {
  const files = {
    "np.save, >i2":
      "k05VTVBZAQB2AHsnZGVzY3InOiAnPmkyJywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDIsIDMpLCB9ICAgICAgICAgICAgICAg" +
      "ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAAABAAIAAwAEAAU=",
    "np.save, <f4 in Fortran's order":
      "k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0JywgJ2ZvcnRyYW5fb3JkZXInOiBUcnVlLCAnc2hhcGUnOiAoMiwgMyksIH0gICAgICAgICAgICAgICAg" +
      "ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAAAAAABAQAAAgD8AAIBAAAAAQAAAoEA=",
    "np.savez_compressed, i8":
      "UEsDBC0AAAAIAAAAIQBZm9p9//////////8JABQAYXJyXzAubnB5AQAQALAAAAAAAAAAVgAAAAAAAACb7BfqGxDJyFDGUK2eklqcXKRupaBuk2mh" +
      "rqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RpGOgrGmjoKtQpkAy4GKGCE0kxQmhlKs0BpVigNAFBLAQItAy0AAAAIAAAAIQBZm9p9VgAA" +
      "ALAAAAAJAAAAAAAAAAAAAACAAQAAAABhcnJfMC5ucHlQSwUGAAAAAAEAAQA3AAAAkQAAAAAA",
  };

  it.each(Object.entries(files))("%s", async (name, base64) => {
    writeFileSync(at("file"), Buffer.from(base64, "base64"));
    const array = await (name.includes("savez") ? openNpz : openNpy)(at("file"));
    expect(array.shape).toEqual([2, 3]);
    expect([...(await array.read(0, 6))]).toEqual([0, 1, 2, 3, 4, 5]);
    expect([...(await array.read(2, 3))]).toEqual([2, 3, 4]);
  });

  it("np.savez", async () => {
    const base64 =
      "UEsDBC0AAAAAAAAAIQAvw+FZ//////////8KABQAbGFiZWxzLm5weQEAEACBAAAAAAAAAIEAAAAAAAAAk05VTVBZAQB2AHsnZGVzY3InOiAnfHUx" +
      "JywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDEsIDEpLCB9ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg" +
      "ICAgICAgICAgICAgICAgIAoHUEsBAi0DLQAAAAAAAAAhAC/D4VmBAAAAgQAAAAoAAAAAAAAAAAAAAIABAAAAAGxhYmVscy5ucHlQSwUGAAAAAAEA" +
      "AQA4AAAAvQAAAAAA";
    writeFileSync(at("labels.npz"), Buffer.from(base64, "base64"));
    const array = await openNpz(at("labels.npz"));
    expect([array.dtype, array.shape, [...(await array.read(0, 1))]]).toEqual(["u1", [1, 1], [7]]);
  });
});

describe("openNpy", () => {
  it.each<[string, ArrayBufferView, number[]]>([
    ["|u1", Uint8Array.of(0, 255), [0, 255]],
    ["|i1", Int8Array.of(-128, 127), [-128, 127]],
    ["<u2", Uint16Array.of(65535, 1), [65535, 1]],
    ["<i2", Int16Array.of(-2, 300), [-2, 300]],
    ["<u4", Uint32Array.of(2 ** 32 - 1, 1), [2 ** 32 - 1, 1]],
    ["<i4", Int32Array.of(-(2 ** 31), 1), [-(2 ** 31), 1]],
    ["<u8", BigUint64Array.of(2n ** 53n, 1n), [2 ** 53, 1]],
    ["<i8", BigInt64Array.of(-(2n ** 40n), 1n), [-(2 ** 40), 1]],
    ["<f4", Float32Array.of(0.5, -1), [0.5, -1]],
    ["<f8", Float64Array.of(0.1, -1e300), [0.1, -1e300]],
  ])("reads %s in both byte orders", async (descr, data, expected) => {
    expect(await values(npyBytes(descr, [2], data))).toEqual(expected);
    const swapped = Buffer.from(Buffer.from(data.buffer));
    const width = swapped.length / 2;
    const reversed = Buffer.concat([swapped.subarray(0, width).reverse(), swapped.subarray(width).reverse()]);
    expect(await values(npyBytes(descr.replace("<", ">"), [2], reversed))).toEqual(expected);
  });

  it("reads versions 2 and 3, scalars, empty arrays, and keys in any order and quotes", async () => {
    for (const version of [2, 3]) {
      const header = `{"shape": (2,), 'fortran_order': False, 'descr': "<u2"}`;
      expect(await values(npyFile(header, new Uint8Array([1, 0, 2, 0]), version))).toEqual([1, 2]);
    }
    expect(await values(npyBytes("|u1", [], Uint8Array.of(9)))).toEqual([9]);
    expect(await values(npyBytes("<f8", [0, 3], new Uint8Array(0)))).toEqual([]);
    expect(
      await values(npyFile("{'descr': '|u1', 'fortran_order': False, 'shape': (2L,)}", Uint8Array.of(1, 2))),
    ).toEqual([1, 2]);
  });

  it("turns arrays in Fortran's order", async () => {
    // Element (i, j, k) of (2, 3, 2) holds 100 i + 10 j + k.
    const column = [0, 100, 10, 110, 20, 120, 1, 101, 11, 111, 21, 121];
    const expected = [0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121];
    expect(await values(npyBytes("<i2", [2, 3, 2], Int16Array.from(column), true))).toEqual(expected);
    const big = Buffer.from(Int16Array.from(column).buffer).swap16();
    expect(await values(npyBytes(">i2", [2, 3, 2], big, true))).toEqual(expected);
  });

  const one = "'fortran_order': False, 'shape': (1,)";
  it.each<[string, Buffer, string]>([
    ["another file", Buffer.from("hello world, this is text"), "is no .npy file"],
    ["an empty file", Buffer.alloc(0), "is no .npy file"],
    ["a cut header", npyBytes("|u1", [1], Uint8Array.of(1)).subarray(0, 50), "ends inside its header"],
    ["version 4", npyFile(`{'descr': '|u1', ${one}}`, Uint8Array.of(1), 4), "unknown version 4.0"],
    [
      "a header of 4 GB",
      Buffer.concat([Buffer.from("\x93NUMPY\x02\0\xff\xff\xff\xff", "latin1"), Buffer.alloc(9)]),
      "the limit is 10000",
    ],
    ["Python objects", npyFile(`{'descr': '|O', ${one}}`, Buffer.alloc(8)), "holds Python objects, which are not read"],
    ["records", npyFile(`{'descr': [('a', '<f4')], ${one}}`, Buffer.alloc(4)), "elements of type [('a', '<f4')]"],
    ["complex numbers", npyFile(`{'descr': '<c8', ${one}}`, Buffer.alloc(8)), "elements of type '<c8'"],
    ["text", npyFile(`{'descr': '<U4', ${one}}`, Buffer.alloc(16)), "elements of type '<U4'"],
    ["no dict", npyFile("[1, 2]", Buffer.alloc(1)), "a header that is no dict"],
    ["code", npyFile(`{'descr': __import__('os'), ${one}}`, Buffer.alloc(1)), "a header that cannot be read"],
    [
      "a key twice",
      npyFile(`{'descr': '|u1', 'descr': '|u1', ${one}}`, Buffer.alloc(1)),
      "a header that cannot be read",
    ],
    [
      "a missing key",
      npyFile("{'descr': '|u1', 'shape': (1,)}", Buffer.alloc(1)),
      "needs descr, fortran_order and shape",
    ],
    [
      "a further key",
      npyFile(`{'descr': '|u1', 'x': True, ${one}}`, Buffer.alloc(1)),
      "needs descr, fortran_order and shape",
    ],
    [
      "a hole in the shape",
      npyFile("{'descr': '|u1', 'fortran_order': False, 'shape': (1,,2)}", Buffer.alloc(2)),
      "impossible shape",
    ],
    ["a shape past 2^53", npyBytes("|u1", [2 ** 40, 2 ** 40, 0], new Uint8Array(0)), "impossible shape"],
    ["missing elements", npyBytes("<f4", [2], Float32Array.of(1)), "needs 136; the file is damaged"],
    ["further bytes", npyBytes("|u1", [1], Uint8Array.of(1, 2)), "has 1 bytes behind its array"],
    ["more elements than memory", npyBytes("<f8", [2 ** 45], Float64Array.of(1), true), "the file is damaged"],
  ])("refuses %s", async (_, bytes, reason) => {
    writeFileSync(at("bad.npy"), bytes);
    const error = await failure(() => openNpy(at("bad.npy")));
    expect(error.code).toBe("file_format");
    expect(error.message).toContain(`[npy] ${at("bad.npy")}: `);
    expect(error.message).toContain(reason);
  });

  it("refuses missing files, archives without arrays and elements that are not there", async () => {
    expect(await failure(() => openNpy(at("missing.npy")))).toMatchObject({ code: "io" });
    await writeZip(at("none.npz"), new Map([["a.txt", Buffer.from("x")]]));
    expect((await failure(() => openNpz(at("none.npz")))).message).toContain("holds no array");
    writeFileSync(at("small.npy"), npyBytes("|u1", [2], Uint8Array.of(1, 2)));
    const array = await openNpy(at("small.npy"));
    expect(await failure(() => array.read(1, 2))).toMatchObject({ code: "invalid_argument" });
  });

  it("names bytes behind the array", async () => {
    const one = npyBytes("|u1", [2], Uint8Array.of(1, 2));
    writeFileSync(at("twice.npy"), Buffer.concat([one, one]));
    const { code, message } = await failure(() => openNpy(at("twice.npy")));
    expect(code).toBe("file_format");
    expect(message).toContain(`has ${one.length} bytes behind its array`);
  });

  it("inflates an archive once for all who read it, and anew when the file is another", async () => {
    const write = (byte: number, name = "shared.npz") =>
      writeZip(at(name), new Map([["a.npy", npyBytes("|u1", [3], new Uint8Array(3).fill(byte))]]), { compress: true });
    await write(1);
    const [first, again] = await Promise.all([openNpz(at("shared.npz")), openNpz(at("shared.npz"))]);
    expect(again).toBe(first);
    expect(await openNpz(at("shared.npz"))).toBe(first);
    await write(2, "next.npz");
    renameSync(at("next.npz"), at("shared.npz"));
    const other = await openNpz(at("shared.npz"));
    expect([...(await other.read(0, 3))]).toEqual([2, 2, 2]);
    expect([...(await first.read(0, 3))]).toEqual([1, 1, 1]);
  });

  it("lets nothing but headers and LtxErrors out, whatever the text", () => {
    const word = fc.constantFrom(
      "'descr'",
      "'shape'",
      "'fortran_order'",
      "True",
      "False",
      "'<f4'",
      "'|u1'",
      "(",
      ")",
      ",",
      ":",
      "{",
      "}",
      "1",
      "2,",
      " ",
      "9999999999",
      "'",
    );
    const text = fc.oneof(
      fc.array(word, { maxLength: 30 }).map((words) => `{${words.join("")}}`),
      fc.string({ maxLength: 60 }),
    );
    fc.assert(
      fc.property(text, fc.nat(3), (header, version) => {
        try {
          parseNpyHeader(npyFile(header, new Uint8Array(0), version));
        } catch (error) {
          expect(error).toBeInstanceOf(LtxError);
          expect((error as LtxError).code).toBe("file_format");
        }
      }),
      { seed: 3, numRuns: 2000 },
    );
  });

  it("reads a header of adversarial length in linear time", () => {
    const started = performance.now();
    const long = (unit: string) => `{${unit.repeat(Math.floor(9900 / unit.length))}}`;
    for (const unit of ["'a': [", "'descr': (1 ", " ", "[]", "'a':", "'shape': (1,1", "True,"]) {
      expect(() => parseNpyHeader(npyFile(long(unit), new Uint8Array(0)))).toThrow(LtxError);
    }
    expect(performance.now() - started).toBeLessThan(1000);
  });
});
