import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LtxError } from "../../lib/errors.js";
import { readPytorch } from "../../lib/formats/pytorch.js";
import { openTensorFile } from "../../lib/formats/tensor-file.js";
import { failure } from "../support/failure.js";
import { bytesOf, Global, legacyBytes, PtTensor, pickle, Tuple, writePt, writeZip } from "../support/pytorch.js";

const folder = mkdtempSync(join(tmpdir(), "ltx-pt-"));
afterAll(() => rmSync(folder, { recursive: true }));
const at = (name: string) => join(folder, name);

const base = PtTensor.f32([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [3, 4]);
const typed = (name: string, array: ArrayBufferView & { length: number }) =>
  new PtTensor(`torch ${name}Storage`, bytesOf(array), array.length, [array.length]);

/** Entries, and the floats that they must give. */
const entries: [string, PtTensor, number[]][] = [
  ["whole", base, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]],
  ["transposed", base.view([4, 3], [1, 4]), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]],
  ["window", base.view([2, 2], [4, 1], 5), [5, 6, 9, 10]],
  ["every other", base.view([2, 2], [8, 2]), [0, 2, 8, 10]],
  ["expanded", base.view([2, 3], [0, 1], 9), [9, 10, 11, 9, 10, 11]],
  ["one of one", base.view([1, 1, 1], [77, 99, 1], 11), [11]],
  ["scalar", base.view([], [], 7), [7]],
  ["empty", base.view([0, 3], [3, 1]), []],
  ["half", typed("Half", Uint16Array.of(0x3c00, 0xc000, 0x7bff)), [1, -2, 65504]],
  ["bfloat", typed("BFloat16", Uint16Array.of(0x3f80, 0xc000)), [1, -2]],
  ["bfloat reversed", typed("BFloat16", Uint16Array.of(1, 2, 3, 4)).view([2, 2], [1, 2]), [1, 3, 2, 4].map(denormal)],
  ["double", typed("Double", Float64Array.of(0.1, -3)), [Math.fround(0.1), -3]],
  ["double columns", typed("Double", Float64Array.of(1, 2, 3, 4)).view([2, 2], [1, 2]), [1, 3, 2, 4]],
  ["byte", typed("Byte", Uint8Array.of(0, 255)), [0, 255]],
  ["byte columns", typed("Byte", Uint8Array.of(1, 2, 3, 4)).view([2, 2], [1, 2]), [1, 3, 2, 4]],
  ["char", typed("Char", Int8Array.of(-128, 127)), [-128, 127]],
  ["short", typed("Short", Int16Array.of(-32768, 5)), [-32768, 5]],
  ["int", typed("Int", Int32Array.of(-7, 1 << 20)), [-7, 1 << 20]],
  ["long", typed("Long", BigInt64Array.of(-7n, 2n ** 40n)), [-7, 2 ** 40]],
  ["bool", typed("Bool", Uint8Array.of(1, 0)), [1, 0]],
  ["parameter", new PtTensor("torch FloatStorage", bytesOf(Float32Array.of(2.5)), 1, [1], [1], 0, true), [2.5]],
];

function denormal(bits: number): number {
  return new Float32Array(Uint32Array.of(bits << 16).buffer)[0];
}

const stateDict = (prefix = "") => new Map(entries.map(([name, tensor]) => [prefix + name, tensor]));
const saved = new Map<string, unknown>([
  ["step", 12],
  ["model_state_dict", stateDict()],
  ["optimizer_state_dicts", [new Map([["state", new Map([[0, new Map([["exp_avg", base]])]])]])]],
  ["note", new Tuple("a", 1.5, null)],
]);

async function expectEntries(path: string): Promise<void> {
  const file = await openTensorFile(path);
  try {
    expect([...file.tensors.keys()]).toEqual(entries.map(([name]) => name));
    for (const [name, { shape }, values] of entries) {
      expect([name, file.tensors.get(name)?.shape]).toEqual([name, shape]);
      expect([name, [...(await file.readF32(name))]]).toEqual([name, values]);
    }
  } finally {
    await file.close();
  }
}

