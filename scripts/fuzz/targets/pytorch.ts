/** PyTorch's files, in both formats: archives with faults of structure, pickles of any opcodes. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { openTensorFile, type TensorFile } from "../../../lib/formats/tensor-file.js";
import { bytesOf, Global, legacyBytes, PtTensor, pickle, Tuple } from "../../../test/support/pytorch.js";
import { mutateBytes } from "../mutate.js";
import type { Random } from "../random.js";
import { must, type Target } from "../target.js";
import { mutateZip, type Part, wrongChecksums, zipBytes } from "../zip.js";

const WIDTH: Record<string, number> = {
  F64: 8,
  I64: 8,
  F32: 4,
  I32: 4,
  BF16: 2,
  F16: 2,
  I16: 2,
  U8: 1,
  I8: 1,
  BOOL: 1,
};
const MAX_READ = 1 << 20;

/** Objects as programs save them. */
function corpus(): unknown[] {
  const weights = PtTensor.f32([1, 2, 3, 4, 5, 6], [2, 3]);
  const half = new PtTensor("torch HalfStorage", bytesOf(Uint16Array.of(1, 2, 3, 4)), 4, [4]);
  const long = new PtTensor("torch LongStorage", bytesOf(BigInt64Array.of(7n)), 1, []);
  const shared = weights.view([3, 2], [1, 3]);
  return [
    new Map<unknown, unknown>([
      ["a.weight", weights],
      ["a.bias", PtTensor.f32([1, 2])],
    ]),
    new Map<unknown, unknown>([
      [
        "state_dict",
        new Map([
          ["w", weights],
          ["w.t", shared],
        ] as [unknown, unknown][]),
      ],
      ["epoch", 3],
      ["lr", 1e-4],
      ["name", "x"],
      ["none", null],
      ["yes", true],
      ["betas", new Tuple(0.9, 0.999)],
      ["list", [1, 2, [3]]],
      ["big", 0x1950a86a20f9469cfc6cn],
    ]),
    new Map<unknown, unknown>([
      ["h", half],
      ["n", long],
      ["p", new PtTensor("torch FloatStorage", weights.data, 6, [6], [1], 0, true)],
    ]),
    new Map<unknown, unknown>([["evil", new Global("os system")]]),
    weights,
  ];
}

const OPCODES =
  "(.0125FIJKLMNPQRSTUVXabcdeghijlopqrstu}])\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98BCG";
const GLOBALS = [
  "torch._utils\n_rebuild_tensor_v2",
  "torch._utils\n_rebuild_parameter",
  "collections\nOrderedDict",
  "torch\nFloatStorage",
  "builtins\neval",
  "os\nsystem",
  "builtins\ngetattr",
  "torch\nSize",
  "builtins\nset",
  "collections\nCounter",
  "collections\ndefaultdict",
  "torch\ndevice",
  "_codecs\nencode",
  "__main__\nModel",
  "numpy.core.multiarray\nscalar",
  "numpy\ndtype",
  "torch.serialization\n_get_layout",
  "argparse\nNamespace",
  "pathlib\nPosixPath",
  "torch\nbfloat16",
  "constructor\n__proto__",
  "Object\nprototype",
];

/** A program for the unpickler of opcodes whose operands are most often whole. */
function anyPickle(random: Random): Buffer {
  const parts: Buffer[] = [Buffer.from([0x80, random.pick([2, 2, 3, 4, 5, 0, 9])])];
  const repeat = random.chance(0.1) ? random.pick([1000, 100_000, 1_000_000]) : 0;
  if (repeat) parts.push(Buffer.alloc(repeat, random.pick([..."(}])0N2\x94"].map((c) => c.charCodeAt(0)))));
  for (let i = random.below(60); i > 0; i--) {
    const op = OPCODES[random.below(OPCODES.length)];
    const text = Buffer.from(random.pick(["0", "storage", "cpu", "a", "é", String(random.edge())]));
    const line = Buffer.concat([text, Buffer.from("\n")]);
    const length = random.chance(0.9) ? text.length : Math.min(2 ** 32 - 1, Math.abs(random.edge()));
    const sized = (width: 1 | 4 | 8) => {
      const out = Buffer.alloc(width);
      if (width === 8) out.writeBigUInt64LE(BigInt(length));
      else out.writeUIntLE(width === 1 ? length & 255 : length, 0, width);
      return Buffer.concat([out, text]);
    };
    const operand = (): Buffer => {
      if (op === "c" || op === "i") return Buffer.from(`${random.pick(GLOBALS)}\n`);
      if ("FILPSVgp".includes(op)) return line;
      if ("UC\x8c".includes(op)) return sized(1);
      if ("XBT\x8b".includes(op)) return sized(4);
      if ("\x8d\x8e\x96\x95".includes(op)) return sized(8);
      if (op === "\x8a") return Buffer.concat([Buffer.from([text.length]), text]);
      return random.bytes({ G: 8, J: 4, j: 4, r: 4, K: 1, h: 1, q: 1, M: 2, "\x82": 1, "\x80": 1 }[op] ?? 0);
    };
    parts.push(Buffer.from(op, "latin1"), operand());
  }
  if (random.chance(0.8)) parts.push(Buffer.from("."));
  return Buffer.concat(parts);
}

