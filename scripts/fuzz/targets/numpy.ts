/** NumPy's arrays against a reading of their headers by the format's description. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { inflateRawSync } from "node:zlib";
import { type DataOptions, openData } from "../../../lib/data/index.js";
import { type NpyArray, openNpy, openNpz } from "../../../lib/formats/npy.js";
import { npyFile } from "../../../test/support/npy.js";
import { mutateBytes } from "../mutate.js";
import type { Random } from "../random.js";
import { must, type Target } from "../target.js";
import { mutateZip, wrongChecksums, zipBytes } from "../zip.js";

const DESCRS = ["|u1", "<i2", "<u4", "<f4", "<f8", ">f4", ">i2", "<i8", "|i1", "=f4"];
const WIDTH = (descr: string) => Number(descr[2]);
const MAX_VALUES = 4096;

function arrayBytes(
  random: Random,
  shape: readonly number[],
  descr = random.pick(DESCRS),
  fortran = random.chance(0.2),
): Buffer {
  const size = shape.reduce((n, d) => n * d, 1) * WIDTH(descr);
  const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
  const header = `{'descr': '${descr}', 'fortran_order': ${fortran ? "True" : "False"}, 'shape': ${tuple}, }`;
  return npyFile(
    header,
    Uint8Array.from({ length: size }, (_, i) => (i * 89) & 255),
    random.pick([1, 1, 2, 3]),
  );
}

/** The header's text changed where Python's literals matter. */
function mutateArray(random: Random, bytes: Buffer): Buffer {
  if (random.chance(0.5)) return mutateBytes(random, bytes);
  const text = bytes.toString("latin1");
  const [from, to] = random.pick([
    [
      /'descr': '..\w'/,
      () => `'descr': '${random.pick([...DESCRS, "<f2", "|O", "<c8", "|b1", "<U4", "V8", "u8", "<f16", ""])}'`,
    ],
    [/False|True/, () => random.pick(["True", "False", "1", "None", "'no'"])],
    [
      /\([\d, ]*\)/,
      () =>
        `(${Array.from({ length: random.below(6) }, () => (random.chance(0.7) ? random.below(5) : random.edge())).join(", ")}${random.pick(["", ","])})`,
    ],
    [/'shape'/, () => random.pick(["'shapes'", "'descr'", '"shape"', "'shape' "])],
    [/, }/, () => random.pick(["}", ", 'more': 1}", ",, }", ", 'shape': (1,)}"])],
  ] as [RegExp, () => string][]);
  const changed = Buffer.from(text.replace(from, to), "latin1");
  // The data keep their place when the header's length is set anew.
  if (random.chance(0.7) && changed.length > 12 && changed[6] === 1) {
    const end = changed.indexOf("\n");
    if (end > 10) changed.writeUInt16LE(Math.min(65535, end + 1 - 10), 8);
  }
  return changed;
}