describe("reading what torch.save writes", () => {
  it.each([
    ["stored", {}],
    ["compressed", { compress: true }],
    ["zip64", { zip64: true }],
  ])("the zip format, %s", async (name, options) => {
    await writePt(at(`${name}.pt`), saved, options);
    await expectEntries(at(`${name}.pt`));
  });

  it("the older format", async () => {
    writeFileSync(at("legacy.pt"), legacyBytes(saved));
    await expectEntries(at("legacy.pt"));
  });

  it("an older file whose pickle is longer than the first read", async () => {
    const many = new Map(Array.from({ length: 20000 }, (_, i) => [`a.long.name.${i}`, base.view([1], [1], i % 12)]));
    writeFileSync(at("long.pt"), legacyBytes(many));
    const file = await openTensorFile(at("long.pt"));
    expect(file.tensors.size).toBe(20000);
    expect([...(await file.readF32("a.long.name.19999"))]).toEqual([7]);
    await file.close();
  });

  it("bare state dicts, and keys behind module.", async () => {
    await writePt(at("bare.pt"), stateDict());
    await expectEntries(at("bare.pt"));
    await writePt(at("module.pt"), new Map([["model_state_dict", stateDict("module.")]]));
    await expectEntries(at("module.pt"));
  });

  it("keys that torch.compile, FSDP, DataParallel and checkpoint_wrapper made longer, one by one", async () => {
    const names = [
      ["module.a.weight", "a.weight"],
      ["_orig_mod.b", "b"],
      ["_orig_mod.module.c", "c"],
      ["module._orig_mod.module.d", "d"],
      ["encoder._orig_mod.e", "encoder.e"],
      ["_fsdp_wrapped_module.f._checkpoint_wrapped_module.g", "f.g"],
      ["inner.module.h", "inner.module.h"],
      ["i", "i"],
    ];
    await writePt(at("wrapped.pt"), new Map(names.map(([name]) => [name, base])));
    const file = await openTensorFile(at("wrapped.pt"));
    expect([...file.tensors.keys()]).toEqual(names.map(([, own]) => own));
    expect([...(await file.readF32("c"))]).toEqual([...Array(12).keys()]);
    await file.close();
    await writePt(
      at("twice.pt"),
      new Map([
        ["x.y", base],
        ["module.x.y", base],
      ]),
    );
    const error = await failure(() => openTensorFile(at("twice.pt")));
    expect(error.message).toContain('holds "x.y" twice, once of them as "module.x.y"');
  });

  it.each([["model"], ["module"], ["ema"], ["generator"], ["ema", "module"], ["model", "state_dict"]])(
    "a state dict under %s %s",
    async (...path) => {
      const inner = path.reduceRight<unknown>((value, key) => new Map<string, unknown>([[key, value]]), stateDict());
      (inner as Map<string, unknown>).set("epoch", 3).set("optimizer", new Map([["lr", 0.1]]));
      await writePt(at("place.pt"), inner);
      await expectEntries(at("place.pt"));
    },
  );

  it("model_state_dict rather than model, and model rather than ema", async () => {
    const one = (name: string) => new Map([[name, base]]);
    const keysOf = async (places: string[]) => {
      await writePt(at("several.pt"), new Map(places.map((place) => [place, one(place)])));
      const file = await openTensorFile(at("several.pt"));
      await file.close();
      return [...file.tensors.keys()];
    };
    expect(await keysOf(["ema", "model", "model_state_dict"])).toEqual(["model_state_dict"]);
    expect(await keysOf(["ema", "model"])).toEqual(["model"]);
  });

  /** `value` in the pickle is this text, in latin1. */
  const besides = async (text: string): Promise<string> => {
    const { bytes } = pickle(new Map([["model_state_dict", stateDict()]]));
    const beside = Buffer.from(`X\x06\0\0\0beside${text}s.`, "latin1");
    const parts: [string, Uint8Array][] = [["a/data.pkl", Buffer.concat([bytes.subarray(0, -1), beside])]];
    const { storages } = pickle(stateDict());
    storages.forEach(({ data }, i) => {
      parts.push([`a/data/${i}`, data]);
    });
    await writeZip(at("beside.pt"), new Map(parts));
    return at("beside.pt");
  };
  const text = (value: string) => `X${String.fromCharCode(value.length)}\0\0\0${value}`;
  it.each([
    ["a set", `c__builtin__\nset\n](K\x01K\x02e\x85R`],
    ["a Counter", "ccollections\nCounter\n}K\x05K\x01s\x85R"],
    ["a defaultdict", "ccollections\ndefaultdict\nc__builtin__\nint\n\x85R(K\x01K\x02u"],
    ["a deque", "ccollections\ndeque\n)R(K\x01K\x02e"],
    ["a device", `ctorch\ndevice\n${text("cuda")}K\0\x86R`],
    ["bytes", `c_codecs\nencode\n${text("ab")}${text("latin1")}\x86R`],
    ["a bytearray", `c__builtin__\nbytearray\n${text("ab")}${text("latin-1")}\x86R`],
    ["a complex number", "c__builtin__\ncomplex\nG?\xf0\0\0\0\0\0\0G?\xf0\0\0\0\0\0\0\x86R"],
    ["a dtype", "ctorch\nfloat16\n"],
    ["a quantized dtype", "ctorch\nqint8\n"],
    ["a memory format", "ctorch\ncontiguous_format\n"],
    ["a Namespace", `cargparse\nNamespace\n)\x81}${text("lr")}K\x01sb`],
    [
      "a NumPy number",
      `cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n${text("f8")}\x89\x88\x87R(K\x03Ntb${text("x")}\x86R`,
    ],
    ["a NumPy array", `cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85${text("b")}\x87R(K\x01tb`],
    ["a path", `cpathlib\nPosixPath\n${text("/")}\x85R`],
    ["a date", `cdatetime\ndatetime\n${text("x")}\x85R`],
    ["OmegaConf's", `comegaconf.dictconfig\nDictConfig\n)\x81}b`],
    ["a scheduler", `ctorch.optim.lr_scheduler\nLambdaLR\n)\x81}b`],
    ["a sparse tensor", "ctorch._utils\n_rebuild_sparse_tensor\nctorch\nsparse_coo\nN\x86R"],
    ["a tensor without values", "ctorch._utils\n_rebuild_meta_tensor_no_storage\nctorch\nfloat32\n\x85R"],
  ])("a state dict with %s beside it", async (_, beside) => {
    await expectEntries(await besides(beside));
  });

  it("a file whose tensors stand beside a quantized and a complex128 one, but not in the state dict", async () => {
    const beside = [
      ["q", new PtTensor("torch QInt8Storage", new Uint8Array(3), 3, [3])],
      ["z", new PtTensor("torch ComplexDoubleStorage", new Uint8Array(32), 2, [2])],
    ] as const;
    const value = new Map<string, unknown>([["model_state_dict", stateDict()], ...beside]);
    await writePt(at("unreadable.pt"), value);
    await expectEntries(at("unreadable.pt"));
    writeFileSync(at("unreadable-legacy.pt"), legacyBytes(value));
    await expectEntries(at("unreadable-legacy.pt"));
  });

  it("everything else that was saved", async () => {
    await writePt(at("root.pt"), saved);
    const { root, close } = await readPytorch(at("root.pt"));
    const map = root as Map<string, unknown>;
    expect([map.get("step"), map.get("note")]).toEqual([12, ["a", 1.5, null]]);
    await close();
  });

  it("shapes as torch.Size, untyped storages with a type of their own", async () => {
    // What torch.save writes for uint16: _rebuild_tensor_v3 of a storage in bytes.
    const head = pickle(new Map()).bytes.subarray(0, 2);
    const storage = "(X\x07\0\0\0storagectorch.storage\nUntypedStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ";
    const tensor = `ctorch._utils\n_rebuild_tensor_v3\n(${storage}K\x01ctorch\nSize\n(K\x02t\x85RK\x01\x85\x89Nctorch\nuint16\n}tR`;
    const data = Buffer.concat([head, Buffer.from(`}X\x01\0\0\0w${tensor}s.`, "latin1")]);
    await writeZip(
      at("v3.pt"),
      new Map<string, Uint8Array>([
        ["v3/data.pkl", data],
        ["v3/data/0", bytesOf(Uint16Array.of(1, 65535, 3))],
      ]),
    );
    const file = await openTensorFile(at("v3.pt"));
    expect(file.tensors.get("w")).toMatchObject({ dtype: "U16", shape: [2] });
    expect([...(await file.readF32("w"))]).toEqual([65535, 3]);
    await file.close();
  });

  it("a safetensors file whose header has the length of a pickle's first bytes", async () => {
    const header = Buffer.alloc(8 + 0x0280, " ");
    header.writeBigUInt64LE(0x0280n);
    header.write("{}", 8);
    writeFileSync(at("640.safetensors"), header);
    const file = await openTensorFile(at("640.safetensors"));
    expect(file.tensors.size).toBe(0);
    await file.close();
  });
});