function partsOf(value: unknown): Part[] {
  const { bytes, storages } = pickle(value);
  return [
    { name: "archive/data.pkl", data: bytes },
    { name: "archive/byteorder", data: Buffer.from("little") },
    ...storages.map(({ data }, i) => ({ name: `archive/data/${i}`, data })),
    { name: "archive/version", data: Buffer.from("3\n") },
  ];
}

/** Opens a file and reads its tensors; the lengths have to fit their shapes. */
async function readAll(path: string): Promise<void> {
  const file: TensorFile = await openTensorFile(path);
  try {
    for (const [name, { dtype, shape, byteLength }] of [...file.tensors].slice(0, 20)) {
      must(
        shape.every((n) => Number.isSafeInteger(n) && n >= 0),
        () => `${name} has shape [${shape}]`,
      );
      const elements = shape.reduce((n, d) => n * d, 1);
      must(
        !(dtype in WIDTH) || byteLength === elements * WIDTH[dtype],
        () => `${name}: ${byteLength} bytes for [${shape}] ${dtype}`,
      );
      if (byteLength > MAX_READ) continue;
      const bytes = await file.read(name);
      must(bytes.length === byteLength, () => `${name}: read ${bytes.length} bytes of ${byteLength}`);
    }
  } finally {
    await file.close();
  }
}

export const ptZip: Target = {
  name: "pt-zip",
  about: ".pt archives of torch.save, with their checksums",
  weight: 10,
  async setup(folder) {
    const seeds = corpus().map(partsOf);
    const whole = seeds.map((parts) => zipBytes(parts));
    const path = join(folder, "case.pt");
    return async (random) => {
      const parts = structuredClone(random.pick(seeds));
      const kind = random.below(10);
      let bytes: Buffer;
      if (kind < 3) {
        parts[0].data = random.chance(0.5)
          ? anyPickle(random)
          : mutateBytes(
              random,
              parts[0].data,
              seeds.map(([first]) => first.data),
            );
        bytes = zipBytes(parts.map((part) => ({ ...part, deflate: kind === 0 })));
      } else if (kind < 7) bytes = mutateZip(random, parts);
      else bytes = mutateBytes(random, random.pick(whole), whole);
      writeFileSync(path, bytes);
      await readAll(path);
      const wrong =
        wrongChecksums(bytes, { zeroIsUnchecked: true })?.filter((name) => /\/data\.pkl$|\/data\//.test(name)) ?? [];
      must(wrong.length === 0, () => `accepted with a wrong checksum of ${wrong}`);
    };
  },
};

export const ptLegacy: Target = {
  name: "pt-legacy",
  about: ".pt files as PyTorch before 1.6 wrote them",
  weight: 10,
  async setup(folder) {
    const seeds = corpus().map(legacyBytes);
    const path = join(folder, "case.pt");
    return async (random) => {
      const seed = random.pick(seeds);
      const head = legacyBytes([]).indexOf(Buffer.from("little_endian")) + 18;
      const bytes = random.chance(0.25)
        ? Buffer.concat([seed.subarray(0, head), anyPickle(random), random.bytes(40)])
        : mutateBytes(random, seed, seeds);
      writeFileSync(path, bytes);
      await readAll(path);
    };
  },
};

/** The smallest archive whose zip64 records point anywhere. */
export const zip64: Target = {
  name: "zip64",
  about: "small archives whose zip64 records point anywhere",
  weight: 6,
  async setup(folder) {
    const path = join(folder, "case.pt");
    const [parts] = corpus().map(partsOf);
    return async (random) => {
      const place = () => BigInt(Math.trunc(random.edge())) + (random.chance(0.3) ? 2n ** 63n : 0n);
      const end = { zip64: { [random.pick(["offset", "start", "entries"])]: place() } };
      const bytes = zipBytes(
        random.chance(0.3) ? [] : parts.map((part) => ({ ...part, wide: random.chance(0.5) })),
        end,
      );
      const front = random.chance(0.3) ? Buffer.from("PK\x03\x04") : Buffer.alloc(0);
      writeFileSync(path, random.chance(0.3) ? mutateBytes(random, bytes) : Buffer.concat([front, bytes]));
      await readAll(path);
    };
  },
};
