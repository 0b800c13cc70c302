/**
 * PyTorch's `.pt` files, in both of its formats: a zip archive with `data.pkl` and one entry a storage, and before that a
 * row of pickles followed by the storages. Storages stay in the file until their tensors are asked for.
 */
import { check, LtxError } from "../errors.js";
import { PickleTruncated, unpickle } from "./pickle.js";
import {
  elementBytes,
  PytorchPickle,
  type PytorchStorage,
  type PytorchTensor,
  show,
  storageBytes,
} from "./pytorch-pickle.js";
import { openRandomAccess, type RandomAccess } from "./random-access.js";
import { openZip, type ZipArchive, type ZipEntry } from "./zip.js";

export { PytorchTensor } from "./pytorch-pickle.js";

/** An open `.pt` file. */
export interface PytorchFile {
  /**
   * What was saved: dicts as Map, lists and tuples as arrays, tensors as {@link PytorchTensor}; what else may stand
   * beside them as `Opaque`.
   */
  readonly root: unknown;
  /**
   * The elements of a tensor of this file, little-endian and row-major, in a buffer of their own.
   * @throws LtxError `io`, `file_format` when the contents are damaged
   */
  read(tensor: PytorchTensor): Promise<Uint8Array>;
  /** Closes the file; safe to call again. */
  close(): Promise<void>;
}

/** Part of a storage, in bytes. */
type ReadStorage = (storage: PytorchStorage, offset: number, length: number) => Promise<Uint8Array>;

/** The pickle names the tensors but does not hold them: a hundred thousand take about 20 MB. */
const MAX_PICKLE_BYTES = 64 * 2 ** 20;
const ZIP_SIGNATURE = 0x04034b50;
const LEGACY_MAGIC = 0x1950a86a20f9469cfc6cn;
const LEGACY_PROTOCOL = 1001;
const FIRST_READ = 2 ** 20;

/**
 * Opens a file that `torch.save` wrote.
 * @throws LtxError `checkpoint` when it asks for Python objects other than tensors and plain containers, `file_format`
 *   when it is damaged or no such file, `io`
 */
export async function readPytorch(path: string): Promise<PytorchFile> {
  const file = await openRandomAccess(path, "pt");
  let archive: ZipArchive | undefined;
  try {
    const start = await file.read(0, Math.min(4, file.size));
    if (start.length < 4 || new DataView(start.buffer).getUint32(0, true) !== ZIP_SIGNATURE) return await legacy(file);
    await file.close();
    archive = await openZip(path, "pt", { zeroIsUnchecked: true });
    return await zipped(archive);
  } catch (error) {
    await file.close();
    await archive?.close();
    throw error;
  }
}

const damaged = (path: string, reason: string) =>
  new LtxError("file_format", `[pt] ${path}: ${reason}; the file is damaged or not a PyTorch checkpoint`);

async function zipped(archive: ZipArchive): Promise<PytorchFile> {
  const { path, entries } = archive;
  const pickles = [...entries.keys()].filter((name) => /^[^/]+\/data\.pkl$/.test(name));
  if (pickles.length === 0) {
    throw new LtxError(
      "file_format",
      `[pt] ${path} is ${archiveKind([...entries.keys()])}, expected a PyTorch checkpoint: found 0 data.pkl in it`,
    );
  }
  if (pickles.length > 1) throw damaged(path, `it holds ${pickles.length} data.pkl`);
  const folder = pickles[0].slice(0, -"data.pkl".length);
  if (entries.has(`${folder}constants.pkl`)) {
    throw new LtxError(
      "checkpoint",
      `[pt] ${path} is a TorchScript program, expected a state dict saved by torch.save`,
    );
  }
  const small = async (name: string, most: number): Promise<Uint8Array> => {
    const entry = entries.get(folder + name) as ZipEntry;
    if (entry.size > most) throw damaged(path, `${name} has ${entry.size} bytes, the limit is ${most}`);
    return archive.read(entry);
  };
  if (entries.has(`${folder}byteorder`)) {
    const order = Buffer.from(await small("byteorder", 64)).toString("latin1");
    if (order !== "little")
      throw damaged(path, `its byte order is ${JSON.stringify(order)}, only "little" can be read`);
  }
  const pickle = new PytorchPickle(path);
  const persistent = (id: unknown) => pickle.persistent(id);
  const bytes = await small("data.pkl", MAX_PICKLE_BYTES);
  const { value: root } = await unpickle(bytes, { globals: pickle.globals, persistent, name: path });

  const places = new Map<PytorchStorage, ZipEntry>();
  for (const storage of pickle.storages.values()) {
    const entry = entries.get(`${folder}data/${storage.key}`);
    const expected = storage.length * storageBytes(storage);
    if (entry?.size !== expected) {
      throw damaged(
        path,
        `storage ${JSON.stringify(storage.key.slice(0, 80))} has ${entry?.size ?? 0} bytes, not ${expected}`,
      );
    }
    places.set(storage, entry);
  }
  const read: ReadStorage = (storage, offset, length) => archive.read(places.get(storage) as ZipEntry, offset, length);
  return reader(path, root, read, archive.close);
}