describe("files that PyTorch 2.13 wrote", () => {
  const fixture = (name: string) => join(__dirname, "fixtures", name);

  it("views and types", async () => {
    const file = await openTensorFile(fixture("views-and-dtypes.pt"));
    const range = Array.from({ length: 24 }, (_, i) => i);
    const transposed = range.map((i) => (i % 4) * 6 + Math.floor(i / 4));
    const expected: Record<string, [string, number[], number[]]> = {
      a: ["F32", [6, 4], transposed],
      b: ["F32", [2, 3], [8, 9, 10, 14, 15, 16]],
      c: ["BF16", [4, 6], range],
      d: ["I64", [], [7]],
      e: ["F32", [0, 3], []],
      f: ["BOOL", [2], [1, 0]],
      g: ["F32", [2, 2], [1, 1, 1, 1]],
      h: ["F64", [5], [0, 1, 2, 3, 4]],
    };
    expect([...file.tensors.keys()]).toEqual(Object.keys(expected));
    for (const [name, [dtype, shape, values]] of Object.entries(expected)) {
      expect(file.tensors.get(name)).toMatchObject({ dtype, shape });
      expect([...(await file.readF32(name))]).toEqual(values);
    }
    await file.close();
    const { root, close } = await readPytorch(fixture("views-and-dtypes.pt"));
    await close();
    expect((root as Map<string, unknown>).get("nested")).toEqual([new Map([["x", [1, 2.5, null, "s"]]])]);
  });

  it.each(["evil.pt", "evil-zip.pt"])("%s, which runs a command where it is unpickled", async (name) => {
    const error = await failure(() => openTensorFile(fixture(name)));
    expect(error.code).toBe("checkpoint");
    expect(error.message).toContain('asks for the Python object "posix.system": refused');
  });
});