/** Shape and values as NumPy has them; null where this reader does not judge. */
function judge(bytes: Buffer): { shape: number[]; values: number[] } | null {
  const wide = bytes[6] > 1;
  const start = wide ? 12 : 10;
  const end = start + (wide ? bytes.readUInt32LE(8) : bytes.readUInt16LE(8));
  const text = bytes.toString("latin1", start, end);
  const [, order, kind, width] = /['"]descr['"]\s*:\s*['"]([<>|=]?)([uif])(\d)['"]/.exec(text) ?? [];
  const fortran = /['"]fortran_order['"]\s*:\s*True/.test(text);
  const sizes = /['"]shape['"]\s*:\s*\(([^)]*)\)/.exec(text)?.[1];
  if (!kind || sizes === undefined) return null;
  const shape = sizes
    .split(",")
    .map((part) => part.trim().replace(/L$/, ""))
    .filter((part) => part !== "")
    .map(Number);
  const count = shape.reduce((n, d) => n * d, 1);
  must(
    bytes.length === end + count * Number(width),
    () => `${bytes.length} bytes were taken for shape (${shape}) of ${kind}${width}`,
  );
  if (count > MAX_VALUES) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset + end, bytes.length - end);
  const little = order !== ">";
  const read = (i: number): number => {
    const at = i * Number(width);
    switch (kind + width) {
      case "u1":
        return view.getUint8(at);
      case "i1":
        return view.getInt8(at);
      case "u2":
        return view.getUint16(at, little);
      case "i2":
        return view.getInt16(at, little);
      case "u4":
        return view.getUint32(at, little);
      case "i4":
        return view.getInt32(at, little);
      case "u8":
        return Number(view.getBigUint64(at, little));
      case "i8":
        return Number(view.getBigInt64(at, little));
      case "f4":
        return view.getFloat32(at, little);
      default:
        return view.getFloat64(at, little);
    }
  };
  const strides = shape.map((_, d) => (fortran ? shape.slice(0, d) : shape.slice(d + 1)).reduce((n, s) => n * s, 1));
  const values = Array.from({ length: count }, (_, i) => {
    let [rest, at] = [i, 0];
    for (let d = shape.length - 1; d >= 0; d--) {
      at += (rest % shape[d]) * strides[d];
      rest = Math.floor(rest / shape[d]);
    }
    return read(at);
  });
  return { shape, values };
}

async function compare(array: NpyArray, bytes: Buffer): Promise<void> {
  const expected = judge(bytes);
  if (!expected) return;
  must(array.shape.join() === expected.shape.join(), () => `shape [${array.shape}], expected [${expected.shape}]`);
  const values = await array.read(0, array.size);
  must(values.length === expected.values.length, () => `${values.length} values of ${expected.values.length}`);
  for (const [i, value] of expected.values.entries()) {
    must(Object.is(values[i], value), () => `element ${i} is read as ${values[i]}, expected ${value}`);
  }
}

const SHAPES = [[6], [2, 3], [], [0, 3], [2, 3, 2, 2], [1]];

export const npy: Target = {
  name: "npy",
  about: ".npy arrays, against a reading of their headers by the description",
  weight: 20,
  async setup(folder) {
    const path = join(folder, "case.npy");
    return async (random) => {
      const bytes = mutateArray(random, arrayBytes(random, random.pick(SHAPES)));
      writeFileSync(path, bytes);
      await compare(await openNpy(path), bytes);
    };
  },
};

/** The first array of an archive that is built as the writers under test build it. */
function firstArray(bytes: Buffer): Buffer | null {
  for (let at = 0; at + 30 < bytes.length && bytes.readUInt32LE(at) === 0x04034b50; ) {
    const [method, packed] = [bytes.readUInt16LE(at + 8), bytes.readUInt32LE(at + 18)];
    const start = at + 30 + bytes.readUInt16LE(at + 26) + bytes.readUInt16LE(at + 28);
    const name = bytes.toString("utf8", at + 30, at + 30 + bytes.readUInt16LE(at + 26));
    const data = bytes.subarray(start, start + packed);
    if (name.endsWith(".npy")) return method === 8 ? inflateRawSync(data) : Buffer.from(data);
    at = start + packed;
  }
  return null;
}

export const npz: Target = {
  name: "npz",
  about: ".npz archives, with their checksums",
  weight: 10,
  async setup(folder) {
    const path = join(folder, "case.npz");
    return async (random) => {
      const parts = Array.from({ length: random.within(1, 2) }, (_, i) => ({
        name: `arr_${i}.npy`,
        data: arrayBytes(random, random.pick(SHAPES)),
        deflate: random.chance(0.5),
      }));
      const kind = random.below(10);
      if (kind < 2) parts[0].data = mutateArray(random, parts[0].data);
      const whole = kind < 2 || (kind >= 6 && kind < 8);
      const bytes = whole
        ? zipBytes(parts)
        : kind < 6
          ? mutateZip(random, parts)
          : mutateBytes(random, zipBytes(parts));
      writeFileSync(path, bytes);
      const array = await openNpz(path);
      const values = array.size <= MAX_VALUES ? await array.read(0, array.size) : null;
      must(!values || values.length === array.size, () => `${values?.length} values of ${array.size}`);
      const wrong = wrongChecksums(bytes) ?? [];
      // Of several arrays one alone is read: which one, only its own reader says.
      const all = wrong.length > 0 && wrong.length === parts.length;
      must(!values || !all, () => `accepted with a wrong checksum of ${wrong}`);
      if (whole && wrong.length === 0) {
        const first = firstArray(bytes);
        if (first) await compare(array, first);
      }
    };
  },
};

/** Data folders as training opens them. */
export const arrayClips: Target = {
  name: "array-clips",
  about: "npz and npy data sets as training opens them",
  weight: 6,
  async setup(folder) {
    const base: DataOptions = {
      source: "npz",
      path: folder,
      frames: 3,
      height: 8,
      width: 8,
      num_channels: 1,
      frame_processing: "clip",
      digits: 1,
      digit_size: 8,
      seed: 1,
      size: 4,
      min_speed: 1,
      max_speed: 2,
    };
    mkdirSync(join(folder, "empty"));
    return async (random) => {
      const size = () => random.pick([1, 2, 3, 4, 5]);
      const shape = random.pick([
        [size(), 4, 8, 8],
        [size(), 4, 8, 8, 1],
        [4, size(), 8, 8],
        [size(), 4, 8, 8, 3],
        [2, 30, 64, 64],
      ]);
      const own = random.chance(0.5) ? "|u1" : random.pick(DESCRS);
      const labels = arrayBytes(random, [shape[0], shape[1], random.within(1, 2)], random.pick(["|u1", "<i8", "<f4"]));
      const videos = arrayBytes(random, shape, own);
      const source = random.pick(["npz", "npy"] as const);
      const changed = random.chance(0.5) ? mutateArray(random, videos) : videos;
      if (source === "npz") {
        writeFileSync(join(folder, "videos_data.npz"), zipBytes([{ name: "arr_0.npy", data: changed }]));
        writeFileSync(
          join(folder, "labels_data.npz"),
          zipBytes([{ name: "arr_0.npy", data: random.chance(0.7) ? labels : mutateArray(random, labels) }]),
        );
      } else writeFileSync(join(folder, "mnist_test_seq.npy"), changed);
      const options = {
        ...base,
        source,
        num_channels: random.pick([1, 1, 3]),
        frame_processing: random.pick(["clip", "sample"] as const),
      };
      const data = await openData(options, random.pick(["train", "test"] as const));
      must(Number.isInteger(data.length) && data.length >= 1, () => `${data.length} clips`);
      for (const index of new Set([0, data.length - 1])) {
        const clip = await data.clip(index);
        must(clip.video.length === 3 * 8 * 8 * options.num_channels, () => `a clip of ${clip.video.length} bytes`);
        must(typeof clip.prompt === "string" && !/undefined|NaN/.test(clip.prompt), () => `the prompt ${clip.prompt}`);
      }
    };
  },
};