/** What a zip archive is that holds these files, none of which is a checkpoint's. */
function archiveKind(names: readonly string[]): string {
  const has = (pattern: RegExp) => names.some((name) => pattern.test(name));
  if (names.length === 0) return "an empty zip archive";
  if (has(/^\[Content_Types\]\.xml$/)) return "an Office document";
  if (has(/(^|\/)model\.weights\.h5$/)) return "a Keras model";
  if (has(/(^|\/)data\/weights\b|\.mlmodel$/)) return "a Core ML model";
  if (names.every((name) => name.endsWith(".npy"))) return "a NumPy archive (.npz)";
  if (has(/\.(safetensors|pt|pth|ckpt|bin|gguf)$/)) return "a zip archive with weights in it (unpack it first)";
  return `a zip archive of other files (${names.slice(0, 3).map(show).join(", ")})`;
}

async function legacy(file: RandomAccess): Promise<PytorchFile> {
  const { path, size } = file;
  // The pickles say nowhere how long they are: read more until they are whole.
  let parsed: Legacy | undefined;
  for (
    let length = Math.min(FIRST_READ, size);
    parsed === undefined;
    length = Math.min(4 * length, size, MAX_PICKLE_BYTES)
  ) {
    try {
      parsed = await parseLegacy(await file.read(0, length), path);
    } catch (error) {
      if (!(error instanceof PickleTruncated) || length === size || length === MAX_PICKLE_BYTES) throw error;
    }
  }
  const places = new Map<PytorchStorage, number>();
  let position = parsed.end;
  for (const storage of parsed.storages) {
    const begin = position + 8;
    position = begin + storage.length * storageBytes(storage);
    if (position > size) throw damaged(path, `storage ${storage.key} reaches past the ${size} bytes there are`);
    const length = new DataView((await file.read(begin - 8, 8)).buffer).getBigUint64(0, true);
    if (length !== BigInt(storage.length))
      throw damaged(path, `storage ${storage.key} has ${length} elements, not ${storage.length}`);
    places.set(storage, begin);
  }
  const read: ReadStorage = (storage, offset, length) => file.read((places.get(storage) as number) + offset, length);
  return reader(path, parsed.root, read, file.close);
}

interface Legacy {
  root: unknown;
  /** In the order in which they lie in the file. */
  storages: PytorchStorage[];
  /** Where they begin. */
  end: number;
}

/** Magic number, version, the writer's machine, the object, and the keys of its storages: a pickle each. */
async function parseLegacy(bytes: Uint8Array, path: string): Promise<Legacy> {
  const pickle = new PytorchPickle(path);
  const persistent = (id: unknown) => pickle.persistent(id);
  let end = 0;
  const next = async (): Promise<unknown> => {
    const result = await unpickle(bytes, { globals: pickle.globals, persistent, name: path }, end);
    end = result.end;
    return result.value;
  };
  if ((await next()) !== LEGACY_MAGIC) throw damaged(path, "it does not begin with PyTorch's magic number");
  const version = await next();
  if (version !== LEGACY_PROTOCOL) throw damaged(path, `its version is not ${LEGACY_PROTOCOL}`);
  const machine = await next();
  if (!(machine instanceof Map) || machine.get("little_endian") !== true)
    throw damaged(path, "it is not little-endian");
  const root = await next();
  const keys = await next();
  const known = Array.isArray(keys) && keys.length === pickle.storages.size && new Set(keys).size === keys.length;
  const storages = known ? keys.map((key) => pickle.storages.get(key)) : [undefined];
  if (storages.includes(undefined)) throw damaged(path, "its list of storages does not fit its tensors");
  return { root, storages: storages as PytorchStorage[], end };
}

function reader(path: string, root: unknown, readStorage: ReadStorage, close: () => Promise<void>): PytorchFile {
  let closed = false;
  return {
    root,
    async read(tensor) {
      check(!closed, "disposed", () => `[pt] ${path} is closed; open it again to read its tensors`);
      const [begin, end] = tensor.span;
      const width = elementBytes(tensor.dtype);
      const bytes = await readStorage(tensor.storage, begin * width, (end - begin) * width);
      return tensor.contiguous ? bytes : gather(bytes, tensor);
    },
    async close() {
      closed = true;
      await close();
    },
  };
}

/** The elements of `tensor` in row-major order, out of the stretch of storage that begins with its first one. */
function gather(bytes: Uint8Array, tensor: PytorchTensor): Uint8Array {
  const out = new Uint8Array(tensor.byteLength);
  const { buffer } = bytes;
  switch (elementBytes(tensor.dtype)) {
    case 1:
      copy(bytes, out, tensor);
      break;
    case 2:
      copy(new Uint16Array(buffer), new Uint16Array(out.buffer), tensor);
      break;
    case 4:
      copy(new Uint32Array(buffer), new Uint32Array(out.buffer), tensor);
      break;
    default:
      copy(new BigUint64Array(buffer), new BigUint64Array(out.buffer), tensor);
  }
  return out;
}

function copy<T>(
  from: { [i: number]: T },
  to: { [i: number]: T; length: number },
  { shape, strides }: PytorchTensor,
): void {
  const index = shape.map(() => 0);
  let at = 0;
  for (let i = 0; i < to.length; i++) {
    to[i] = from[at];
    for (let d = shape.length - 1; d >= 0; d--) {
      at += strides[d];
      if (++index[d] < shape[d]) break;
      at -= shape[d] * strides[d];
      index[d] = 0;
    }
  }
}