describe("refusing", () => {
  const system = new Global("posix system");
  it.each<[string, unknown, string, string]>([
    ["a call of Python code", new Map([["a", system]]), "checkpoint", '"posix.system"'],
    ["a whole model", new Map([["model", new Global("models Vae")]]), "checkpoint", '"models.Vae"'],
    [
      "a dict without tensors",
      new Map([["lr", 0.1]]),
      "checkpoint",
      'holds no state dict: expected model_state_dict or tensors by name, found "lr"',
    ],
    ["a list", [1], "checkpoint", "found a list"],
    ["a view past its storage", new Map([["a", base.view([4], [1], 9)]]), "file_format", "past the end"],
    ["strides past the storage", new Map([["a", base.view([2, 2], [11, 2])]]), "file_format", "past the end"],
    ["fewer strides than sizes", new Map([["a", base.view([2, 2], [1])]]), "file_format", "impossible layout"],
    ["a negative size", new Map([["a", base.view([-1], [1])]]), "file_format", "no whole numbers"],
    ["a negative stride", new Map([["a", base.view([2], [-1], 4)]]), "file_format", "no whole numbers"],
    ["a negative offset", new Map([["a", base.view([2], [1], -1)]]), "file_format", "impossible layout"],
    [
      "sizes past 2^53",
      new Map([["a", base.view([2 ** 30, 2 ** 30, 0], [0, 0, 0])]]),
      "file_format",
      "impossible shape",
    ],
    [
      "a tensor that unfolds without end",
      new Map([["a", base.view([2 ** 30], [0])]]),
      "file_format",
      "unfold to 4294967296 bytes from 48",
    ],
    [
      "an unknown storage",
      new Map([["a", new PtTensor("torch QInt8Storage", new Uint8Array(1), 1, [1])]]),
      "checkpoint",
      '"a" is a tensor of type QInt8 which cannot be read',
    ],
  ])("%s", async (_, value, code, reason) => {
    await writePt(at("refused.pt"), value);
    const zip = await failure(() => openTensorFile(at("refused.pt")));
    expect(zip.message).toContain(reason);
    expect(zip.code).toBe(code);
    writeFileSync(at("refused-legacy.pt"), legacyBytes(value));
    const legacy = await failure(() => openTensorFile(at("refused-legacy.pt")));
    expect([legacy.code, legacy.message.includes(reason)]).toEqual([code, true]);
  });

  it("archives that lack a part or have one of another size", async () => {
    const { bytes } = pickle(new Map([["a", base]]));
    const good: [string, Uint8Array][] = [
      ["x/data.pkl", bytes],
      ["x/data/0", base.data],
    ];
    const cases: [string, [string, Uint8Array][], string][] = [
      ["no pickle", good.slice(1), "0 data.pkl"],
      ["two pickles", [...good, ["y/data.pkl", bytes]], "2 data.pkl"],
      ["no storage", good.slice(0, 1), 'storage "0" has 0 bytes, not 48'],
      ["a short storage", [good[0], ["x/data/0", new Uint8Array(47)]], "has 47 bytes, not 48"],
      ["big-endian numbers", [...good, ["x/byteorder", Buffer.from("big")]], 'byte order is "big"'],
      ["TorchScript", [...good, ["x/constants.pkl", bytes]], "TorchScript"],
    ];
    for (const [name, parts, reason] of cases) {
      await writeZip(at("part.pt"), new Map(parts));
      expect([name, (await failure(() => readPytorch(at("part.pt")))).message]).toEqual([
        name,
        expect.stringContaining(reason),
      ]);
    }
  });

  it("a compressed entry that claims more than deflate can hold", async () => {
    await writePt(at("bomb.pt"), new Map([["a", PtTensor.f32(new Array(5000).fill(0))]]), { compress: true });
    const bytes = readFileSync(at("bomb.pt"));
    // The directory's entry of data/0: the uncompressed size stands 22 bytes before its name.
    const name = bytes.lastIndexOf("archive/data/0");
    expect(bytes.readUInt32LE(name - 22)).toBe(20000);
    bytes.writeUInt32LE(0xfffffff0, name - 22);
    writeFileSync(at("bomb.pt"), bytes);
    expect((await failure(() => readPytorch(at("bomb.pt")))).message).toMatch(/claims 4294967280 bytes made from \d+/);
  });

  it("entries that share their bytes", async () => {
    await writePt(
      at("overlap.pt"),
      new Map([
        ["a", base],
        ["b", PtTensor.f32(new Array(12).fill(1))],
      ]),
    );
    const bytes = readFileSync(at("overlap.pt"));
    // The directory's entries of data/0 and data/1: where they begin stands 4 bytes before their names.
    const [first, second] = ["0", "1"].map((key) => bytes.lastIndexOf(`archive/data/${key}`) - 4);
    expect(bytes.readUInt32LE(first)).toBeLessThan(bytes.readUInt32LE(second));
    bytes.copy(bytes, second, first, first + 4);
    writeFileSync(at("overlap.pt"), bytes);
    expect((await failure(() => readPytorch(at("overlap.pt")))).message).toContain("overlaps another entry");
  });

  it("files that are none of PyTorch's, missing ones and folders", async () => {
    writeFileSync(at("text.pt"), "hello world");
    expect(await failure(() => readPytorch(at("text.pt")))).toMatchObject({ code: "file_format" });
    writeFileSync(at("empty.pt"), "");
    expect(await failure(() => readPytorch(at("empty.pt")))).toMatchObject({ code: "file_format" });
    expect(await failure(() => readPytorch(at("missing.pt")))).toMatchObject({ code: "io" });
    expect(await failure(() => openTensorFile(folder))).toMatchObject({ code: "io" });
  });

  it("reads after closing", async () => {
    await writePt(at("closed.pt"), stateDict());
    const file = await openTensorFile(at("closed.pt"));
    await file.close();
    await file.close();
    expect(await failure(() => file.read("whole"))).toMatchObject({ code: "disposed" });
  });
});

