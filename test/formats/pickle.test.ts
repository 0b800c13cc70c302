import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { LtxError } from "../../lib/errors.js";
import { Opaque, PickleGlobal, PickleTruncated, unpickle } from "../../lib/formats/pickle.js";
import { failure as rejection } from "../support/failure.js";

const globals = [
  new PickleGlobal("collections.OrderedDict", () => new Map()),
  new PickleGlobal("argparse.Namespace", () => new Opaque("argparse.Namespace")),
];
const options = { globals: new Map(globals.map((global) => [global.name, global])), name: "test.pkl" };
const read = async (bytes: Uint8Array | string) =>
  (await unpickle(typeof bytes === "string" ? Buffer.from(bytes, "latin1") : bytes, options)).value;
const failure = (bytes: Uint8Array | string): Promise<LtxError> => rejection(() => read(bytes));

describe("unpickle", () => {
  // Written by Python 3.11's pickle.dumps: one dict, by protocol.
  const written: Record<number, string> = {
    2:
      "gAJ9cQAoWAQAAABpbnRzcQFdcQIoSwFK/////0v/TQABTf//SgAAAQBKAAAAgIoGAAAAAAABigYAAAAAAP+KCQAAAAAAAACAAIoJAAAAAAAA" +
      "AADAZVgEAAAAcmVzdHEDKEc/+AAAAAAAAEeAAAAAAAAAAIiJTnRxBFgGAAAAdHVwbGVzcQVdcQYoKUsBhXEHSwFLAoZxCEsBSwJLA4dxCShL" +
      "AUsCSwNLBHRxCmVYBAAAAHRleHRxC1gJAAAAw6Tigqzwn5iAcQxYBwAAAG9yZGVyZWRxDWNjb2xsZWN0aW9ucwpPcmRlcmVkRGljdApxDilS" +
      "cQ8oWAEAAABrcRBLAUsCXXERdVgGAAAAc2hhcmVkcRJdcRMoXXEUSwFhaBRldS4=",
    5:
      "gAWV9wAAAAAAAAB9lCiMBGludHOUXZQoSwFK/////0v/TQABTf//SgAAAQBKAAAAgIoGAAAAAAABigYAAAAAAP+KCQAAAAAAAACAAIoJAAAA" +
      "AAAAAADAZYwEcmVzdJQoRz/4AAAAAAAAR4AAAAAAAAAAiIlOdJSMBnR1cGxlc5RdlCgpSwGFlEsBSwKGlEsBSwJLA4eUKEsBSwJLA0sEdJRl" +
      "jAR0ZXh0lIwJw6Tigqzwn5iAlIwHb3JkZXJlZJSMC2NvbGxlY3Rpb25zlIwLT3JkZXJlZERpY3SUk5QpUpQojAFrlEsBSwJdlHWMBnNoYXJl" +
      "ZJRdlChdlEsBYWgWZXUu",
  };

  it.each([2, 5])("reads what Python writes in protocol %i", async (protocol) => {
    const bytes = Buffer.from(written[protocol], "base64");
    const { value, end } = await unpickle(bytes, options);
    expect(end).toBe(bytes.length);
    expect(value).toEqual(
      new Map<string, unknown>([
        ["ints", [1, -1, 255, 256, 65535, 65536, -(2 ** 31), 2 ** 40, -(2 ** 40), 2n ** 63n, -(2n ** 70n)]],
        ["rest", [1.5, -0, true, false, null]],
        ["tuples", [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]],
        ["text", "ä€😀"],
        [
          "ordered",
          new Map<unknown, unknown>([
            ["k", 1],
            [2, []],
          ]),
        ],
        ["shared", [[1], [1]]],
      ]),
    );
    const [first, second] = (value as Map<string, unknown[]>).get("shared") as unknown[];
    expect(first).toBe(second);
  });

  it("begins where it is told and says where it ends", async () => {
    expect(await unpickle(Buffer.from("..K\x07.K\x08.", "latin1"), options, 2)).toEqual({ value: 7, end: 5 });
  });

  it.each([
    ["by text", "\x80\x02cposix\nsystem\n.", "posix.system"],
    ["from the stack", "\x80\x04\x8c\x05posix\x8c\x06system\x93.", "posix.system"],
    ["of builtins", "c__builtin__\neval\n.", "__builtin__.eval"],
    ["behind a dotted path", "ccollections\nOrderedDict.__init__\n.", "collections.OrderedDict.__init__"],
    ["of a JavaScript object", "cconstructor\nconstructor\n.", "constructor.constructor"],
  ])("refuses a global %s by name", async (_, bytes, name) => {
    const error = await failure(bytes);
    expect(error.code).toBe("checkpoint");
    expect(error.message).toContain(`test.pkl asks for the Python object "${name}": refused`);
  });

  it.each([
    ["no stop", "K\x01", "ends early"],
    ["nothing", "", "ends early"],
    ["a text past the end", "X\xff\xff\xff\xffab.", "ends early"],
    ["a text of 2^64 bytes", "\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.", "ends early"],
    ["a global without its end", "cposix", "ends early"],
    ["protocol 6", "\x80\x06N.", "protocol 6 is unknown"],
    ["an empty stack", ".", "an instruction lacks its operand"],
    ["no mark", "t.", "an instruction lacks its mark"],
    ["a mark left over", "(N.", "objects are left over"],
    ["an object left over", "NN.", "objects are left over"],
    ["a memo that is not there", "h\x07.", "recalls object 7"],
    ["items of a tuple", ")Na.", "not a list"],
    ["items of a number", "K\x01Na.", "not a list"],
    ["keys of a list", "]NNs.", "not a dict"],
    ["a key without value", "}(Nu.", "a key without a value"],
    ["a call of a number", "K\x01)R.", "cannot be called"],
    ["a call of an array", ")(]t)RR.", "cannot be called"],
    ["a call without a tuple", "ccollections\nOrderedDict\nNR.", "cannot be called"],
    ["attributes of a list", "]}b.", "only dicts and objects of a class may have attributes"],
    ["a persistent id", "NQ.", "refers to objects outside itself"],
    ["an endless integer", "\x8b\xff\xff\xff\x7f\x00.", "over the limit"],
    ["text integers", "I1\n.", "instruction 0x49 is not allowed"],
    ["the extension registry", "\x82\x01.", "instruction 0x82 is not allowed"],
    ["an out-of-band buffer", "\x97.", "instruction 0x97 is not allowed"],
    ["a call with keywords of a number", "K\x01)}\x92.", "cannot be called"],
    ["items of a set that is none", "](K\x01\x90.", "not a set"],
  ])("refuses %s", async (_, bytes, reason) => {
    const error = await failure(bytes);
    expect(error.code).toBe("file_format");
    expect(error.message).toContain("[pickle] test.pkl: ");
    expect(error.message).toContain(reason);
  });

  it("tells a pickle that ends early from a wrong one", async () => {
    expect(await failure("K")).toBeInstanceOf(PickleTruncated);
    expect(await failure("K\x01a.")).not.toBeInstanceOf(PickleTruncated);
  });

  it("reads sets, frozensets and bytearrays as protocols 4 and 5 write them", async () => {
    expect(await read("\x8f(K\x01K\x02K\x01\x90.")).toEqual(new Set([1, 2]));
    expect(await read("(K\x03K\x04\x91.")).toEqual(new Set([3, 4]));
    expect([...((await read("\x96\x02\0\0\0\0\0\0\0ab.")) as Uint8Array)]).toEqual([97, 98]);
  });

  it("drops what objects of a class are given: attributes, items, arguments", async () => {
    const make = "cargparse\nNamespace\n";
    for (const use of [")R}b.", ")\x81N\x85b.", ")}\x92.", ")R(K\x01e.", ")R(K\x01K\x02u.", ")RNNs.", ")RNa."]) {
      expect([use, await read(make + use)]).toEqual([use, new Opaque("argparse.Namespace")]);
    }
  });

  it.each([
    ["dicts", "}"],
    ["lists", "]"],
    ["marks", "("],
    ["marks that are taken back", "(1"],
    ["memo entries", "N\x940"],
    ["sets that are dropped", "\x8f0"],
  ])("refuses 12 million %s before they fill the heap, and lets the event loop go on", async (_, one) => {
    const bytes = Buffer.alloc(12_000_000 * one.length, one, "latin1");
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    const error = await failure(bytes);
    clearInterval(timer);
    expect(error.code).toBe("file_format");
    expect(error.message).toContain("its objects would fill the memory");
    expect(turns).toBeGreaterThan(0);
  });

  it("refuses calls that copy one long list again and again", async () => {
    const list = Buffer.concat([
      Buffer.from("](", "latin1"),
      Buffer.alloc(200_000, "N"),
      Buffer.from("e\x940", "latin1"),
    ]);
    const copy = Buffer.from("ccollections\nOrderedDict\nh\0\x85R", "latin1");
    const error = await failure(Buffer.concat([list, ...Array.from({ length: 1000 }, () => copy)]));
    expect(error.message).toContain("its objects would fill the memory");
  });

  it("lets nothing but values and LtxErrors out, whatever the instructions", async () => {
    const opcodes = "\x80\x95NKMJGX(012]lae)t\x85\x86\x87}dsuqrhj\x94c\x93R\x81Qb.\x88\x89\x8a\x8bC\x8c";
    const instruction = fc.oneof(
      { weight: 6, arbitrary: fc.constantFrom(...opcodes).map((char) => char.charCodeAt(0)) },
      { weight: 1, arbitrary: fc.nat(255) },
    );
    const global = fc.constant([...Buffer.from("ccollections\nOrderedDict\n")]);
    const program = fc.array(fc.oneof({ weight: 9, arbitrary: instruction.map((b) => [b]) }, global), {
      maxLength: 60,
    });
    await fc.assert(
      fc.asyncProperty(program, async (parts) => {
        try {
          await read(Uint8Array.from([...parts.flat(), 0x2e]));
        } catch (error) {
          expect(error).toBeInstanceOf(LtxError);
          expect(["file_format", "checkpoint"]).toContain((error as LtxError).code);
        }
      }),
      { seed: 1, numRuns: 3000 },
    );
  });
});