describe("damaged files", () => {
  const sources: Record<string, Buffer> = {};
  beforeAll(async () => {
    const small = new Map([
      [
        "model_state_dict",
        new Map([
          ["a", base.view([4, 3], [1, 4])],
          ["b", PtTensor.f32([1])],
        ]),
      ],
    ]);
    for (const [name, options] of Object.entries({ zip: {}, deflated: { compress: true } })) {
      await writePt(at("source.pt"), small, options);
      sources[name] = readFileSync(at("source.pt"));
    }
    sources.legacy = legacyBytes(small);
  });

  it.each(["zip", "deflated", "legacy"])("%s: values or an LtxError, and no file left behind", async (kind) => {
    const source = sources[kind];
    const before = new Set([...readdirSync(folder), "fuzz.pt"]);
    const edit = fc.record({ at: fc.nat(source.length - 1), byte: fc.nat(255), bit: fc.nat(8) });
    const cut = fc.oneof({ weight: 3, arbitrary: fc.constant(source.length) }, fc.nat(source.length));
    await fc.assert(
      fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 4 }), cut, async (edits, length) => {
        const bytes = Buffer.from(source);
        for (const { at, byte, bit } of edits) bytes[at] = bit < 8 ? bytes[at] ^ (1 << bit) : byte;
        writeFileSync(at("fuzz.pt"), bytes.subarray(0, length));
        try {
          const file = await openTensorFile(at("fuzz.pt"));
          try {
            for (const [name, { dtype }] of file.tensors) if (dtype !== "C64") await file.readF32(name);
          } finally {
            await file.close();
          }
        } catch (error) {
          expect(error).toBeInstanceOf(LtxError);
          expect(["file_format", "checkpoint"]).toContain((error as LtxError).code);
        }
      }),
      { seed: 7, numRuns: 400 },
    );
    expect(readdirSync(folder).filter((name) => !before.has(name))).toEqual([]);
  });
});
